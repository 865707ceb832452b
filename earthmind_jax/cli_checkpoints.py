"""The commands of ``earthmind`` that turn published checkpoints into ours and back; see :mod:`earthmind_jax.cli`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import tyro

from earthmind_jax.config import FusionConfig, one_of
from earthmind_jax.errors import UserError, WorkError

DTYPES = ("float32", "bfloat16", "float16")


def convert(
    source: Path,
    out: Path,
    /,
    dtype: str | None = None,
    fusion: str | None = None,
    masks_from: str | None = None,
    config: Path | None = None,
    sam2: Path | None = None,
    tokenizer: Path | None = None,
    base: tuple[Path, ...] = (),
    adapters: Path | None = None,
    merge: bool = False,
    lora_scale: float | None = None,
) -> None:
    """Turn a published checkpoint into a checkpoint directory; run again after an interruption to go on.

    Example: earthmind convert EarthMind-4B my_checkpoint --dtype bfloat16

    Args:
        source: a .safetensors, .pt or .pth file, a directory of them with its config.json, or one of DeepSpeed.
        out: new checkpoint directory.
        dtype: float32, bfloat16 or float16 for all weights; without it each keeps its own.
        fusion: fusion mode; without it that of the published model.
        masks_from: with --fusion, what masks are drawn from: optical, sar or fused.
        config: the published config.json, where it does not lie beside the weights.
        sam2: the SAM2 configuration (JSON), where the mask decoder is not of a published size.
        tokenizer: tokenizer directory, where it does not lie beside the weights.
        base: what a training checkpoint began with: an InternVL directory and a SAM2 file.
        adapters: directory of PEFT adapters on top.
        merge: fold LoRA factors into the weights; without it they stay adapters.
        lora_scale: alpha / rank of LoRA factors in a training checkpoint, which does not say (published: 2).
    """
    from checkpoints_convert.streaming import convert_to_checkpoint

    with _progress("converting") as progress:
        convert_to_checkpoint(
            source,
            out,
            config=None if config is None else _json(config),
            grounding=None if sam2 is None else _json(sam2),
            fusion=_fusion(fusion, masks_from),
            dtype=_dtype(dtype),
            parts=_parts(base, adapters, merge, lora_scale),
            tokenizer=tokenizer,
            progress=progress,
        )
    print(f"wrote {out}")


def compose(
    internvl: Path,
    sam2: Path,
    out: Path,
    /,
    fusion: str | None = None,
    masks_from: str | None = None,
    dtype: str | None = None,
    tokenizer: Path | None = None,
    seed: int = 0,
) -> None:
    """Make an EarthMind that is ready to train from an InternVL model and a SAM2 model.

    Example: earthmind compose InternVL2_5-4B sam2_hiera_large.pt start

    Args:
        internvl: InternVL directory.
        sam2: SAM2 or SAM2.1 file or directory.
        out: new checkpoint directory.
        fusion: fusion mode; without it the default.
        masks_from: with --fusion, what masks are drawn from: optical, sar or fused.
        dtype: float32, bfloat16 or float16 for all weights; without it each keeps its own.
        tokenizer: tokenizer directory, where it does not lie beside InternVL's weights.
        seed: of everything new.
    """
    from checkpoints_convert.compose import compose as composed
    from earthmind_jax import checkpoint

    checkpoint.refuse_existing(out.absolute())  # before the work, not after it
    config, params, words = composed(
        internvl,
        sam2,
        tokenizer=tokenizer,
        fusion=_fusion(fusion, masks_from),
        dtype=_dtype(dtype),
        seed=seed,
    )
    checkpoint.save(out, config, params, words, {"composed": [internvl.name, sam2.name], "seed": seed})
    print(f"wrote {out}")


def export(checkpoint: Path, out: Path, /, layout: str = "earthmind", shard_gb: float = 5.0) -> None:
    """Write a checkpoint in a published layout, for the PyTorch code that reads it.

    Example: earthmind export my_checkpoint published --layout earthmind

    Args:
        checkpoint: checkpoint directory.
        out: new directory for the files.
        layout: earthmind (the whole model, also for Sa2VA), internvl, sam2, or peft (the adapters).
        shard_gb: largest file, GB.
    """
    from checkpoints_convert.export import export_checkpoint

    with _progress("exporting") as progress:
        files = export_checkpoint(checkpoint, out, layout, shard=int(shard_gb * 1e9), progress=progress)
    for file in files:
        print(f"wrote {file}")


def inspect(path: Path, /, as_json: Annotated[bool, tyro.conf.arg(name="json")] = False) -> None:
    """Say what a published checkpoint holds, and what is missing or unknown, before converting it.

    Example: earthmind inspect EarthMind-4B

    Args:
        path: a .safetensors, .pt or .pth file, or a directory of them.
        as_json: print JSON.
    """
    from checkpoints_convert.inspection import inspect_source, report

    facts = inspect_source(path)
    print(json.dumps(facts, indent=2) if as_json else report(facts))


def verify(
    checkpoint: Path | None = None,
    /,
    source: Path | None = None,
    base: tuple[Path, ...] = (),
    adapters: Path | None = None,
    merge: bool = False,
    lora_scale: float | None = None,
    recorded: tuple[Path, ...] = (),
    live: bool = False,
) -> None:
    """Check a conversion: every tensor against its source, recorded outputs of PyTorch, or PyTorch itself.

    Example: earthmind verify my_checkpoint --source EarthMind-4B --live

    Args:
        checkpoint: checkpoint directory.
        source: what it was converted from; every tensor is read again and compared bit for bit.
        base: as in the conversion.
        adapters: as in the conversion.
        merge: as in the conversion.
        lora_scale: as in the conversion.
        recorded: directories of recorded cases, run through this code (they hold their own weights).
        live: run the converted language model and vision encoder beside those of transformers, layer by layer.
    """
    from checkpoints_convert import verify as checks

    if not (source or recorded or live):
        raise UserError("Name what to verify against: --source, --recorded or --live.")
    if checkpoint is None and (source or live):
        raise UserError("--source and --live need a checkpoint directory.")
    results = [checks.against_source(checkpoint, source, **_parts(base, adapters, merge, lora_scale))] if source else []
    results += [checks.against_recorded(case) for case in recorded]
    results += checks.against_live(checkpoint) if live else []
    for result in results:
        print(result.text)
    failed = [result.name for result in results if not result.passed]
    if failed:
        raise WorkError(f"{', '.join(failed)}: differs more than allowed; the table above says where.")


@contextlib.contextmanager
def _progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A line on standard error; called with (bytes done, bytes in all)."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task(label, total=None)

    def update(done: int, total: int) -> None:
        bar.start()  # only now: a wrong request gets its one sentence and nothing else
        bar.update(task, completed=done, total=total)

    try:
        yield update
    finally:
        if bar.live.is_started:
            bar.stop()


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror}); name an existing JSON file.") from error
    except ValueError as error:
        raise UserError(f"'{path}' is not valid JSON ({error}).") from error


def _dtype(name: str | None) -> Any:
    import jax.numpy as jnp

    if name is None:
        return None
    one_of("dtype", name, DTYPES)
    return jnp.dtype(name)


def _fusion(mode: str | None, masks_from: str | None) -> FusionConfig | None:
    if mode is None:
        if masks_from is not None:
            raise UserError("--masks-from needs --fusion.")
        return None
    return FusionConfig(mode=mode, **({"grounding": masks_from} if masks_from else {}))


def _parts(base: tuple[Path, ...], adapters: Path | None, merge: bool, lora_scale: float | None) -> dict[str, Any]:
    return {"base": base, "adapters": adapters, "merge": merge, "lora_scale": lora_scale}
