"""A converted model beside the classes of transformers, layer by layer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from checkpoints_convert.export import tensors_of
from checkpoints_convert.layouts import INTERN_VIT, LAYOUTS
from checkpoints_convert.published_config import lm_to_hf
from checkpoints_convert.stored import stored_params
from checkpoints_convert.verify.result import Result
from earthmind_jax.config import LmConfig, VisionConfig
from earthmind_jax.errors import UserError
from earthmind_jax.models import functional
from earthmind_jax.models.decoder import Decoder
from earthmind_jax.models.intern_vit import InternViT

TOKENS = 512
TOLERANCE = 1e-3  # of the largest number in a layer: float32 sums in another order, through all layers before it
CLASSES = {"qwen2": ("Qwen2Config", "Qwen2ForCausalLM"), "phi3": ("Phi3Config", "Phi3ForCausalLM")}

# Names of InternViT in transformers, by the published ones.
_VISION = (
    (r"embeddings\.class_embedding", "embeddings.cls_token"),
    (r"embeddings\.position_embedding", "embeddings.position_embeddings"),
    (r"embeddings\.patch_embedding", "embeddings.patch_embeddings.projection"),
    (r"encoder\.layers", "encoder.layer"),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.ls(\d)$", r".lambda_\1"),
    (r"\.attn\.proj\.", ".attention.projection_layer."),
    (r"\.attn\.", ".attention."),
)


def against_live(directory: str | Path) -> list[Result]:
    """Language model (512 random tokens) and vision encoder (one random tile) of a checkpoint, in float32.

    Both models are in memory at once.

    Raises:
      UserError: PyTorch or transformers is not installed.
    """
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise UserError(f"--live needs {error.name}: install the [convert] extra.") from error
    config, stored = stored_params(directory)
    with jax.default_matmul_precision("highest"):
        return [_language(config.lm, _below(stored, "lm/")), _vision(config.vision, _below(stored, "vision/"))]


def _below(stored: Any, prefix: str) -> dict[str, np.ndarray]:
    return {path: np.asarray(x[...], np.float32) for path, x in stored.items() if path.startswith(prefix)}


def _state(layout: Any, params: dict[str, np.ndarray]) -> dict[str, Any]:
    """The published tensors of ``params``, as PyTorch has them."""
    import torch

    return {name: torch.from_numpy(np.array(make())) for name, (_, _, make) in tensors_of(layout, params).items()}


def _language(config: LmConfig, params: dict[str, np.ndarray]) -> Result:
    import torch
    import transformers

    if config.family not in CLASSES:
        text = f"language model: transformers has no class for {config.family}; use --recorded"
        return Result("language model", True, text)
    settings, model = (getattr(transformers, name) for name in CLASSES[config.family])
    published = {key: value for key, value in lm_to_hf(config).items() if key not in ("architectures", "model_type")}
    with torch.device("meta"):
        model = model(settings(**published, attn_implementation="eager", pad_token_id=None))
    layout = next(x for x in LAYOUTS if x.covers == ("lm/*",) and x.family == config.family)
    model.load_state_dict(_state(layout, params), assign=True, strict=not config.tie)
    model = _materialised(model)
    tokens = np.random.default_rng(0).integers(0, config.vocab, (1, TOKENS))
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens), output_hidden_states=True)
    module = Decoder(config)

    @jax.jit
    def run(params: Any, tokens: Any) -> Any:
        embeds = functional.apply_module(module, params, "lm", tokens, method="embed")
        out = functional.apply_module(module, params, "lm", embeds, states=True)
        return out.states, functional.apply_module(module, params, "lm", out.hidden, method="logits")

    states, logits = run({path: jnp.asarray(x) for path, x in params.items()}, tokens.astype(np.int32))
    rows = [(f"hidden.{i}", a, b.numpy()) for i, (a, b) in enumerate(zip(states, theirs.hidden_states, strict=True))]
    return _table("language model", [*rows, ("logits", logits, theirs.logits.numpy())])


def _vision(config: VisionConfig, params: dict[str, np.ndarray]) -> Result:
    import torch
    from transformers.models.internvl import modeling_internvl as internvl

    published = internvl.InternVLVisionConfig(
        hidden_size=config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        intermediate_size=config.mlp,
        image_size=[config.image_size] * 2,
        patch_size=[config.patch_size] * 2,
        norm_type=config.norm,
        use_qk_norm=config.qk_norm,
        attention_bias=config.qkv_bias,
        layer_norm_eps=config.norm_eps,
        hidden_act="gelu",
        use_mean_pooling=True,  # without a norm at the end
        attn_implementation="eager",
    )
    model = internvl.InternVLVisionModel(published)
    model.load_state_dict(_vision_names(_state(INTERN_VIT, params)))
    pixels = np.random.default_rng(0).standard_normal((1, config.image_size, config.image_size, 3), np.float32)
    with torch.no_grad():
        theirs = model.eval()(torch.from_numpy(pixels).permute(0, 3, 1, 2), output_hidden_states=True)
    ours = jax.jit(
        lambda params, pixels: functional.apply_module(InternViT(config), params, "vision", pixels, states=True)
    )({path: jnp.asarray(x) for path, x in params.items()}, pixels)
    pairs = zip(ours.states, theirs.hidden_states, strict=True)
    return _table("vision encoder", [(f"hidden.{i}", a, b.numpy()) for i, (a, b) in enumerate(pairs)])


def _vision_names(state: dict[str, Any]) -> dict[str, Any]:
    renamed = {}
    for name, tensor in state.items():
        for published, theirs in _VISION:
            name = re.sub(published, theirs, name)
        if ".attention.qkv." in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                renamed[name.replace("qkv", f"{letter}_proj")] = part
        else:
            renamed[name] = tensor
    return renamed


def _materialised(model: Any) -> Any:
    """Computed constants (rotary tables) and a tied head of a model that was made without memory."""
    import torch

    model.tie_weights()
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(config=model.config)
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    assert not left, left
    return model.eval().requires_grad_(False).to(torch.float32)


def _table(name: str, rows: Iterable[tuple[str, Any, np.ndarray]]) -> Result:
    lines, passed = (
        [f"{name}: float32, this code beside transformers", f"{'layer':12} {'max error':>10} {'of':>10}"],
        True,
    )
    for layer, ours, theirs in rows:
        error, scale = float(np.abs(np.asarray(ours) - theirs).max()), float(np.abs(theirs).max())
        good = bool(error <= TOLERANCE * scale)  # False for NaN
        passed &= good
        lines.append(f"{layer:12} {error:10.2e} {scale:10.2e}" + ("" if good else "  <- FAILS"))
    return Result(name, passed, "\n".join(lines))
