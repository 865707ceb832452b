"""The published losses, each without its weight, all float32.

Language: next-token cross entropy. Masks: binary cross entropy and dice, everywhere or at the points that
:mod:`earthmind_jax.ops.point_rend` draws. Auxiliary: the match of ``[SEG]`` attention with the mask, and of the two
sensors' tokens.
Axis letters: B batch, T positions, V vocabulary, M masks, H W mask rows and columns, n points.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from earthmind_jax.ops import resize


def token_cross_entropy(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "B T"],
    weights: Shaped[Array, "B T"],
    *,
    chunk: int,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum of -log p(target) times ``weights`` (a mask or numbers), and their sum: :func:`sample_cross_entropy` of the
    whole batch."""
    totals, counts = sample_cross_entropy(hidden, head, targets, weights, chunk=chunk)
    return jnp.sum(totals), jnp.sum(counts)


def sample_cross_entropy(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "B T"],
    weights: Shaped[Array, "B T"],
    *,
    chunk: int,
) -> tuple[Float[Array, " B"], Shaped[Array, " B"]]:
    """For each sample the sum of -log p(target) times ``weights`` (a mask or numbers), and their sum; ``targets`` of
    weight 0 are free.

    ``hidden[b, t]`` predicts ``targets[b, t]`` (shift before the call). Logits exist for about ``chunk`` tokens at a
    time: ``chunk // B`` positions of every sample (at least one), so that samples stay on their device; the backward
    pass computes those of several chunks again. They are the product in ``hidden.dtype``, accumulated in float32; a
    float32 ``head`` also accumulates its gradient in float32.
    """
    if chunk < 1:
        raise ValueError(f"Cross entropy needs chunks of at least one token, not {chunk}.")
    batch, length, _ = hidden.shape
    step = min(max(1, chunk // batch), max(1, length))
    count = -(-length // step)

    def chunks(x: Array) -> Array:
        x = jnp.pad(x, [(0, 0), (0, count * step - length)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(batch, count, step, *x.shape[2:]), 1, 0)

    def one(hidden: Array, targets: Array, weights: Array, head: Array) -> Array:
        logits = jnp.einsum("BTD,DV->BTV", hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)
        # A comparison rather than a gather: it needs no exchange where the vocabulary is split over devices.
        chosen = jnp.arange(head.shape[1])[None, None] == targets[..., None]
        picked = jnp.sum(jnp.where(chosen, logits, 0.0), axis=-1)
        each = weights * (jax.nn.logsumexp(logits, axis=-1) - picked)
        return jnp.sum(jnp.where(weights > 0, each, 0.0), axis=-1)

    if count == 1:
        return one(hidden, targets, weights, head), jnp.sum(weights, axis=-1)
    again = jax.checkpoint(one)

    def body(totals: Array, xs: tuple[Array, Array, Array]) -> tuple[Array, None]:
        return totals + again(*xs, head), None

    totals, _ = jax.lax.scan(body, jnp.zeros(batch), (chunks(hidden), chunks(targets), chunks(weights)))
    return totals, jnp.sum(weights, axis=-1)


def answer_weights(mask: Bool[Array, "B T"], power: float) -> Float[Array, "B T"]:
    """Weight of each supervised token, ``length ** -power`` of the answer (run of ``mask``) it belongs to; 0 elsewhere.

    0 lets every token count alike, 1 every answer ("yes" as much as a caption), 0.5 is the square averaging of
    InternVL2.5 (Chen et al. 2024, section 3.3).
    """
    starts = mask & ~jnp.pad(mask, ((0, 0), (1, 0)))[:, :-1]
    answer = jnp.where(mask, jnp.cumsum(starts, axis=1), 0)  # from 1; 0 is everything that is not an answer
    rows = jnp.arange(mask.shape[0])[:, None]
    lengths = jnp.zeros((mask.shape[0], mask.shape[1] + 1)).at[rows, answer].add(1.0)
    return jnp.where(mask, jnp.take_along_axis(lengths, answer, axis=1) ** -power, 0.0)


def mask_bce(
    logits: Float[Array, "*masks n"],
    targets: Float[Array, "*masks n"],
    valid: Bool[Array, "*masks"] | None = None,
    *,
    eps: float = 1e-4,
) -> Float[Array, ""]:
    """Binary cross entropy summed over the points of valid masks, divided by their number + ``eps``.

    Targets lie in 0..1 and may be soft. No valid mask at all gives 0. Source: ``loss_mask`` of EarthMind (mmdet
    ``CrossEntropyLoss(use_sigmoid=True)`` with ``avg_factor`` = points + 1e-4); ``eps=0`` is the plain mean.
    """
    logits, targets = logits.astype(jnp.float32), targets.astype(jnp.float32)
    each = jnp.maximum(logits, 0) - logits * targets + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    return _mean(jnp.sum(each, axis=-1), valid, logits.shape[-1], eps)


def mask_dice(
    logits: Float[Array, "*masks n"],
    targets: Float[Array, "*masks n"],
    valid: Bool[Array, "*masks"] | None = None,
    *,
    smooth: float = 1.0,
    eps: float = 1e-4,
    squared: bool = False,
) -> Float[Array, ""]:
    """1 - (2 sum(p t) + smooth) / (sum(p) + sum(t) + smooth), p = sigmoid(logits), averaged over valid masks + ``eps``.

    Source: ``loss_dice`` of EarthMind (mmdet ``DiceLoss(naive_dice=True)``, ``avg_factor`` = masks + 1e-4).
    ``squared`` is its other form (V-Net): 1 - 2 sum(p t) / (sum(p^2) + sum(t^2) + 2 smooth).
    """
    share, targets = jax.nn.sigmoid(logits.astype(jnp.float32)), targets.astype(jnp.float32)
    overlap = 2 * jnp.sum(share * targets, axis=-1)
    if squared:
        extent = jnp.sum(jnp.square(share), axis=-1) + jnp.sum(jnp.square(targets), axis=-1) + 2 * smooth
    else:
        overlap += smooth
        extent = jnp.sum(share, axis=-1) + jnp.sum(targets, axis=-1) + smooth
    return _mean(1 - overlap / extent, valid, 1, eps)


def mask_contrast(
    logits: Float[Array, "B M n"], targets: Float[Array, "B M n"], valid: Bool[Array, "B M"] | None = None
) -> Float[Array, ""]:
    """Cross entropy of each pixel's choice among the masks of its image, averaged over pixels that lie in one of them.

    The choice is a softmax of the M logits; a pixel in several masks is shared evenly. Independent binary losses have a
    saddle at "the same mask whatever is asked for", where training from scratch lingers; here it earns nothing.
    Ours, after the pixel-to-text contrast of LSeg (Li et al. 2022, eq. 1) with an image's own phrases as the classes.
    """
    keep = jnp.ones(logits.shape[:2], bool) if valid is None else valid
    targets = jnp.where(keep[..., None], targets.astype(jnp.float32), 0)
    total = targets.sum(1, keepdims=True)
    share = targets / jnp.maximum(total, 1e-6)
    chances = jax.nn.log_softmax(jnp.where(keep[..., None], logits.astype(jnp.float32), -1e9), axis=1)
    each = -jnp.sum(jnp.where(share > 0, share * chances, 0), axis=1)
    inside = total[:, 0] > 0.5
    return jnp.sum(each * inside) / jnp.maximum(jnp.sum(inside), 1)


def _mean(each: Array, valid: Array | None, elements: int, eps: float) -> Array:
    """Sum over the valid entries / (their number x ``elements`` + eps)."""
    valid = jnp.ones(each.shape, bool) if valid is None else valid
    number = jnp.sum(valid, dtype=jnp.float32) * elements
    # The published code adds float32's epsilon as well; without eps, it also makes an empty sum 0 instead of NaN.
    return jnp.sum(jnp.where(valid, each, 0.0)) / (number + eps + jnp.finfo(jnp.float32).eps)


def patch_grid(tokens: int, smallest: int = 8, largest: int = 64) -> tuple[int, int] | None:
    """Rows and columns (h <= w) of the squarest grid of ``tokens`` cells with ``smallest`` <= h < ``largest``.

    ``None`` where there is none. Source: ``infer_patch_size`` of EarthMind. For several tiles this is not the order of
    the tokens, as in the published loss; for one tile it is.
    """
    for rows in range(min(int(tokens**0.5), largest - 1), smallest - 1, -1):
        if tokens % rows == 0:
            return rows, tokens // rows
    return None


def region_word(
    tokens: Float[Array, "B N D"],
    valid: Bool[Array, "B N"],
    words: Float[Array, "B M D"],
    named: Bool[Array, "B M"],
    cover: Float[Array, "B M N"],
    *,
    scale: float = 10.0,
    shift: float = -3.0,
) -> Float[Array, ""]:
    """Binary cross entropy of "this visual token shows what this phrase names", for the phrases of the whole batch.

    The logit is ``scale * cosine + shift``; the target is the share of the token that the phrase's mask covers. Words
    of another sample count as well: where a sample has the very same phrase its mask holds, and otherwise the phrase
    is taken as absent there, which is right as far as each sample names what it shows. Pairs are averaged so that what
    is there weighs as much as what is not. Ours, after the region-word alignment of GLIP (Li et al. 2022, eq. 3).
    """

    def unit(x: Array) -> Array:
        x = x.astype(jnp.float32)
        return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-9)

    phrases, asked = unit(words).reshape(-1, words.shape[-1]), named.reshape(-1)
    logits = scale * jnp.einsum("bnd,jd->bnj", unit(tokens), phrases) + shift
    # Phrases are the same when their directions are; one sample may name a thing twice.
    same = jnp.einsum("bmd,jd->bmj", unit(words), phrases) > 1 - 1e-4
    covers = jnp.where(named[..., None], cover.astype(jnp.float32), 0)
    target = jnp.max(jnp.where(same[..., None], covers[:, :, None], 0), axis=1).swapaxes(1, 2)  # [B N J]
    each = jnp.maximum(logits, 0) - logits * target + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    keep = (valid[..., None] & asked).astype(jnp.float32)
    there, absent = keep * target, keep * (1 - target)
    return 0.5 * sum(jnp.sum(each * share) / jnp.maximum(jnp.sum(share), 1) for share in (there, absent))


def attention_target(masks: Shaped[Array, "*masks H W"], grid: tuple[int, int]) -> Float[Array, "*masks N"]:
    """Each mask's share on the cells of the token grid: (max over the cell > 0) / (their number + 1e-6)."""
    cells = resize.adaptive_max((masks > 0)[..., None], grid)
    cells = cells.reshape(*masks.shape[:-2], grid[0] * grid[1]).astype(jnp.float32)
    return cells / (jnp.sum(cells, axis=-1, keepdims=True) + 1e-9)


def attention_kl(
    attention: Float[Array, "*masks N"], target: Float[Array, "*masks N"], valid: Bool[Array, "*masks"] | None = None
) -> Float[Array, ""]:
    """KL(target || attention + 1e-6) of each ``[SEG]``, averaged over the valid masks.

    ``attention`` is the head mean of the last layer from ``[SEG]`` to the image tokens, not renormalised over them;
    ``target`` comes from :func:`attention_target`. Source: ``loss_attn`` of EarthMind, whose weight is 0.1.
    """
    attention, target = attention.astype(jnp.float32), target.astype(jnp.float32)
    log_target = jnp.log(jnp.where(target > 0, target, 1.0))
    each = jnp.sum(target * (log_target - jnp.log(attention + 1e-6)), axis=-1)
    return _mean(each, valid, 1, 0.0)


def tile_cover(masks: Shaped[Array, "B M H W"], places: Int[Array, "B I 4"], side: int) -> Bool[Array, "B M I N"]:
    """Whether any of a mask of the whole image lies in a token's cell: N = side * side cells of each tile.

    ``places`` holds (row, column, rows, columns) of each tile: the cell of the grid that it shows, and the size of that
    grid; (0, 0, 1, 1) is the whole image and rows = 0 no tile. Cells touch as in adaptive max pooling, so for one tile
    this is the cover of :func:`attention_target`.
    """
    height, width = masks.shape[-2:]
    sums = jnp.cumsum(jnp.cumsum(masks > 0, axis=-2, dtype=jnp.int32), axis=-1, dtype=jnp.int32)
    sums = jnp.moveaxis(jnp.pad(sums, ((0, 0), (0, 0), (1, 0), (1, 0))), 1, -1)  # [B H+1 W+1 M]
    row, column, rows, columns = jnp.moveaxis(places, -1, 0)
    sample = jnp.arange(len(masks))[:, None, None, None]

    def edges(first: Array, count: Array, pixels: int) -> tuple[Array, Array]:
        cell = first[..., None] * side + jnp.arange(side)
        total = jnp.maximum(count, 1)[..., None] * side
        return cell * pixels // total, -(-(cell + 1) * pixels // total)

    (top, bottom), (left, right) = edges(row, rows, height), edges(column, columns, width)

    def at(y: Array, x: Array) -> Array:
        return sums[sample, y[..., None], x[..., None, :]]  # [B I side side M]

    inside = at(bottom, right) - at(top, right) - at(bottom, left) + at(top, left)
    cover = (inside > 0) & (rows > 0)[..., None, None, None]
    return jnp.moveaxis(cover, -1, 1).reshape(*masks.shape[:2], places.shape[1], side * side)


def sensor_mse(
    optical: Float[Array, "*tokens D"], sar: Float[Array, "*tokens D"], valid: Bool[Array, "*tokens"] | None = None
) -> Float[Array, ""]:
    """Mean squared difference of paired tokens, over the valid ones (``cos_loss`` of the June 2025 release)."""
    difference = optical.astype(jnp.float32) - sar.astype(jnp.float32)
    return _mean(jnp.sum(jnp.square(difference), axis=-1), valid, optical.shape[-1], 0.0)
