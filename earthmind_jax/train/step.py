"""One optimiser step: forward, the published losses, gradients of the trainables, update."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from earthmind_jax.config import RunConfig
from earthmind_jax.distributed.sharding import batch_sharding, replicated
from earthmind_jax.models import earthmind
from earthmind_jax.ops import losses
from earthmind_jax.train.groups import optimiser
from earthmind_jax.train.state import TrainState, assignment
from earthmind_jax.types import Batch, Params

Metrics = dict[str, jax.Array]


def loss_terms(config: RunConfig, params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
    """Weighted sum of the losses and each term, float32 scalars.

    Terms (EarthMind configs/earthmind_4b_sft.py): ``text`` next-token cross-entropy over supervised tokens, ``bce`` and
    ``dice`` on points sampled where the mask is uncertain, ``sensor_mse`` the June 2025 pull between the sensors'
    tokens; ``phrase`` is ours.
    """
    weights = config.loss
    drop, points = jax.random.split(key)
    out = earthmind.forward(config.model, params, batch, dropout=drop, phrases=weights.phrase > 0)
    loss, metrics = jnp.zeros(()), {}
    if weights.text:
        head = earthmind.head_kernel(config.model, params)
        targets = jnp.roll(batch.tokens, -1, axis=1)
        wanted = jnp.roll(batch.loss_mask, -1, axis=1).at[:, -1].set(False)
        total, count = losses.token_cross_entropy(out.hidden, head, targets, wanted, chunk=weights.vocab_chunk)
        metrics["text"] = total / jnp.maximum(count, 1)
        loss = weights.text * metrics["text"]
    if batch.masks is not None and batch.mask_valid is not None:
        for name, weight, masks, valid in (
            ("", weights.seg, out.masks, batch.mask_valid),
            ("phrase_", weights.phrase, out.phrase_masks, out.phrase_valid),
        ):
            # A term of weight 0 is not computed: without [SEG] and text, nothing of the language model is.
            if weight and masks is not None:
                keep = batch.mask_valid & valid
                bce, dice = mask_losses(config, points, masks.logits, batch.masks, keep)
                loss = loss + weight * (weights.mask_bce * bce + weights.mask_dice * dice)
                metrics |= {f"{name}bce": bce, f"{name}dice": dice}
    if weights.align and out.prompts is not None and batch.mask_valid is not None:
        seg, words = out.prompts
        keep = (batch.mask_valid & out.phrase_valid)[..., None]
        square = jnp.square(seg - jax.lax.stop_gradient(words)).astype(jnp.float32)
        metrics["align"] = jnp.where(keep, square, 0).sum() / jnp.maximum(keep.sum() * seg.shape[-1], 1)
        loss = loss + weights.align * metrics["align"]
    if weights.sensor_mse and out.sensor_tokens is not None:
        mse = losses.sensor_mse(*out.sensor_tokens)
        loss = loss + weights.sensor_mse * mse
        metrics["sensor_mse"] = mse
    return loss, metrics | {"loss": loss}


def mask_losses(
    config: RunConfig, key: jax.Array, logits: jax.Array, masks: jax.Array, valid: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """BCE and Dice of mask logits against targets [B M h w]: on sampled points, or everywhere where ``points`` is 0."""
    weights, size = config.loss, logits.shape[-2:]
    logits = logits.reshape(-1, *size).astype(jnp.float32)
    target = masks.reshape(-1, *size).astype(jnp.float32)
    if weights.points:
        uncertain = jax.lax.stop_gradient(logits)
        coords = losses.sample_points(key, uncertain, weights.points, weights.oversample, weights.importance)
        logits, target = losses.point_sample(logits, coords), losses.point_sample(target, coords)
    else:
        logits, target = logits.reshape(len(logits), -1), target.reshape(len(target), -1)
    keep = valid.reshape(-1)
    return losses.mask_bce(logits, target, keep), losses.mask_dice(logits, target, keep)


def train_step(config: RunConfig, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    """Pure update. Frozen parameters ride along untouched; donation aliases them through."""
    key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)

    def loss(trainable: Params) -> tuple[jax.Array, Metrics]:
        return loss_terms(config, {**state.frozen, **trainable}, batch, key)

    (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(state.trainable)
    tx = optimiser(config.optim, assignment(config), config.steps)
    updates, opt = tx.update(grads, state.opt, state.trainable)
    metrics["grad_norm"] = optax.tree.norm(grads)
    trainable = optax.apply_updates(state.trainable, updates)
    return state.replace(step=state.step + 1, trainable=trainable, opt=opt), metrics


def compile_step(
    config: RunConfig, mesh: Mesh, shardings: TrainState
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The jitted step with pinned input and output shardings (what pjit has become) and the state donated."""
    return jax.jit(
        lambda state, batch: train_step(config, state, batch),
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
