"""Moving rows between token sequences."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


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


def phrase_mean(
    embeds: Float[Array, "B T D"], tokens: Int[Array, "B T"], positions: Int[Array, "B M"], start: int, end: int
) -> tuple[Float[Array, "B M D"], Bool[Array, "B M"]]:
    """Mean embedding of the phrase that each position closes: the tokens between the last ``start`` and ``end`` there.

    In the published grounded-caption form, ``<p> phrase </p> [SEG]``, that is the name of what ``[SEG]`` points at. The
    second output is False where there is no such phrase.
    """
    place = jnp.arange(tokens.shape[1])
    before = place < positions[..., None]  # [B M T]

    def last(token: int) -> Int[Array, "B M"]:
        return jnp.max(jnp.where(before & (tokens == token)[:, None], place, -1), axis=-1)

    first, behind = last(start), last(end)
    inside = (place > first[..., None]) & (place < behind[..., None])
    found = (first >= 0) & inside.any(-1)
    weight = inside / jnp.maximum(inside.sum(-1, keepdims=True), 1)
    return jnp.einsum("bmt,btd->bmd", weight.astype(embeds.dtype), embeds), found
