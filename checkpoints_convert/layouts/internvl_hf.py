"""InternVL as the transformers library names it (``InternVLForConditionalGeneration``, the ``-hf`` checkpoints).

Its files hold ``vision_tower.* multi_modal_projector.* language_model.model.*`` and ``language_model.lm_head.weight``;
its modules, and files written from them as they are, ``model.vision_tower.* model.language_model.*`` and
``lm_head.weight``. Queries, keys and values are apart, and the token embedding is usually tied.
"""

from __future__ import annotations

from dataclasses import replace

from checkpoints_convert.layouts import qwen2
from checkpoints_convert.rules import Ignored, Layout, Rule, ignored_under, under

VISION = (
    Rule("embeddings.cls_token", "class_embedding", "1 1 D -> D"),
    Rule("embeddings.patch_embeddings.projection.weight", "patch_embedding/kernel", "D C h w -> h w C D"),
    Rule("embeddings.patch_embeddings.projection.bias", "patch_embedding/bias"),
    Rule("embeddings.position_embeddings", "position_embedding", "1 S D -> S D"),
    *under(
        "encoder.layer.{i}.",
        (
            Rule("layernorm_before.weight", "norm1/scale"),
            Rule("layernorm_before.bias", "norm1/bias"),
            *(Rule(f"attention.{x}_proj.weight", f"attn/{x}/kernel", "(N h) D -> D N h") for x in "qkv"),
            *(Rule(f"attention.{x}_proj.bias", f"attn/{x}/bias", "(N h) -> N h") for x in "qkv"),
            Rule("attention.q_norm.weight", "attn/q_norm/scale"),
            Rule("attention.k_norm.weight", "attn/k_norm/scale"),
            Rule("attention.projection_layer.weight", "attn/out/kernel", "D (N h) -> N h D"),
            Rule("attention.projection_layer.bias", "attn/out/bias"),
            Rule("lambda_1", "ls1"),
            Rule("layernorm_after.weight", "norm2/scale"),
            Rule("layernorm_after.bias", "norm2/bias"),
            Rule("mlp.fc1.weight", "mlp/fc1/kernel", "O I -> I O"),
            Rule("mlp.fc1.bias", "mlp/fc1/bias"),
            Rule("mlp.fc2.weight", "mlp/fc2/kernel", "O I -> I O"),
            Rule("mlp.fc2.bias", "mlp/fc2/bias"),
            Rule("lambda_2", "ls2"),
        ),
        "blocks/",
    ),
)

PROJECTOR = (
    Rule("layer_norm.weight", "norm/scale"),
    Rule("layer_norm.bias", "norm/bias"),
    Rule("linear_1.weight", "fc1/kernel", "O I -> I O"),
    Rule("linear_1.bias", "fc1/bias"),
    Rule("linear_2.weight", "fc2/kernel", "O I -> I O"),
    Rule("linear_2.bias", "fc2/bias"),
)


def _nested(name: str) -> str:
    """A name of ``Qwen2ForCausalLM`` inside the module tree of transformers 5."""
    return name if name.startswith("lm_head.") else name.replace("model.", "model.language_model.", 1)


_LANGUAGE_NESTED = tuple(replace(rule, source=_nested(rule.source)) for rule in qwen2.QWEN2.rules)
_COVERS = ("vision/*", "projector/*", "lm/*")

INTERNVL_HF = Layout(
    name="InternVL of transformers (Qwen2)",
    rules=(
        *under("vision_tower.", VISION, "vision/"),
        *under("multi_modal_projector.", PROJECTOR, "projector/"),
        *under("language_model.", qwen2.QWEN2.rules),
    ),
    ignored=ignored_under("language_model.", qwen2.IGNORED),
    has=(
        "vision_tower.embeddings.cls_token",
        "multi_modal_projector.linear_1.weight",
        *("language_model." + name for name in qwen2.QWEN2.has),
    ),
    covers=_COVERS,
    family="qwen2",
)

INTERNVL_HF_NESTED = Layout(
    name="InternVL of transformers, as its modules nest (Qwen2)",
    rules=(
        *under("model.vision_tower.", VISION, "vision/"),
        *under("model.multi_modal_projector.", PROJECTOR, "projector/"),
        *_LANGUAGE_NESTED,
    ),
    ignored=tuple(Ignored(_nested(entry.pattern), entry.reason) for entry in qwen2.IGNORED),
    has=(
        "model.vision_tower.embeddings.cls_token",
        "model.multi_modal_projector.linear_1.weight",
        *map(_nested, qwen2.QWEN2.has),
    ),
    covers=_COVERS,
    family="qwen2",
)
