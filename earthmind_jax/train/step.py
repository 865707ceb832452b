"""One optimiser step: forward, the published losses, gradients of the trainables, update."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from earthmind_jax.config import RunConfig
from earthmind_jax.distributed.sharding import batch_sharding, batch_shards, put_batch, replicated, step_rules
from earthmind_jax.models import api, earthmind
from earthmind_jax.ops import losses, point_rend, resize
from earthmind_jax.train.by_source import PREFIX, SAMPLES, of_masks, of_samples
from earthmind_jax.train.marks import pointing
from earthmind_jax.train.state import TrainState, make_optimiser, state_shardings
from earthmind_jax.types import Batch, Fused, Params

Metrics = dict[str, jax.Array]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def loss_terms(config: RunConfig, params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
    """Weighted sum of the losses and each term, float32 scalars.

    Terms (EarthMind configs/earthmind_4b_sft.py): ``text`` next-token cross-entropy over supervised tokens, ``bce`` and
    ``dice`` on points sampled where the mask is uncertain, ``sensor_mse`` the June 2025 pull between the sensors'
    tokens of pairs, ``attention`` the match of what ``[SEG]`` looks at with its mask in samples of one sensor;
    ``phrase``, ``contrast``, ``align`` and ``region_word`` are ours; ``mark`` is how SAM2 learns to be pointed. Of a
    mixture, ``text``, ``bce`` and ``dice`` also come by source (:mod:`earthmind_jax.train.by_source`).
    """
    weights = config.loss
    drop, points = jax.random.split(key)
    speaks = weights.text > 0 or weights.seg > 0
    wanted = {"phrases": weights.phrase > 0, "speaks": speaks, "attention": weights.attention > 0}
    marked = pointing(jax.random.fold_in(key, 1), batch, config) if weights.mark else None
    marks = None if marked is None else marked.prompts
    out = earthmind.forward(config.model, params, batch, dropout=drop, marks=marks, **wanted)
    loss, metrics = jnp.zeros(()), {}
    sources = count_sources(config, batch)
    if weights.text and out.hidden is not None:
        head = earthmind.head_kernel(config.model, params)
        targets = jnp.roll(batch.tokens, -1, axis=1)
        wanted = jnp.roll(batch.loss_mask, -1, axis=1).at[:, -1].set(False)
        shares = losses.answer_weights(wanted, weights.answer_power) if weights.answer_power else wanted
        chunk = weights.vocab_chunk * batch_shards()
        totals, counts = losses.sample_cross_entropy(out.hidden, head, targets, shares, chunk=chunk)
        total, count = totals.sum(), counts.sum()
        metrics["text"] = total / jnp.where(count > 0, count, 1)
        if sources:
            metrics[f"{PREFIX}text"] = of_samples(batch, sources, totals, counts)
        loss = weights.text * metrics["text"]
    if batch.masks is not None and batch.mask_valid is not None:
        lead, known = batch.mask_valid.shape[:-1], batch.mask_valid
        named = out.phrase_valid if out.phrase_valid is None or known.ndim == 2 else out.phrase_valid[:, None]
        kinds = [
            ("", weights.seg, out.masks, known, batch.masks),
            ("phrase_", weights.phrase, out.phrase_masks, None if named is None else known & named, batch.masks),
        ]
        if marked is not None:
            whose = jnp.take_along_axis(known.reshape(len(marked.of), -1), marked.of, axis=1)
            meant = (whose & marked.targets.any((-2, -1)), marked.targets)
            kinds.append(("mark_", weights.mark, out.marked, *(x.reshape(*lead, *x.shape[1:]) for x in meant)))
        for name, weight, masks, keep, targets in kinds:
            if weight and masks is not None:
                terms, each = mask_losses(config, points, masks.logits, targets, keep)
                scale = {"bce": weights.mask_bce, "dice": weights.mask_dice, "contrast": weights.mask_contrast}
                loss = loss + weight * sum((scale[term] * value for term, value in terms.items()), start=jnp.zeros(()))
                metrics |= {f"{name}{term}": value for term, value in terms.items()}
                if sources:
                    flat = keep.reshape(-1)
                    metrics |= {f"{PREFIX}{name}{t}": of_masks(batch, sources, f, flat) for t, f in each.items()}
    if weights.align and out.prompts is not None and batch.mask_valid is not None:
        seg, words = out.prompts
        known = batch.mask_valid if batch.mask_valid.ndim == 2 else batch.mask_valid.any(1)
        keep = (known & out.phrase_valid)[..., None]
        square = jnp.square(seg - jax.lax.stop_gradient(words)).astype(jnp.float32)
        metrics["align"] = jnp.where(keep, square, 0).sum() / jnp.maximum(keep.sum() * seg.shape[-1], 1)
        loss = loss + weights.align * metrics["align"]
    if weights.region_word and out.words is not None and out.fused is not None and batch.masks is not None:
        masks, known = last_date(batch)
        named = known & out.phrase_valid
        metrics["region_word"] = region_word_loss(config, out.fused, out.words, named, masks)
        loss = loss + weights.region_word * metrics["region_word"]
    if weights.sensor_mse and out.sensor_tokens is not None:
        metrics["sensor_mse"] = losses.sensor_mse(*out.sensor_tokens, batch.optical_valid & batch.sar_valid)
        loss = loss + weights.sensor_mse * metrics["sensor_mse"]
    if weights.attention and out.attention is not None and batch.places is not None:
        metrics["attention"] = attention_loss(config, out.attention, batch)
        loss = loss + weights.attention * metrics["attention"]
    return loss, metrics | {"loss": loss}


def count_sources(config: RunConfig, batch: Batch) -> int:
    """Sources of the mixture that ``batch`` is from; 0 where it is not from one."""
    return 0 if batch.source is None else len(config.data.sources)


def attention_loss(config: RunConfig, attention: jax.Array, batch: Batch) -> jax.Array:
    """:func:`losses.attention_kl` of ``[SEG]``'s attention [B M T] on the image positions, where one sensor is there.

    The release takes the tiles of an image for one picture in the order of their tokens; here each tile is held to its
    own part of the mask, which is the same for one tile.
    """
    model = config.model
    per_place, tokens = model.fusion.sensors_out, model.vision.tokens
    masks, known = last_date(batch)
    cover = losses.tile_cover(masks, batch.places, model.vision.grid)  # [B M I N]
    row = batch.visual_index
    cell = jnp.maximum(row, 0) // (per_place * tokens) * tokens + jnp.maximum(row, 0) % tokens
    cover = jnp.take_along_axis(cover.reshape(*cover.shape[:2], -1), cell[:, None], axis=2) & (row >= 0)[:, None]
    target = cover / (cover.sum(-1, keepdims=True) + 1e-9)
    sensors = [x.any((1, 2)) for x in (batch.optical_valid, batch.sar_valid) if x is not None]
    single = sum(x.astype(jnp.int32) for x in sensors) == 1
    return losses.attention_kl(attention, target, known & single[:, None])


def last_date(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Masks [B M h w] and which are known [B M] on each sample's last date, whose tile shows the whole image last."""
    assert batch.masks is not None
    assert batch.mask_valid is not None
    if batch.masks.ndim == 4:
        return batch.masks, batch.mask_valid
    there = [x for x in (batch.ground_optical_valid, batch.ground_sar_valid) if x is not None]
    last = jnp.maximum(jnp.stack(there).any(0).sum(1) - 1, 0)
    rows = jnp.arange(len(last))
    return batch.masks[rows, last], batch.mask_valid[rows, last]


