"""InternLM2 and 2.5 as published (``InternLM2ForCausalLM``): queries, keys and values in one matrix, group by group."""

from __future__ import annotations

from checkpoints_convert.rules import Ignored, Layout, Rule, under

IGNORED = (
    Ignored("output.weight", "the head is tied to the token embedding, which holds the same numbers"),
    Ignored("model.layers.{i}.attention.rotary_emb.inv_freq", "a constant that is computed from the configuration"),
)

INTERNLM2 = Layout(
    name="InternLM2",
    rules=(
        Rule("model.tok_embeddings.weight", "lm/embed/embedding"),
        *under(
            "model.layers.{i}.",
            (
                Rule("attention_norm.weight", "norm1/scale"),
                Rule(
                    "attention.wqkv.weight",
                    ("attn/q/kernel", "attn/k/kernel", "attn/v/kernel"),
                    "(K {g|1|1} h) D -> D (K g) h | D K h | D K h",
                ),
                Rule("attention.wo.weight", "attn/o/kernel", "D (N h) -> N h D"),
                Rule("ffn_norm.weight", "norm2/scale"),
                Rule("feed_forward.w1.weight", "mlp/gate/kernel", "F D -> D F"),
                Rule("feed_forward.w3.weight", "mlp/up/kernel", "F D -> D F"),
                Rule("feed_forward.w2.weight", "mlp/down/kernel", "D F -> F D"),
            ),
            "lm/blocks/",
        ),
        Rule("model.norm.weight", "lm/norm/scale"),
        Rule("output.weight", "lm/head/kernel", "V D -> D V"),
    ),
    ignored=IGNORED,
    has=("model.tok_embeddings.weight", "model.layers.{i}.attention.wqkv.weight"),
    covers=("lm/*",),
    family="internlm2",
)
