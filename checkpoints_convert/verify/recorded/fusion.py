"""``h_`` fusion: the paper's equations, and the two released forms."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from checkpoints_convert.verify.recorded.case import Case, Report
from earthmind_jax.ops import fusion
from earthmind_jax.ops.fusion_tokens import prepare

DTYPES = ("float64", "float32")


def paper(case: Case, report: Report) -> None:
    """Eq. 1-7 to the letter, in float64 and in float32."""
    for dtype in DTYPES:
        tolerance = case.tolerance({"float64": 1e-10, "float32": 1e-5}[dtype], f"{{}} in {dtype}")
        with jax.enable_x64(dtype == "float64"):
            for run, options in case.config.items():
                inputs = {name: case.inputs[f"{run}.{name}"].astype(dtype) for name in ("X_o", "X_s", "X_T", "lam")}
                grids = tuple(options["P_grid"]), tuple(options["N_grid"])
                for name, value in _equations(inputs, *grids).items():
                    report.close(f"{run}.{name}", value, tolerance, note=dtype)
            attention = jnp.asarray(case.inputs["mas_attention"].astype(dtype))
            marks = {name: np.zeros(attention.shape[-1], bool) for name in ("mas_optical", "mas_sar")}
            for name, mark in marks.items():
                mark[case.inputs[name]] = True
            visual = marks["mas_optical"] | marks["mas_sar"]
            for name, mark in marks.items():
                report.close(name, fusion.modality_attention_score(attention, mark, visual), tolerance, note=dtype)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _equations(
    inputs: dict[str, np.ndarray], p_grid: tuple[int, int], n_grid: tuple[int, int]
) -> dict[str, np.ndarray]:
    """All quantities of Eq. 2-7 for one pair, by their recorded names."""
    lam = jnp.asarray(inputs["lam"])
    optical = fusion.pool_to_grid(jnp.asarray(inputs["X_o"]), p_grid, n_grid)
    sar, text = jnp.asarray(inputs["X_s"]), jnp.asarray(inputs["X_T"])
    tokens = prepare(optical[None, None], sar[None, None], None, None, text[None], None, any_tiles=False)
    scores = fusion.hca_scores(tokens, lam, printed=True, normalise="none", scale_by_tokens=False)
    fused = fusion.fuse("hca_printed", {"lambda": lam}, optical[None, None], sar[None, None], text=text[None])
    both = {
        f"{name}_{sensor}": getattr(scores, name)[0, 0, :, index]
        for name in ("alpha", "beta", "gamma")
        for index, sensor in enumerate("os")
    }
    return {
        "X_hat_o": optical,
        "A_o2s": fusion.attention_map(optical, sar),
        "A_s2o": fusion.attention_map(sar, optical),
        "A_o2t": fusion.attention_map(optical, text),
        "A_s2t": fusion.attention_map(sar, text),
        **both,
        "w": fused.weights[0, 0],
        "X_fused": fused.tokens[0, 0],
    }


def releases(case: Case, report: Report) -> None:
    """The June and October 2025 forms; one sample of T tiles."""
    tolerance = case.tolerance(1e-5, "{} absolute")
    x = {name: value.astype(np.float32) for name, value in case.inputs.items()}
    sar, text = x["sar"][None], x["text"][None]
    for name, optical in (("release_2025_10", "optical"), ("release_2025_10_more_tiles", "optical_more_tiles")):
        fused = fusion.fuse("release_2025_10", {}, x[optical][None], sar, text=text)
        report.close(f"{name}_tokens", fused.tokens[0], tolerance)
        report.close(f"{name}_weights", fused.weights[0], tolerance)
    query, optical = {"local_query": x["local_query"]}, x["optical"][None]
    trained = fusion.fuse("release_2025_06", query, optical, sar)
    report.close("release_2025_06_tokens", trained.tokens[0], tolerance)
    gate = fusion.symmetric_gate(query["local_query"], optical, sar)
    report.close("release_2025_06_gate", gate[0, ..., None], tolerance)
    inference = fusion.fuse("release_2025_06", query, optical, sar, gate=False)
    report.close("release_2025_06_inference_tokens", inference.tokens[0], tolerance)
