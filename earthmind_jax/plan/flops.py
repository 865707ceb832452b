"""Operations of one training step, component by component, by formula.

Matrix products and convolutions only (norms, softmaxes, losses and the update of AdamW are below a percent at published
sizes), counted by :mod:`earthmind_jax.plan.ledger`; with R rows through a layer of W weights a forward pass is 2 R W,
with T queries and S keys of width D attention is 4 T S D.

=============== ====================================================================================================
vision          InternViT: 2 R W with R = tiles x (1 + P), and 4 (1 + P)^2 D a tile and layer
projector       2 R W, R = tiles x N
fusion          hca family: 4 N (N + L) D a tile and pair, and the sensors' maps 2 R W; releases: see the code
language model  2 R W with R = B T, LoRA factors included, and 4 T^2 D a layer
head            2 R W, R = B T
SAM2            trunk (windows padded), neck and sensor maps; frozen, it runs forwards alone
mask decoder    prompts, two-way transformer, upscaling, classifiers
=============== ====================================================================================================

``again`` is what rematerialisation repeats: a rematerialised block all but its last product, the vocabulary head its
logits, fusion its scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from earthmind_jax.config import RunConfig
from earthmind_jax.plan import flops_masks
from earthmind_jax.plan.ledger import Entry, Ledger
from earthmind_jax.train.muon import COEFFICIENTS, PADDED, matrix


@dataclass(frozen=True)
class Flops:
    """Operations of one step over the whole batch."""

    entries: tuple[Entry, ...]

    @property
    def model(self) -> float:
        """Forwards and backwards, without recomputation: what MFU is measured by."""
        return sum(e.forward + e.backward for e in self.entries)

    @property
    def executed(self) -> float:
        """All that runs."""
        return self.model + sum(e.again for e in self.entries)

    def by_component(self) -> dict[str, Entry]:
        """Sums in the order of the forward pass."""
        sums: dict[str, Entry] = {}
        for e in self.entries:
            s = sums.get(e.component, Entry(e.component, 0.0, 0.0))
            total = (s.forward + e.forward, s.backward + e.backward, s.again + e.again)
            sums[e.component] = Entry(e.component, *total)
        return sums


def step_flops(config: RunConfig, tiles: int, *, flash: bool = False, shards: int = 1) -> Flops:
    """Of one step with ``tiles`` tiles a sample, both sensors.

    ``flash`` as in :class:`Ledger`; ``shards``: devices that the batch is split over.
    """
    ledger = Ledger(config, flash)
    _vision(ledger, config, tiles)
    _fusion(ledger, config, tiles)
    speaks = config.loss.text > 0 or config.loss.seg > 0
    if speaks:
        _language(ledger, config)
    if config.loss.text:
        _head(ledger, config, shards)
    if config.model.grounding is not None and (speaks or config.loss.phrase or config.loss.mark):
        flops_masks.count(ledger, config, speaks)
        if config.loss.region_word and config.loss.phrase:
            _region_word(ledger, config)
    if config.optim.method == "muon":
        _muon(ledger, config)
    return Flops(tuple(ledger.entries))


def _vision(ledger: Ledger, config: RunConfig, tiles: int) -> None:
    v, active = config.model.vision, ledger.learns("vision/")
    images, length = 2 * config.data.batch_size * tiles, 1 + config.model.vision.patches**2
    full = v.remat == "full"
    ledger.layers("vision", ["vision/patch_embedding"], images * v.patches**2, active=False)
    blocks = ledger.below("vision/blocks/")
    last = "" if ledger.learns("vision/blocks/ls2") else "vision/blocks/mlp/fc2"  # whose gradient asks for its output
    ledger.layers("vision", blocks, images * length, active=active, again=full, last=last)
    ledger.attention(
        "vision", images, length, length, v.width, v.heads, active=active, layers=v.depth, again=v.remat != "none"
    )
    rows = images * v.tokens
    ledger.layers("projector", ["projector/fc1"], rows, active=active or ledger.learns("projector/norm"))
    ledger.layers(
        "projector", ["projector/fc2"], rows, active=active or ledger.learns("projector/norm", "projector/fc1")
    )


def _fusion(ledger: Ledger, config: RunConfig, tiles: int) -> None:
    f, width, text = config.model.fusion, config.model.lm.width, config.data.text_length
    groups, tokens = config.data.batch_size * tiles, config.model.vision.tokens
    if f.across_tiles:
        groups, tokens = config.data.batch_size, tiles * tokens
    seen, read = ledger.learns("vision/", "projector/"), ledger.learns("lm/embed")
    rows = config.data.batch_size * tiles * config.model.vision.tokens

    def scores(queries: int, keys: int, actives: int, reads: int) -> None:
        """Scores [T S], and ``reads`` more products of them with vectors; all of it rematerialised."""
        forward = 2.0 * groups * queries * keys * width
        passes = 2 if max(queries, keys) > f.block else 1  # the blockwise form first streams the normaliser
        small = 2.0 * groups * queries * keys * reads
        again = passes * forward if actives else 0.0
        ledger.add("fusion", passes * forward + small, actives * (passes * forward + small), again)

    family = f.mode.startswith("hca")
    if family:
        for _ in range(2):
            scores(tokens, tokens, 2 * seen, 1)
            scores(text, tokens, seen + read, 0 if f.mode == "hca_printed" else 1)
    elif f.mode == "release_2025_10":
        for _ in range(2):
            scores(tokens, tokens, 2 * seen, 0)
            scores(text, tokens, seen + read, 0)
    elif f.mode == "release_2025_06":
        ledger.add("fusion", 2.0 * rows * width, 2.0 * rows * width * ledger.learns("fusion/"))
    for path in ledger.shapes:
        name = path.removeprefix("fusion/")
        if name != path and name.startswith(("map_", "quality_")) and not name.endswith("_bias"):
            inner = name.endswith("_out") and ledger.learns(path.replace("_out", "_in"))
            ledger.weight("fusion", path, rows, active=seen or inner)


def _language(ledger: Ledger, config: RunConfig) -> None:
    lm, data = config.model.lm, config.data
    active = ledger.learns("vision/", "projector/", "fusion/", "lm/embed", "lm/blocks/")
    blocks = ledger.below("lm/blocks/")
    full, heads = lm.remat == "full", lm.heads * lm.head_dim
    rows = data.batch_size * data.text_length
    ledger.layers("language model", blocks, rows, active=active, again=full, last="lm/blocks/mlp/down")
    ledger.attention(
        "language model", data.batch_size, data.text_length, data.text_length, heads, lm.heads, active=active,
        layers=lm.depth, again=lm.remat != "none",
    )  # fmt: skip


def _head(ledger: Ledger, config: RunConfig, shards: int) -> None:
    lm, data = config.model.lm, config.data
    together = data.batch_size // config.optim.accumulate
    step = min(max(1, config.loss.vocab_chunk * shards // together), data.text_length)
    chunks = -(-data.text_length // step)
    rows = data.batch_size * step * chunks
    path = "lm/embed/embedding" if lm.tie else "lm/head/kernel"
    active = ledger.learns("vision/", "projector/", "fusion/", "lm/embed", "lm/blocks/", "lm/norm")
    forward, adapted = 2.0 * rows * lm.width * lm.vocab, "lora/lm/head/a" in ledger.shapes
    learns = path in ledger.trainable or (adapted and ledger.learns("lm/head"))
    again = forward if (learns or active) and chunks > 1 else 0.0
    ledger.add("head", forward, forward * (learns + active), again)
    if adapted and not lm.tie:  # the factors are multiplied out once
        merge = 2.0 * lm.width * lm.lora.rank * lm.vocab
        ledger.add("head", merge, 2 * merge * ledger.learns("lora/lm/head"))


def _region_word(ledger: Ledger, config: RunConfig) -> None:
    data, model = config.data, config.model
    phrases, tokens = data.batch_size * data.masks_per_sample, model.vision.tokens * model.fusion.sensors_out
    products = 2.0 * phrases * model.lm.width * data.batch_size * (tokens + data.masks_per_sample)
    actives = ledger.learns("vision/", "projector/", "fusion/") + ledger.learns("lm/embed")
    ledger.add("losses", products, products * actives)


def _muon(ledger: Ledger, config: RunConfig) -> None:
    """Newton-Schulz: with rows <= columns, each iteration has two products of 2 r^2 c and one of 2 r^3."""
    from earthmind_jax.models import api

    total = 0.0
    for path, axes in api.param_axes(config.model).items():
        kind = matrix(path, axes) if path in ledger.trainable else None
        if kind is not None:
            shape, taken = ledger.shapes[path], kind.stacked + kind.inputs
            count, sides = (
                math.prod(shape[: kind.stacked]),
                (math.prod(shape[kind.stacked : taken]), math.prod(shape[taken:])),
            )
            rows, columns = sorted(-(-side // PADDED) * PADDED for side in sides)
            total += count * len(COEFFICIENTS) * (4.0 * rows**2 * columns + 2.0 * rows**3)
    ledger.add("optimiser", total)
