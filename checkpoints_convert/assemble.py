"""From the files of a training to one checkpoint: the base models, what was trained on top of them, and its adapters.

The result is one source of tensors under published names, so that everything behind it (layouts, plans, streaming) sees
an ordinary checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from checkpoints_convert.adapters import Factors, kept, merged, pairs, without_factors
from checkpoints_convert.layouts import detect, unknown
from checkpoints_convert.layouts.earthmind import SAM2_PREFIX
from checkpoints_convert.layouts.sam2 import SAM2
from checkpoints_convert.layouts.training import published_names
from checkpoints_convert.peft import is_peft, open_peft, place
from checkpoints_convert.reader import Source, open_source
from earthmind_jax.config import LoraConfig
from earthmind_jax.errors import UserError

PUBLISHED_ALPHA = 2.0
"""alpha / rank of the published trainings of EarthMind and Sa2VA (128, 256), whose checkpoints do not record it."""

_VOCABULARY = ("embed_tokens.weight", "tok_embeddings.weight")


@dataclass(frozen=True)
class Assembled:
    """One checkpoint; ``lora`` where its adapters are kept, ``places`` where a ``config.json`` may lie.

    ``vocabulary``: rows of the token embedding where trained tensors may have replaced those of a base, else None.
    """

    source: Source
    lora: LoraConfig | None
    places: tuple[str, ...]
    vocabulary: int | None = None


def assemble(
    source: str | Path | Source,
    base: Sequence[str | Path | Source] = (),
    adapters: str | Path | None = None,
    *,
    merge: bool = False,
    lora_scale: float | None = None,
) -> Assembled:
    """Put the parts of a checkpoint together.

    Args:
      source: a published checkpoint, or a training checkpoint (xtuner or DeepSpeed).
      base: the checkpoints that the training began with (an InternVL directory, a SAM2 file): ``source`` replaces
        their tensors where it has them.
      adapters: a PEFT directory on top of all that.
      merge: fold LoRA factors into the weights; else they stay apart, as the model's own adapters.
      lora_scale: alpha / rank of the factors in ``source``; None: :data:`PUBLISHED_ALPHA`.

    Raises:
      UserError: if a file cannot be read, two bases hold one tensor, or factors do not fit what they adapt.
    """
    if not isinstance(source, Source) and is_peft(Path(source)):
        raise UserError(f"'{source}' holds adapters alone: name the checkpoint that they were trained on as well.")
    top = open_published(source)
    where = [top.where]
    under: Source | None = None
    for part in map(_base, base):
        both = sorted(set(under.index) & set(part.index)) if under is not None else []
        if both:
            raise UserError(f"'{under.where}' and '{part.where}' both hold '{both[0]}': give each base once.")
        under = part if under is None else under.merged(part)
        where.append(part.where)
    factors = {
        module: Factors(top, module, PUBLISHED_ALPHA if lora_scale is None else lora_scale) for module in pairs(top)
    }
    whole = without_factors(top)
    whole = under.merged(whole) if under is not None else whole
    if adapters is not None:
        whole, more = _peft(whole, adapters)
        clash = sorted(set(factors) & set(more))
        if clash:
            raise UserError(f"'{top.where}' and '{adapters}' both adapt '{clash[0]}': merge the first one beforehand.")
        factors |= more
    trained = under is not None or adapters is not None or bool(factors)
    rows = [info.shape[0] for name, info in whole.index.items() if name.endswith(_VOCABULARY)] if trained else []
    places, vocabulary = tuple(where), rows[0] if rows else None
    if not factors:
        return Assembled(whole, None, places, vocabulary)
    if merge:
        return Assembled(merged(whole, factors), None, places, vocabulary)
    # Without their weights (a file of trained tensors alone) layouts are told by the factors.
    layout = detect([*whole.index, *(f"{module}.lora_A.weight" for module in factors)])
    if layout is None:
        raise UserError(unknown(whole.where, whole.index))
    both, lora = kept(whole, factors, layout.rules)
    return Assembled(both, lora, places, vocabulary)


def open_published(source: str | Path | Source) -> Source:
    """A checkpoint under its published names, also where training has wrapped them."""
    source = source if isinstance(source, Source) else open_source(source)
    return source.renamed(published_names(source.index))


def _base(path: str | Path | Source) -> Source:
    """A base checkpoint, SAM2 under the names that it has inside the whole model."""
    source = open_published(path)
    if SAM2.fits(source.index):
        names = {name: SAM2_PREFIX + name for name in source.index}
        # As the published export renames the layer scale of the memory encoder.
        return source.renamed({name: new.replace(".gamma", ".g_weight") for name, new in names.items()})
    if not any(name.startswith(("vision_model.", SAM2_PREFIX)) for name in source.index):
        raise UserError(
            f"'{source.where}' cannot be the base of a training checkpoint: give an InternVL directory with the names "
            "of its authors (vision_model.*), and a SAM2 file (image_encoder.*)."
        )
    return source


def _peft(base: Source, path: str | Path) -> tuple[Source, dict[str, Factors]]:
    """``base`` with the tensors that the adapter holds in full, and its factors by the base's own module names."""
    adapter = open_peft(path)
    modules = place(adapter.factors, base.index)
    stems: Mapping[str, str] = place({name.rpartition(".")[0]: None for name in adapter.whole.index}, base.index)
    names = {name: f"{stems[stem]}.{leaf}" for name in adapter.whole.index for stem, _, leaf in [name.rpartition(".")]}
    whole = base.merged(adapter.whole.renamed(names)) if names else base
    return whole, {modules[module]: pair for module, pair in adapter.factors.items()}
