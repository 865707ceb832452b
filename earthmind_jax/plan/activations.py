"""Bytes of activations on one device, estimated as an accelerator would hold them.

What the forward pass keeps for the backward pass, by the rematerialisation chosen; the largest working set of any one
layer; and the weights brought together for it. An estimate: XLA's buffers for a GPU or TPU depend on its fusions, and
those that it reports for a CPU (:mod:`earthmind_jax.plan.compile`) are larger, since a CPU fuses less.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from earthmind_jax.config import RunConfig
from earthmind_jax.ops.attention import BLOCK_SCORES, DENSE_LIMIT
from earthmind_jax.plan.ledger import Ledger

FLOAT = 4  # bytes: norms, scores, logits


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes on one device.

    Attributes:
      saved: kept from the forward to the backward pass.
      working: the largest set of values that live at once within one layer.
      gathered: weights of the layer at work and of the next one, whole, and the vocabulary's head with its gradient.
    """

    saved: float
    working: float
    gathered: float

    @property
    def total(self) -> float:
        return self.saved + self.working + self.gathered


def estimate(config: RunConfig, sizes: tuple[int, int, int], tiles: int, ledger: Ledger) -> Activations:
    """For a mesh of ``sizes`` (data, fsdp, tensor) and ``tiles`` tiles a sample; ``ledger`` knows what learns."""
    data, fsdp, tensor = sizes
    batch = config.data.batch_size / (data * fsdp) / config.optim.accumulate
    parts = (_vision, _fusion, _language, _masks)
    found = [part(config, ledger, batch, tiles, tensor) for part in parts]
    return Activations(
        saved=sum(saved for saved, _ in found),
        working=max(working for _, working in found),
        gathered=_gathered(config, fsdp, tensor, ledger),
    )


def _compute(config: RunConfig) -> int:
    return jnp.dtype(config.model.precision.compute).itemsize


def _kept(remat: str, inputs: float, products: float, everything: float) -> float:
    """Of one layer: its input, also the outputs of its weights, or all values."""
    return {"full": inputs, "dots": inputs + products, "none": everything}[remat]


def _scores(ledger: Ledger, batch: float, heads: float, queries: int, keys: int, whole: int) -> float:
    """Bytes of attention scores and weights; blocks where ``whole``, the number over the whole batch, is too large."""
    number = batch * heads * queries * keys
    return 0.0 if ledger.flash else 2 * FLOAT * (number if whole <= DENSE_LIMIT else min(number, BLOCK_SCORES))


def _vision(config: RunConfig, ledger: Ledger, batch: float, tiles: int, tensor: int) -> tuple[float, float]:
    v, size, learns = config.model.vision, _compute(config), ledger.learns("vision/")
    images, length = 2 * batch * tiles, 1 + v.patches**2
    rows = images * length
    whole = 2 * config.data.batch_size * tiles * v.heads * length**2
    scores = _scores(ledger, images, v.heads / tensor, length, length, whole)
    products = rows * size * ((4 * v.width + v.mlp) / tensor + 2 * v.width)
    everything = products + rows * (5 * v.width * size + v.mlp / tensor * size) + scores
    saved = v.depth * _kept(v.remat, rows * v.width * size, products, everything) if learns else 0.0
    return saved, everything * (2 if learns else 1)


def _fusion(config: RunConfig, ledger: Ledger, batch: float, tiles: int, tensor: int) -> tuple[float, float]:
    """Both sensors' tokens: out of the projector's two layers, normalised, mapped and mixed."""
    model, size = config.model, _compute(config)
    rows = 2 * batch * tiles * model.vision.tokens
    shuffled = model.vision.width * model.vision.downsample**2
    values = rows * (shuffled * size + model.lm.width * (3 * size + 2 * FLOAT))
    tokens = min(model.vision.tokens * (tiles if model.fusion.across_tiles else 1), model.fusion.block)
    scores = 2 * FLOAT * batch * tiles * tokens * max(tokens, min(config.data.text_length, model.fusion.block))
    learns = ledger.learns("vision/", "projector/", "fusion/")
    return values if learns else 0.0, values + scores


