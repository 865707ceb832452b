"""Published components as the classes of transformers, with given weights, in float32 on the CPU."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from earthmind_jax.errors import UserError

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


def language_class(published: Mapping[str, Any]) -> Any:
    """The class that a published ``llm_config`` names; None where transformers does not have it (InternLM2)."""
    import transformers

    return getattr(transformers, published["architectures"][0], None)


def language_model(published: Mapping[str, Any], state: Mapping[str, Any], *, tied: bool) -> Any:
    """A language model of transformers around the tensors ``state``, which it keeps.

    Args:
      published: ``llm_config`` of a class that transformers has (:func:`language_class`).
      state: published name below ``language_model.`` -> float32 tensor.
      tied: the output head is the token embedding, and ``state`` lacks it.

    Raises:
      UserError: transformers has no such class.
    """
    import torch

    made = language_class(published)
    if made is None:
        raise UserError(f"transformers has no {published['architectures'][0]}: only recorded outputs can check it.")
    settings = {key: value for key, value in published.items() if key not in ("architectures", "model_type")}
    settings |= {"attn_implementation": "eager", "pad_token_id": None, "tie_word_embeddings": tied}
    with torch.device("meta"):
        model = made(made.config_class(**settings))
    model.load_state_dict(state, assign=True, strict=not tied)
    model.tie_weights()
    rotary = model.model.rotary_emb  # its tables are computed, not loaded
    model.model.rotary_emb = type(rotary)(config=model.config)
    return _frozen(model)


def vision_model(published: Mapping[str, Any], state: Mapping[str, Any]) -> Any:
    """InternViT of transformers around the tensors ``state``.

    Args:
      published: ``vision_config`` of InternVL.
      state: published name below ``vision_model.`` -> float32 tensor.
    """
    import torch
    from transformers.models.internvl import modeling_internvl as internvl

    settings = internvl.InternVLVisionConfig(
        hidden_size=published["hidden_size"],
        num_hidden_layers=published["num_hidden_layers"],
        num_attention_heads=published["num_attention_heads"],
        intermediate_size=published["intermediate_size"],
        image_size=[published["image_size"]] * 2,
        patch_size=[published["patch_size"]] * 2,
        norm_type=published["norm_type"],
        use_qk_norm=published["qk_normalization"],
        attention_bias=published["qkv_bias"],
        layer_norm_eps=published["layer_norm_eps"],
        hidden_act=published["hidden_act"],
        use_mean_pooling=True,  # without a norm at the end
        attn_implementation="eager",
    )
    with torch.device("meta"):
        model = internvl.InternVLVisionModel(settings)
    model.load_state_dict(_vision_names(state), assign=True)
    return _frozen(model)


def _vision_names(state: Mapping[str, Any]) -> dict[str, Any]:
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


def _frozen(model: Any) -> Any:
    import torch

    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    assert not left, left
    return model.eval().requires_grad_(False).to(torch.float32)
