"""Moving rows between token sequences."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def place_visual(
    text: Float[Array, "B T D"], visual: Float[Array, "B R D"], index: Int[Array, "B T"]
) -> Float[Array, "B T D"]:
    """Row ``index`` of the sample's visual sequence where ``index >= 0``, else the text embedding, in its dtype.

    Region prompts are repeats of an index. An index beyond the visual sequence gives NaN rows: a layout that does not
    match the image must not pass for an answer.
    """
    rows = gather_rows(visual, jnp.maximum(index, 0)).astype(text.dtype)
    return jnp.where(index[..., None] >= 0, rows, text)


def gather_rows(hidden: Float[Array, "B T D"], positions: Int[Array, "B M"]) -> Float[Array, "B M D"]:
    """Rows of each sample at ``positions`` (e.g. of its ``[SEG]`` tokens); NaN where a position is beyond T."""
    return jnp.take_along_axis(hidden, positions[..., None], axis=1, mode="fill")