def _language(config: RunConfig, ledger: Ledger, batch: float, tiles: int, tensor: int) -> tuple[float, float]:
    lm, size, text = config.model.lm, _compute(config), config.data.text_length
    if not (config.loss.text or config.loss.seg):
        return 0.0, 0.0
    rows, heads = batch * text, lm.heads * lm.head_dim
    scores = _scores(ledger, batch, lm.heads / tensor, text, text, config.data.batch_size * lm.heads * text**2)
    narrow = 7 * lm.lora.rank if lm.lora else 0
    keys = 2 * lm.kv_heads * lm.head_dim
    products = rows * size * ((heads + keys + 2 * lm.mlp) / tensor + 2 * lm.width + narrow)
    everything = products + rows * size * (5 * lm.width + (heads + 2 * lm.mlp) / tensor) + scores
    saved = lm.depth * _kept(lm.remat, rows * lm.width * size, products, everything)
    chunk = min(config.loss.vocab_chunk, rows)
    logits = 3 * FLOAT * max(chunk, 1) * lm.vocab / tensor if config.loss.text else 0.0
    learns = ledger.learns("vision/", "projector/", "fusion/", "lm/")
    return saved + 3 * rows * lm.width * size if learns else 0.0, max(everything * (2 if learns else 1), logits)


def _masks(config: RunConfig, ledger: Ledger, batch: float, tiles: int, tensor: int) -> tuple[float, float]:
    g, size = config.model.grounding, _compute(config)
    if g is None:
        return 0.0, 0.0
    images = batch * (2 if config.model.fusion.grounding == "fused" else 1)
    kinds = (config.loss.text > 0 or config.loss.seg > 0) + (config.loss.phrase > 0)
    marks = (config.loss.marks or config.data.masks_per_sample) * (config.loss.mark > 0)
    objects, cells = batch * (config.data.masks_per_sample * kinds + marks), (g.image_size // 16) ** 2
    block = [(g.image_size // 4 // 2**i) ** 2 * width * size for i, width in enumerate(g.stage_widths)]
    # Of a trunk block: input, two normed copies, queries, keys, values, output, and the hidden layer twice.
    each = [values * (8 + 2 * g.mlp_ratio) for values in block]
    trunk = sum(depth * values for depth, values in zip(g.stages, each, strict=True)) * images
    pyramid = images * cells * (g.width + 16 * g.width / 8 + 4 * g.width / 4) * size * 2
    # Of a two-way block: the image, with its positions, projected for either side, attended, added, normed.
    decoder = objects * cells * g.width * (g.decoder_depth * 7 + 2) * size
    # Four values of each pixel at stride 8, three at stride 4, and the logits with their gradient.
    upscaled = objects * cells * (4 * 4 * g.width / 4 + 16 * 3 * g.width / 8) * size + objects * cells * 16 * FLOAT * 2
    learns = ledger.learns("vision/", "projector/", "fusion/", "lm/", "text_hidden_fcs", "grounding/decoder", "pyramid")
    saved = (decoder + upscaled + pyramid if learns else 0.0) + (trunk if ledger.learns("grounding/trunk") else 0.0)
    return saved, images * max(each) + (0.0 if learns else decoder)


def _gathered(config: RunConfig, fsdp: int, tensor: int, ledger: Ledger) -> float:
    """Weights are brought together layer by layer; the head stays, in the compute dtype, for all chunks of its loss."""
    lm, size = config.model.lm, _compute(config)
    head = lm.vocab * lm.width / tensor if config.loss.text else 0.0
    learns = ledger.learns("lm/head") or (lm.tie and ledger.learns("lm/embed"))
    wide = size != jnp.dtype(config.model.precision.param).itemsize and learns
    if fsdp == 1:
        return head * size if wide else 0.0
    layer = lm.width * (2 * (lm.heads + lm.kv_heads) * lm.head_dim + 3 * lm.mlp) / tensor
    return head * (size + (FLOAT if learns else 0)) + 2 * layer * size
