"""Every tensor of a checkpoint against the file that it was converted from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from checkpoints_convert.assemble import assemble
from checkpoints_convert.digest import sha256
from checkpoints_convert.export import Origin, set_aside, tensors_of
from checkpoints_convert.layouts import LAYOUTS, TRAINED
from checkpoints_convert.layouts.lora import with_adapters
from checkpoints_convert.reader import Source
from checkpoints_convert.stored import stored_params
from checkpoints_convert.verify.result import Result
from earthmind_jax.errors import UserError

SHOWN = 20


def against_source(directory: str | Path, source: str | Path | Source, **parts: Any) -> Result:
    """Take each tensor of ``source`` out of the checkpoint through the inverse rule, and compare the bits.

    Where the conversion changed the dtype, the source is changed likewise first. The hashes of the files are compared
    with those noted in the conversion.

    Args:
      parts: what else belonged to the source, as :func:`~checkpoints_convert.assemble.assemble` takes it.

    Raises:
      UserError: the checkpoint was not converted, or ``source`` cannot be read.
    """
    directory = Path(directory).absolute()
    config, params = stored_params(directory)
    origin = Origin.read(directory)
    if origin is None:
        raise UserError(f"{directory} was not converted from a published checkpoint: there is nothing to compare with.")
    source = assemble(source, **parts).source
    layout = next((layout for layout in (*LAYOUTS, *TRAINED) if layout.name == origin.layout), None)
    if layout is None:
        raise UserError(f"{directory} was converted from the layout '{origin.layout}', which is not known here.")
    if config.lm.lora is not None:
        layout = with_adapters(layout)
    ours = tensors_of(layout, params, origin) | set_aside(layout, origin)
    problems = [f"{name}: not in the checkpoint" for name in source.index if name not in ours]
    problems += [f"{name}: not in the source" for name in ours if name not in source.index]
    equal = 0
    for name, (shape, dtype, make) in ours.items():
        if name not in source.index:
            continue
        theirs = source.read(name).astype(dtype, copy=False)
        if theirs.shape != tuple(shape):
            problems.append(f"{name}: the source has the shape {theirs.shape}, the checkpoint {tuple(shape)}")
        elif (error := _difference(make(), theirs)) is not None:
            problems.append(f"{name}: differs, by {error:.3g} at most")
        else:
            equal += 1
    digests = {file.name: sha256(file) for file in source.files}
    problems += [
        f"{name}: not the file that was converted"
        for name, digest in digests.items()
        if origin.files.get(name) != digest
    ]
    lines = [f"{directory.name}: {equal} of {len(source.index)} tensors equal, bit for bit", *problems[:SHOWN]]
    lines += [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    return Result("source", not problems, "\n".join(lines))


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float | None:
    """None where the bits are equal, else the largest difference."""
    a, b = (np.ascontiguousarray(x).reshape(-1) for x in (ours, theirs))
    if a.dtype == b.dtype and np.array_equal(a.view(np.uint8), b.view(np.uint8)):
        return None
    return float(np.max(np.abs(a.astype(np.float64) - b.astype(np.float64))))
