"""InternVL 2 / 2.5 as published (``InternVLChatModel``): InternViT, the projector ``mlp1``, and a language model."""

from __future__ import annotations

from checkpoints_convert.layouts.internlm2 import INTERNLM2
from checkpoints_convert.layouts.phi3 import PHI3
from checkpoints_convert.layouts.qwen2 import QWEN2
from checkpoints_convert.rules import Layout, Rule, ignored_under, under

VISION = (
    Rule("embeddings.class_embedding", "class_embedding", "1 1 D -> D"),
    Rule("embeddings.patch_embedding.weight", "patch_embedding/kernel", "D C h w -> h w C D"),
    Rule("embeddings.patch_embedding.bias", "patch_embedding/bias"),
    Rule("embeddings.position_embedding", "position_embedding", "1 S D -> S D"),
    *under(
        "encoder.layers.{i}.",
        (
            Rule("norm1.weight", "norm1/scale"),
            Rule("norm1.bias", "norm1/bias"),
            Rule("attn.qkv.weight", ("attn/q/kernel", "attn/k/kernel", "attn/v/kernel"), "{N h|N h|N h} D -> D N h"),
            Rule("attn.qkv.bias", ("attn/q/bias", "attn/k/bias", "attn/v/bias"), "{N h|N h|N h} -> N h"),
            Rule("attn.q_norm.weight", "attn/q_norm/scale"),
            Rule("attn.k_norm.weight", "attn/k_norm/scale"),
            Rule("attn.proj.weight", "attn/out/kernel", "D (N h) -> N h D"),
            Rule("attn.proj.bias", "attn/out/bias"),
            Rule("ls1", "ls1"),
            Rule("norm2.weight", "norm2/scale"),
            Rule("norm2.bias", "norm2/bias"),
            Rule("mlp.fc1.weight", "mlp/fc1/kernel", "O I -> I O"),
            Rule("mlp.fc1.bias", "mlp/fc1/bias"),
            Rule("mlp.fc2.weight", "mlp/fc2/kernel", "O I -> I O"),
            Rule("mlp.fc2.bias", "mlp/fc2/bias"),
            Rule("ls2", "ls2"),
        ),
        "blocks/",
    ),
)

PROJECTOR = (
    Rule("0.weight", "norm/scale"),
    Rule("0.bias", "norm/bias"),
    Rule("1.weight", "fc1/kernel", "O I -> I O"),
    Rule("1.bias", "fc1/bias"),
    Rule("3.weight", "fc2/kernel", "O I -> I O"),
    Rule("3.bias", "fc2/bias"),
)

INTERN_VIT = Layout(
    name="InternViT",
    rules=under("", VISION, "vision/"),
    has=("embeddings.class_embedding", "encoder.layers.{i}.attn.qkv.weight"),
    covers=("vision/*",),
)

ENCODER = (*under("vision_model.", VISION, "vision/"), *under("mlp1.", PROJECTOR, "projector/"))

ENCODER_HAS = ("vision_model.embeddings.class_embedding", "mlp1.1.weight")


def _internvl(language: Layout) -> Layout:
    return Layout(
        name=f"InternVL ({language.name})",
        rules=(*ENCODER, *under("language_model.", language.rules)),
        ignored=ignored_under("language_model.", language.ignored),
        has=(*ENCODER_HAS, *("language_model." + name for name in language.has)),
        covers=("vision/*", "projector/*", "lm/*"),
        family=language.family,
    )


INTERNVL = tuple(map(_internvl, (QWEN2, INTERNLM2, PHI3)))

INTERNVL_ENCODER = Layout(
    name="InternVL without its language model",
    rules=ENCODER,
    has=ENCODER_HAS,
    lacks=("language_model.*",),
    covers=("vision/*", "projector/*"),
)
