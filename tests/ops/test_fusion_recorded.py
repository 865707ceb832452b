"""Fusion against recorded evaluations: Eq. 1-7 of the paper and the two released forms."""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earthmind_jax.ops import fusion
from earthmind_jax.ops.fusion_scores import text_relevance_printed


def arrays(folder, name, dtype):
    with np.load(folder / f"{name}.npz") as file:
        return {k: v.astype(dtype) if v.dtype.kind == "f" else v for k, v in file.items()}


@pytest.fixture(params=["float32", "float64"])
def precision(request):
    with jax.enable_x64(request.param == "float64"):
        yield request.param


def folders(goldens, prefix):
    found = sorted(goldens.glob(f"{prefix}*"))
    return found or pytest.skip(f"no {prefix} case recorded")


def close(got, want, tolerance, what):
    np.testing.assert_allclose(np.asarray(got), want, rtol=0, atol=tolerance, err_msg=what)


@functools.partial(jax.jit, static_argnames="block")
def printed(optical, sar, text, lam, block):
    """Scores and fusion of one tile, as printed."""
    every = jnp.ones((1, 1, len(sar)), bool)
    pair = optical[None, None], sar[None, None]
    tokens = fusion.Tokens(*pair, every, every, text[None], jnp.ones((1, len(text)), bool))
    scores = fusion.hca_scores(tokens, lam, printed=True, normalise="none", scale_by_tokens=False, block=block)
    return scores, fusion.fuse("hca_printed", {"lambda": lam}, *pair, text=text[None], block=block)


@pytest.mark.parametrize("block", [1024, 5])
def test_paper_equations(goldens, precision, block):
    tolerance = {"float32": 1e-5, "float64": 1e-10}[precision]
    for folder in folders(goldens, "h_hca_paper"):
        given, wanted = arrays(folder, "inputs", precision), arrays(folder, "outputs", precision)
        for case, config in json.loads((folder / "config.json").read_text()).items():
            x = {k.split(".")[1]: jnp.asarray(v) for k, v in given.items() if k.startswith(f"{case}.")}
            y = {k.split(".")[1]: v for k, v in wanted.items() if k.startswith(f"{case}.")}
            grids = tuple(config["P_grid"]), tuple(config["N_grid"])
            optical, sar, text = fusion.pool_to_grid(x["X_o"], *grids), x["X_s"], x["X_T"]
            # Resizing works in float32 whatever its input; what follows is held to the tolerance of the inputs.
            close(optical, y["X_hat_o"], max(tolerance, 1e-6) if grids[0] != grids[1] else 0, f"{case} X_hat_o")
            optical = jnp.asarray(y["X_hat_o"])

            close(fusion.attention_map(optical, sar), y["A_o2s"], tolerance, f"{case} A_o2s")
            close(fusion.attention_map(sar, optical), y["A_s2o"], tolerance, f"{case} A_s2o")
            close(fusion.attention_map(optical, text), y["A_o2t"], tolerance, f"{case} A_o2t")
            close(fusion.attention_map(sar, text), y["A_s2t"], tolerance, f"{case} A_s2t")

            scores, fused = printed(optical, sar, text, x["lam"], block)
            for name, score in zip(("alpha", "beta", "gamma"), scores, strict=True):
                close(score[0, 0, :, 0], y[f"{name}_o"], tolerance, f"{case} {name}_o")
                close(score[0, 0, :, 1], y[f"{name}_s"], tolerance, f"{case} {name}_s")
            close(fused.weights[0, 0], y["w"], tolerance, f"{case} w")
            close(fused.tokens[0, 0], y["X_fused"], tolerance, f"{case} X_fused")


def test_modality_attention_score(goldens, precision):
    tolerance = {"float32": 1e-5, "float64": 1e-10}[precision]
    for folder in folders(goldens, "h_hca_paper"):
        given, wanted = arrays(folder, "inputs", precision), arrays(folder, "outputs", precision)
        length = given["mas_attention"].shape[-1]
        marks = {s: jnp.zeros(length, bool).at[given[f"mas_{s}"]].set(True) for s in ("optical", "sar")}
        for sensor, mark in marks.items():
            score = fusion.modality_attention_score(given["mas_attention"], mark, marks["optical"] | marks["sar"])
            close(score, wanted[f"mas_{sensor}"], tolerance, f"mas_{sensor}")


def test_printed_beta_is_one_over_l():
    tokens, text = jax.random.normal(jax.random.key(0), (2, 9, 4)), jax.random.normal(jax.random.key(1), (2, 20, 4))
    valid = jnp.arange(20) < jnp.array([[20], [13]])
    beta = text_relevance_printed(tokens * 5, text, valid)
    np.testing.assert_allclose(beta, np.broadcast_to([[1 / 20], [1 / 13]], (2, 9)), rtol=1e-6)


@pytest.mark.parametrize("block", [1024, 10])
def test_released_forms(goldens, precision, block):
    for folder in folders(goldens, "h_fusion_releases"):
        given, wanted = arrays(folder, "inputs", precision), arrays(folder, "outputs", precision)
        x = {k: jnp.asarray(v) for k, v in given.items()}
        query = {"local_query": x["local_query"]}
        for case, optical in (("", x["optical"]), ("_more_tiles", x["optical_more_tiles"])):
            october = jax.jit(functools.partial(fusion.fuse, "release_2025_10", {}, block=block))
            fused = october(optical[None], x["sar"][None], text=x["text"][None])
            close(fused.weights[0], wanted[f"release_2025_10{case}_weights"], 1e-5, f"2025_10{case} weights")
            close(fused.tokens[0], wanted[f"release_2025_10{case}_tokens"], 1e-5, f"2025_10{case} tokens")
        pair = x["optical"][None], x["sar"][None]
        gate = fusion.symmetric_gate(x["local_query"], *pair)
        close(gate[0], wanted["release_2025_06_gate"][..., 0], 1e-5, "gate")
        close(fusion.fuse("release_2025_06", query, *pair).tokens[0], wanted["release_2025_06_tokens"], 1e-5, "06")
        ungated = wanted["release_2025_06_inference_tokens"]
        close(fusion.fuse("release_2025_06", query, *pair, gate=False).tokens[0], ungated, 1e-5, "06 inference")
        close(fusion.fuse("concat", {}, *pair).tokens[0], ungated, 1e-5, "concat")


def test_training_forward_places_the_gated_tokens(goldens):
    """The image positions of the recorded ``inputs_embeds`` are the gated tokens, one tile a sample."""
    safetensors = pytest.importorskip("safetensors.numpy")
    for folder in folders(goldens, "g_train_forward"):
        given, wanted = arrays(folder, "inputs", np.float32), arrays(folder, "outputs", np.float32)
        query = safetensors.load_file(folder / "weights.safetensors")["local_query"]
        image = json.loads((folder / "config.json").read_text())["img_context_token_id"]
        optical, sar = (
            jnp.asarray(wanted["multi.rgb_tokens"])[:, None],
            jnp.asarray(wanted["multi.sar_tokens"])[:, None],
        )
        fused = fusion.fuse("release_2025_06", {"local_query": jnp.asarray(query)}, optical, sar)
        placed = wanted["multi.inputs_embeds"][given["input_ids"] == image]
        close(fused.tokens.reshape(placed.shape), placed, 2e-4, "gated tokens")
