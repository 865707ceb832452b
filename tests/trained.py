"""A training checkpoint beside what it was trained on, in the small, and the model that both make."""

from __future__ import annotations

import numpy as np
import pytest
from convert.test_layouts import TINY
from safetensors.numpy import save_file

from checkpoints_convert.layouts.earthmind import EARTHMIND, SAM2_PREFIX
from checkpoints_convert.layouts.lora import A
from checkpoints_convert.layouts.training import published_names
from checkpoints_convert.plan import build_plan, export, source_tree
from earthmind_jax.models import earthmind

torch = pytest.importorskip("torch")

RANK, SCALE = 3, 2.0
LANGUAGE = "language_model."
MODULES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
           "mlp.up_proj", "mlp.down_proj")  # fmt: skip


def make_parts():
    """A tiny model in three parts under published names: InternVL, SAM2 (its own names), and what training saves."""
    rng = np.random.default_rng(0)
    tree = {path: (x.shape, np.float32) for path, x in earthmind.shapes(TINY).items()}
    whole = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, (shape, _) in source_tree(tree, EARTHMIND[0].rules).items()
    }
    sam2 = {name.removeprefix(SAM2_PREFIX): x for name, x in whole.items() if name.startswith(SAM2_PREFIX)}
    internvl = {name: x for name, x in whole.items() if name.startswith(("vision_model.", "mlp1.", LANGUAGE))}
    trained = {}
    for name, x in whole.items():
        if name.startswith("mlp1.") or "embed_tokens" in name or "lm_head" in name:
            inside = name.replace(LANGUAGE, LANGUAGE + "base_model.model.")
            trained["mllm.model." + inside] = rng.standard_normal(x.shape).astype(np.float32)
        elif name.startswith("text_hidden_fcs.") or "sam_mask_decoder" in name:
            trained[name] = rng.standard_normal(x.shape).astype(np.float32)
        elif name == "local_query":
            trained["mllm.local_query"] = x
    for layer in range(TINY.lm.depth):
        for module in MODULES:
            out, inputs = whole[f"{LANGUAGE}model.layers.{layer}.{module}.weight"].shape
            stem = f"mllm.model.{LANGUAGE}base_model.model.model.layers.{layer}.{module}.lora_"
            trained[stem + "A.default.weight"] = rng.standard_normal((RANK, inputs)).astype(np.float32)
            trained[stem + "B.default.weight"] = rng.standard_normal((out, RANK)).astype(np.float32)
    return internvl, sam2, trained


def write_parts(parts, folder):
    """The three parts as the files that are published and saved."""
    internvl, sam2, trained = parts
    save_file(internvl, folder / "internvl.safetensors")
    torch.save({"model": {name: torch.from_numpy(x) for name, x in sam2.items()}}, folder / "sam2.pt")
    torch.save(
        {"meta": {"iter": 3}, "state_dict": {name: torch.from_numpy(x) for name, x in trained.items()}},
        folder / "iter_3.pth",
    )
    return folder


def expected(parts):
    """The published tensors that the export of this training has: bases, trained tensors over them, W + scale B A."""
    internvl, sam2, trained = parts
    whole = {**internvl, **{SAM2_PREFIX + name: x for name, x in sam2.items()}}
    names = published_names(trained)
    whole |= {names[name]: x for name, x in trained.items() if ".lora_" not in name}
    for name, a in trained.items():
        if ".lora_A." in name:
            b = trained[name.replace("lora_A", "lora_B")]
            weight = names[name].removesuffix(A) + ".weight"
            whole[weight] = whole[weight] + SCALE * b @ a
    return whole


def check_merged(parts, params):
    tree = {path: (x.shape, x.dtype) for path, x in params.items()}
    plan = build_plan(tree, EARTHMIND[0].rules, source_tree(tree, EARTHMIND[0].rules))
    ours = dict(export(plan, params))
    wanted = expected(parts)
    assert set(ours) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(ours[name], value, atol=1e-5, err_msg=name)