def region_word_loss(
    config: RunConfig, fused: Fused, words: jax.Array, named: jax.Array, masks: jax.Array
) -> jax.Array:
    """:func:`losses.region_word` of the tile that shows the whole image; a mode of 2N tokens is held to it twice."""
    tokens, valid = earthmind.whole_tile(fused, fused.tokens), earthmind.whole_tile(fused, fused.valid)
    per_place = config.model.fusion.sensors_out
    side = round((tokens.shape[1] // per_place) ** 0.5)
    cover = resize.adaptive_average(masks.astype(jnp.float32)[..., None], (side, side))
    cover = jnp.tile(cover.reshape(*masks.shape[:2], -1), (1, 1, per_place))
    return losses.region_word(tokens, valid, words, named, cover)


def mask_losses(
    config: RunConfig, key: jax.Array, logits: jax.Array, masks: jax.Array, valid: jax.Array
) -> tuple[Metrics, dict[str, Callable[[jax.Array], jax.Array]]]:
    """BCE and Dice of mask logits against targets [B M h w] (of stacks [B F M h w]): on sampled points, or everywhere
    where ``points`` is 0; where it has a weight, the contrast between an image's masks, everywhere. Then BCE and Dice
    as functions of which masks (of all, in a row) count."""
    weights, size, terms = config.loss, logits.shape[-2:], {}
    if weights.mask_contrast:
        flat = (-1, logits.shape[-3], math.prod(size))
        images = valid.reshape(-1, valid.shape[-1])
        terms["contrast"] = losses.mask_contrast(logits.reshape(flat), masks.reshape(flat), images)
    logits = logits.reshape(-1, *size).astype(jnp.float32)
    target = masks.reshape(-1, *size).astype(jnp.float32)
    if weights.points:
        uncertain = jax.lax.stop_gradient(logits)
        coords = point_rend.sample_points(key, uncertain, weights.points, weights.oversample, weights.importance)
        logits, target = point_rend.point_sample(logits, coords), point_rend.point_sample(target, coords)
    else:
        logits, target = logits.reshape(len(logits), -1), target.reshape(len(target), -1)
    each = {
        "bce": functools.partial(losses.mask_bce, logits, target),
        "dice": functools.partial(losses.mask_dice, logits, target),
    }
    return terms | {name: of(valid.reshape(-1)) for name, of in each.items()}, each


def gradients(config: RunConfig, state: TrainState, batch: Batch) -> tuple[Params, Metrics]:
    """Gradients of the trainables and the metrics; with ``optim.accumulate``, the means over the batch's parts.

    As published, each part's loss is a mean of its own (over its supervised tokens, its masks), and parts count alike.
    """
    key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)

    def of(batch: Batch, key: jax.Array) -> tuple[Params, Metrics]:
        def loss(trainable: Params) -> tuple[jax.Array, Metrics]:
            return loss_terms(config, api.combine(state.frozen, trainable), batch, key)

        (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(state.trainable)
        return grads, metrics

    count = config.optim.accumulate
    if count == 1:
        return of(batch, key)

    def parts(x: jax.Array) -> jax.Array:
        # Every count-th sample, so that each device cuts its own samples and none are exchanged.
        return jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1)

    def add(total: tuple[Params, Metrics], part: tuple[Batch, jax.Array]) -> tuple[tuple[Params, Metrics], None]:
        return jax.tree.map(jnp.add, total, of(*part)), None

    split = jax.tree.map(parts, batch), jax.random.split(key, count)
    shape = jax.eval_shape(of, *jax.tree.map(lambda x: x[0], split))
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape)
    return jax.tree.map(lambda x: x / count, jax.lax.scan(add, start, split)[0])


