"""Phi-3 as published (``Phi3ForCausalLM``): one projection for queries, keys and values, one for gate and up."""

from __future__ import annotations

from checkpoints_convert.rules import Ignored, Layout, Rule, under

IGNORED = (
    Ignored("lm_head.weight", "the head is tied to the token embedding, which holds the same numbers"),
    Ignored("model.layers.{i}.self_attn.rotary_emb.inv_freq", "a constant that is computed from the configuration"),
)

PHI3 = Layout(
    name="Phi3",
    rules=(
        Rule("model.embed_tokens.weight", "lm/embed/embedding"),
        *under(
            "model.layers.{i}.",
            (
                Rule("input_layernorm.weight", "norm1/scale"),
                Rule(
                    "self_attn.qkv_proj.weight",
                    ("attn/q/kernel", "attn/k/kernel", "attn/v/kernel"),
                    "{N h|K h|K h} D -> D N h | D K h | D K h",
                ),
                Rule("self_attn.o_proj.weight", "attn/o/kernel", "D (N h) -> N h D"),
                Rule("post_attention_layernorm.weight", "norm2/scale"),
                Rule("mlp.gate_up_proj.weight", ("mlp/gate/kernel", "mlp/up/kernel"), "{F|F} D -> D F"),
                Rule("mlp.down_proj.weight", "mlp/down/kernel", "D F -> F D"),
            ),
            "lm/blocks/",
        ),
        Rule("model.norm.weight", "lm/norm/scale"),
        Rule("lm_head.weight", "lm/head/kernel", "V D -> D V"),
    ),
    ignored=IGNORED,
    has=("model.embed_tokens.weight", "model.layers.{i}.self_attn.qkv_proj.weight"),
    covers=("lm/*",),
    family="phi3",
)
