"""``g_losses``: the losses of training, with gradients at the recorded random points."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from checkpoints_convert.verify.recorded.case import Case, Report
from earthmind_jax.ops import losses, point_rend, resize

IGNORE = -100  # label of a token that is not predicted


def training_losses(case: Case, report: Report) -> None:
    """Mask, dice, attention, language and sensor losses."""
    tolerance = case.tolerance(1e-5, "{} relative")
    for name, value in {**_masks(case), **_attention(case), **_language(case)}.items():
        report.relative(name, value, tolerance)
    rows = [(n, *(losses.patch_grid(int(n)) or (-1, -1))) for n in case.outputs["infer_patch_size"][:, 0]]
    report.exact("infer_patch_size", np.array(rows))
    small = resize.nearest(
        case.inputs["gt_big"][..., None].astype(np.float32), case.outputs["gt_big_nearest"].shape[1:]
    )
    report.exact("gt_big_nearest", small[..., 0])


def _masks(case: Case) -> dict[str, jax.Array]:
    config, x = case.config, case.inputs
    pred, target = jnp.asarray(x["pred_masks"]), jnp.asarray(x["gt_masks"], jnp.float32)
    kept = int(config["importance_sample_ratio"] * config["num_points"])
    coords = point_rend.select_points(pred, x["rand_oversampled"], x["rand_extra"], kept)
    points = point_rend.point_sample(target, coords)

    def bce(pred: jax.Array, eps: float = 1e-4) -> jax.Array:
        return config["loss_mask"]["loss_weight"] * losses.mask_bce(
            point_rend.point_sample(pred, coords), points, eps=eps
        )

    def dice(pred: jax.Array, **options: float) -> jax.Array:
        options = {"smooth": config["loss_dice"]["eps"], **options}
        return config["loss_dice"]["loss_weight"] * losses.mask_dice(
            point_rend.point_sample(pred, coords), points, **options
        )

    flat, flat_target = pred.reshape(len(pred), -1), target.reshape(len(pred), -1)
    weights = config["loss_mask"]["loss_weight"], config["loss_dice"]["loss_weight"]
    return {
        "point_coords": coords,
        "sampled_pred": point_rend.point_sample(pred, coords),
        "sampled_gt": points,
        "loss_mask": bce(pred),
        "loss_dice": dice(pred),
        "grad_loss_mask": jax.grad(bce)(pred),
        "grad_loss_dice": jax.grad(dice)(pred),
        "loss_mask_no_avg_factor": bce(pred, 0.0),
        "loss_dice_no_avg_factor": dice(pred, eps=0.0),
        "loss_mask_full_map": weights[0] * losses.mask_bce(flat, flat_target, eps=0.0),
        "loss_dice_full_map": weights[1] * losses.mask_dice(flat, flat_target, eps=0.0),
        # The other form was recorded with the published class's own defaults: weight 1, smoothing 1e-3.
        "loss_dice_vnet_form": losses.mask_dice(flat, flat_target, smooth=1e-3, eps=0.0, squared=True),
    }


def _attention(case: Case) -> dict[str, jax.Array]:
    ids = case.inputs["attn_input_ids"][0]
    rows, columns = ids == case.config["seg_id"], ids == case.config["img_context_id"]
    attention = case.inputs["attn"][0].mean(0)[rows][:, columns]
    grid = losses.patch_grid(int(columns.sum()))
    target = losses.attention_target(jnp.asarray(case.inputs["attn_gt_masks"]), grid)
    return {
        "attn_hw": jnp.array(grid),
        "attn_gt_patch_mask": target,
        "loss_attn": case.config["attn_loss_weight"] * losses.attention_kl(jnp.asarray(attention), target),
    }


def _language(case: Case) -> dict[str, jax.Array]:
    logits, labels = jnp.asarray(case.inputs["llm_logits"]), case.inputs["llm_labels"]
    targets, head = labels[:, 1:], jnp.eye(logits.shape[-1])
    total, count = losses.token_cross_entropy(
        logits[:, :-1], head, np.maximum(targets, 0), targets != IGNORE, chunk=logits.shape[0] * 5
    )
    mse = losses.sensor_mse(jnp.asarray(case.inputs["rgb_tokens"]), jnp.asarray(case.inputs["sar_tokens"]))
    return {"llm_loss": total / count, "cos_loss_mse": mse}
