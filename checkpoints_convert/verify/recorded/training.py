"""``g_train_forward``: the training forward of the June 2025 release, with its gate and with a marked region."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from checkpoints_convert.verify.recorded.case import Case, Report, channels_last
from checkpoints_convert.verify.recorded.losses import IGNORE
from earthmind_jax.config import EarthMindConfig, FusionConfig
from earthmind_jax.models import earthmind
from earthmind_jax.ops import losses
from earthmind_jax.types import Params


def training_forward(case: Case, report: Report) -> None:
    """Paired sensors through the gate, and one sensor with a region."""
    tolerance = case.tolerance(2e-4)
    config, params = case.convert(fusion=FusionConfig(mode="release_2025_06", grounding="sar"))
    _multi(report, config, params, tolerance)
    _single_region(report, config, params, tolerance)


def _tiles(case: Case, name: str) -> np.ndarray:
    """Pixel values of a batch [B I H W 3]."""
    pixels = channels_last(case.inputs[name])
    return pixels.reshape(-1, case.config["tiles_per_sample"], *pixels.shape[1:])


def _fuse(config: EarthMindConfig, params: Params, optical: Any, sar: Any) -> Any:
    batch = len(optical if optical is not None else sar)
    text = jnp.zeros((batch, 1, config.lm.width))
    return earthmind.fuse(config, params, optical, sar, None, None, text, jnp.zeros((batch, 1), bool))


def _loss(config: EarthMindConfig, params: Params, hidden: jax.Array, labels: np.ndarray) -> jax.Array:
    targets = labels[:, 1:]
    total, count = losses.token_cross_entropy(
        hidden[:, :-1], earthmind.head_kernel(config, params), np.maximum(targets, 0), targets != IGNORE, chunk=1024
    )
    return total / count


def _multi(report: Report, config: EarthMindConfig, params: Params, tolerance: float) -> None:
    case, x = report.case, report.case.inputs
    ids, mask = x["input_ids"], x["attention_mask"].astype(bool)
    context = ids == case.config["img_context_token_id"]
    index = np.where(context, np.cumsum(context, axis=1) - 1, -1)

    @jax.jit
    def forward(query: Any, params: Params) -> Any:
        params = {**params, "fusion/local_query": query}
        sar = earthmind.encode(config, params, _tiles(case, "pixel_values"))
        optical = earthmind.encode(config, params, _tiles(case, "rgb_pixel_values"))
        fused = _fuse(config, params, optical, sar)
        visual = fused.tokens.reshape(len(ids), -1, config.lm.width)
        embeds = earthmind.place(earthmind.embed(config, params, ids), visual, index)
        out = earthmind.language(config, params, embeds, mask.sum(1), attention=True)
        loss = _loss(config, params, out.hidden, x["labels"])
        return loss, (sar, optical, embeds, out, earthmind.logits(config, params, out.hidden))

    run = jax.value_and_grad(forward, has_aux=True)
    (loss, (sar, optical, embeds, out, logits)), gradient = run(jnp.asarray(params["fusion/local_query"]), params)
    rows = mask[:, :, None]  # padded query rows mean nothing
    report.close("multi.loss", loss, tolerance)
    report.close("multi.logits", logits, tolerance, where=rows)
    report.close("multi.last_hidden", out.hidden, tolerance, where=rows)
    report.close("multi.inputs_embeds", embeds, tolerance)
    report.close("multi.sar_tokens", sar.reshape(-1, *sar.shape[2:]), tolerance)
    report.close("multi.rgb_tokens", optical.reshape(-1, *optical.shape[2:]), tolerance)
    report.close("multi.cos_loss_mse", losses.sensor_mse(optical, sar), tolerance)
    report.close("multi.grad_local_query", gradient, tolerance)
    report.close("multi.attn_last_mean", out.attention[-1], tolerance, where=rows)


def _single_region(report: Report, config: EarthMindConfig, params: Params, tolerance: float) -> None:
    case, x = report.case, report.case.inputs
    ids = x["single_input_ids"]
    index = _region_index(case, ids == case.config["img_context_token_id"], config.vision.tokens)

    @jax.jit
    def forward(params: Params) -> Any:
        fused = _fuse(config, params, earthmind.encode(config, params, _tiles(case, "pixel_values")), None)
        batch, width = len(ids), config.lm.width
        # The rows of the sensor that is there; those of the other are invalid.
        order = jnp.argsort(~fused.valid.reshape(batch, -1), axis=1, stable=True)
        visual = jnp.take_along_axis(fused.tokens.reshape(batch, -1, width), order[:, :, None], axis=1)
        embeds = earthmind.place(earthmind.embed(config, params, ids), visual, index)
        hidden = earthmind.language(config, params, embeds).hidden
        return embeds, earthmind.logits(config, params, hidden), _loss(config, params, hidden, x["single_labels"])

    embeds, logits, loss = forward(params)
    report.close("single_region.inputs_embeds", embeds, tolerance)
    report.close("single_region.logits", logits, tolerance)
    report.close("single_region.loss", loss, tolerance)


def _region_index(case: Case, context: np.ndarray, tokens: int) -> np.ndarray:
    """Row of its own sample's visual tokens for every image position, in the order of the whole batch.

    After a marked tile its rows under each region mask are inserted once more.
    """
    rows: list[int] = []
    for tile, marked in enumerate(case.inputs["vp_overall_mask"] > 0):
        own = tile % case.config["tiles_per_sample"] * tokens + np.arange(tokens)
        rows += own.tolist()
        if marked:
            for mask in case.inputs["prompt_masks"]:
                rows += own[mask.reshape(-1) > 0].tolist()
    index = np.full(context.shape, -1)
    index[context] = rows
    return index