def train_step(config: RunConfig, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    """Pure update. Frozen parameters ride along untouched; donation aliases them through.

    Where the loss or a gradient is not finite the state stays as it was, step count and all.
    """
    grads, metrics = gradients(config, state, batch)
    updates, opt = make_optimiser(config).update(grads, state.opt, state.trainable)
    metrics["grad_norm"] = optax.tree.norm(grads)
    metrics["padding"] = jnp.float32(batch.padding)
    if sources := count_sources(config, batch):
        ones = jnp.ones(len(batch.tokens))
        metrics[f"{PREFIX}{SAMPLES}"] = of_samples(batch, sources, ones, ones)
    trainable = optax.apply_updates(state.trainable, updates)
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
    after, before = (state.step + 1, trainable, opt), (state.step, state.trainable, state.opt)
    step, trainable, opt = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, before)
    return state.replace(step=step, trainable=trainable, opt=opt), metrics


def compile_step(config: RunConfig, mesh: Mesh, shardings: TrainState) -> Step:
    """The jitted step with pinned input and output shardings (what pjit has become) and the state donated."""

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        with step_rules():
            return train_step(config, state, batch)

    return jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def compile_ahead(config: RunConfig, mesh: Mesh, batch: Batch) -> Step:
    """The step compiled for batches like ``batch`` without a state, so that it can be done in a thread beforehand."""
    with jax.set_mesh(mesh):
        abstract, shardings = state_shardings(config, mesh)
        state = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract, shardings
        )
        return compile_step(config, mesh, shardings).lower(state, put_batch(batch, mesh)).compile()
