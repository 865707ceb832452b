"""Questions about a land cover map: which classes there are, and where."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from earthmind_jax.data.datasets._folders import ask_mask
from earthmind_jax.errors import UserError

LEAST_SHARE = 0.001  # of an image that a class must cover to be asked for


def map_turns(
    path: Path,
    relative: str,
    name: str,
    classes: Mapping[int, str],
    size: tuple[int, int],
    background: frozenset[int] = frozenset({0}),
) -> list[dict[str, Any]]:
    """A question for the classes of a label map, and one for the mask of each that covers enough of it.

    Args:
      path, relative: the label map, as it is opened and as records write it.
      classes: label value -> name.
      size: rows and columns of the image that it is of.
      background: values that mean nothing.

    Raises:
      UserError: the map cannot be read, is of another size, or has a value that is no class.
    """
    from earthmind_jax.geo.raster import read_raster

    raster = read_raster(path, labels=True)
    if len(raster.data) != 1 or raster.data.dtype.kind not in "ui":
        shape = " x ".join(map(str, raster.data.shape))
        raise UserError(f"'{path}' is no map of labels: it has {shape} values of {raster.data.dtype}.")
    if raster.data.shape[1:] != size:
        rows, columns = raster.data.shape[1:]
        raise UserError(f"'{path}' is {rows} x {columns} but its image {size[0]} x {size[1]}.")
    values, counts = np.unique(raster.data[0][raster.valid], return_counts=True)
    found = dict(zip(values.tolist(), counts.tolist(), strict=True))
    wrong = [value for value in found if value not in classes and value not in background]
    if wrong:
        known = ", ".join(map(str, sorted({*classes, *background})))
        raise UserError(f"'{path}' has the label {wrong[0]}; the labels are {known}.")
    shown = [v for v in classes if found.get(v, 0) >= LEAST_SHARE * raster.data.size]
    turns = [question_of_classes(tuple(classes.values()), [classes[value] for value in shown])]
    return turns + [ask_mask(classes[v], name, {"file": relative, "value": v}) for v in shown]


def question_of_classes(classes: tuple[str, ...], shown: list[str]) -> dict[str, Any]:
    """The multi-label question: names of all classes, and those that apply as the answer."""
    question = f"Which of these land cover classes does the image show? Classes: {'; '.join(classes)}."
    return {"question": question, "answer": "; ".join(shown) or "None of them"}
