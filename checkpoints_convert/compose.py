"""An InternVL model and a SAM2 model as the beginning of an EarthMind, ready to train as the published training starts.

What neither brings is new: ``[SEG]`` and its companions get the next free ids, the token embedding and the head grow by
their rows, and ``text_hidden_fcs``, the fusion and whatever else the configuration asks for are drawn from a seed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from checkpoints_convert.convert import absent, convert
from earthmind_jax.config import EarthMindConfig, FusionConfig, GroundingConfig
from earthmind_jax.data.collate import with_tokens
from earthmind_jax.data.tokenizer import Tokenizer
from earthmind_jax.errors import UserError
from earthmind_jax.models import earthmind, families
from earthmind_jax.types import Params

EMBEDDING, HEAD = "lm/embed/embedding", "lm/head/kernel"
VOCABULARY_AXIS = {EMBEDDING: 0, HEAD: 1}


def compose(
    internvl: str | Path,
    sam2: str | Path,
    *,
    tokenizer: str | Path | Tokenizer | None = None,
    fusion: FusionConfig | None = None,
    grounding: GroundingConfig | Mapping[str, Any] | None = None,
    dtype: Any = None,
    seed: int = 0,
) -> tuple[EarthMindConfig, Params, Tokenizer]:
    """Build an EarthMind from its two published ancestors.

    Args:
      internvl: an InternVL directory, of its authors' layout or that of transformers.
      sam2: a SAM2 or SAM2.1 file or directory, of either layout.
      tokenizer: the tokenizer, or its directory; None: that of ``internvl``. The special tokens that it lacks are
        appended in the published order, so that they get the published ids.
      fusion: how the model is to fuse; None: the default.
      grounding: SAM2's configuration or published tree, where it is not one of the published sizes.
      dtype: of all parameters; None keeps those of the sources, and new ones are float32 (new rows: as their table).
      seed: of everything new.

    Returns:
      The configuration with its token ids, all parameters of the model as numpy arrays, and the tokenizer.

    Raises:
      UserError: for files that cannot be read, or are not what their argument says.
    """
    config, params = convert(internvl, fusion=fusion or FusionConfig(), dtype=dtype)
    if not isinstance(config, EarthMindConfig) or EMBEDDING not in params or config.grounding is not None:
        raise UserError(f"'{internvl}' is not an InternVL checkpoint; give the directory of a published one.")
    mask_model, mask_params = convert(sam2, config=grounding, dtype=dtype)
    if not isinstance(mask_model, GroundingConfig):
        raise UserError(f"'{sam2}' is not a SAM2 checkpoint; give a published .pt file or directory.")
    if tokenizer is None or not isinstance(tokenizer, Tokenizer):
        tokenizer = Tokenizer.load(Path(internvl if tokenizer is None else tokenizer))
    tokenizer.add_tokens()
    config = dataclasses.replace(
        config,
        grounding=mask_model,
        lm=dataclasses.replace(config.lm, vocab=len(tokenizer)),
        template=families.FAMILIES[config.lm.family].template,  # not InternVL's own
    )
    params = {**params, **mask_params}
    keys = jax.random.split(jax.random.key(seed), 3)
    for path, key in zip(VOCABULARY_AXIS, keys, strict=False):
        if path in params:
            params[path] = resize_vocabulary(params[path], VOCABULARY_AXIS[path], len(tokenizer), key, config)
    params |= _new(config, absent(config, params), keys[2], dtype)
    return with_tokens(config, tokenizer), params, tokenizer


def resize_vocabulary(table: np.ndarray, axis: int, rows: int, key: jax.Array, config: EarthMindConfig) -> np.ndarray:
    """``table`` with ``rows`` entries along ``axis``: surplus ones are cut off, missing ones drawn.

    New ones are normal with mean 0 and standard deviation ``lm.embed_init`` (0.02), as the release of transformers that
    the published training used does it (4.42); later releases draw around the mean of the old rows instead.
    """
    held = table.shape[axis]
    if rows <= held:
        return np.take(table, np.arange(rows), axis) if rows < held else table
    shape = (*table.shape[:axis], rows - held, *table.shape[axis + 1 :])
    new = config.lm.embed_init * np.asarray(jax.random.normal(key, shape))
    return np.concatenate([table, new.astype(table.dtype)], axis)


def _new(config: EarthMindConfig, paths: list[str], key: jax.Array, dtype: Any) -> Params:
    """Initial values of the parameters at ``paths``; the others are never computed."""
    made = jax.jit(lambda key: earthmind.init(config, key, paths))(key)
    values = {path: np.asarray(value) for path, value in made.items()}
    return {path: value if dtype is None else value.astype(dtype) for path, value in values.items()}
