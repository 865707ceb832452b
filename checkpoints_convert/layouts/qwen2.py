"""Qwen2 / Qwen2.5 as published (``Qwen2ForCausalLM``)."""

from __future__ import annotations

from checkpoints_convert.rules import Ignored, Layout, Rule, under

IGNORED = (
    Ignored("lm_head.weight", "the head is tied to the token embedding, which holds the same numbers"),
    Ignored("model.layers.{i}.self_attn.rotary_emb.inv_freq", "a constant that is computed from the configuration"),
)

QWEN2 = Layout(
    name="Qwen2",
    rules=(
        Rule("model.embed_tokens.weight", "lm/embed/embedding"),
        *under(
            "model.layers.{i}.",
            (
                Rule("input_layernorm.weight", "norm1/scale"),
                Rule("self_attn.q_proj.weight", "attn/q/kernel", "(N h) D -> D N h"),
                Rule("self_attn.q_proj.bias", "attn/q/bias", "(N h) -> N h"),
                Rule("self_attn.k_proj.weight", "attn/k/kernel", "(K h) D -> D K h"),
                Rule("self_attn.k_proj.bias", "attn/k/bias", "(K h) -> K h"),
                Rule("self_attn.v_proj.weight", "attn/v/kernel", "(K h) D -> D K h"),
                Rule("self_attn.v_proj.bias", "attn/v/bias", "(K h) -> K h"),
                Rule("self_attn.o_proj.weight", "attn/o/kernel", "D (N h) -> N h D"),
                Rule("post_attention_layernorm.weight", "norm2/scale"),
                Rule("mlp.gate_proj.weight", "mlp/gate/kernel", "F D -> D F"),
                Rule("mlp.up_proj.weight", "mlp/up/kernel", "F D -> D F"),
                Rule("mlp.down_proj.weight", "mlp/down/kernel", "D F -> F D"),
            ),
            "lm/blocks/",
        ),
        Rule("model.norm.weight", "lm/norm/scale"),
        Rule("lm_head.weight", "lm/head/kernel", "V D -> D V"),
    ),
    ignored=IGNORED,
    has=("model.embed_tokens.weight", "model.layers.{i}.self_attn.q_proj.weight"),
    covers=("lm/*",),
    family="qwen2",
)
