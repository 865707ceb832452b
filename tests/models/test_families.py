import jax
import jax.numpy as jnp
import pytest

from earthmind_jax.config import LmConfig
from earthmind_jax.data import templates
from earthmind_jax.errors import UserError
from earthmind_jax.models.decoder import Decoder
from earthmind_jax.models.families import FAMILIES, find, from_hf
from earthmind_jax.models.functional import apply_module, init_module

QWEN = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vocab_size": 151674,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
    "use_sliding_window": False,
    "sliding_window": 32768,
    "max_window_layers": 36,
    "bos_token_id": 151643,
    "torch_dtype": "bfloat16",
}


def test_published_configuration_is_the_preset():
    assert from_hf(QWEN) == FAMILIES["qwen2"].presets["qwen2_5_3b"]


INTERNLM2 = {
    "architectures": ["InternLM2ForCausalLM"],
    "model_type": "internlm2",
    "auto_map": {"AutoModel": "modeling_internlm2.InternLM2ForCausalLM"},
    "attn_implementation": "flash_attention_2",
    "bias": False,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 92553,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000,
    "rope_scaling": {"type": "dynamic", "factor": 2.0},
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
}
FACTORS = {"short_factor": [1.0 + 0.1 * i for i in range(48)], "long_factor": [1.0 + i for i in range(48)]}
PHI3 = {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32020,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "rope_scaling": {"type": "su", **FACTORS},
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "sliding_window": 262144,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
}


def test_internlm2():
    assert from_hf(INTERNLM2) == FAMILIES["internlm2"].presets["internlm2_5_7b"]
    with pytest.raises(UserError, match="bias = True"):
        from_hf({**INTERNLM2, "bias": True})


def test_phi3():
    config = from_hf(PHI3)
    assert (config.family, config.qkv_bias, config.head_dim, config.sliding_window) == ("phi3", False, 96, 262144)
    rope = config.rope
    assert (rope.kind, rope.theta, rope.max_position, rope.original_max_position) == ("longrope", 1e4, 131072, 4096)
    assert rope.short_factor == tuple(FACTORS["short_factor"])
    assert rope.long_factor == tuple(FACTORS["long_factor"])
    newer = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 4096, **FACTORS}
    newer["factor"] = 32.0
    assert from_hf({**PHI3, "rope_scaling": None, "rope_theta": None, "rope_parameters": newer}) == config
    plain = from_hf({**PHI3, "rope_scaling": None, "sliding_window": 2047, "max_position_embeddings": 4096})
    assert (plain.rope.kind, plain.sliding_window) == ("default", 2047)
    without_eps = {name: value for name, value in PHI3.items() if name != "rms_norm_eps"}
    assert from_hf(without_eps) == config


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"original_max_position_embeddings": None}, "original_max_position_embeddings"),
        ({"rope_scaling": {"type": "su", "short_factor": [1.0] * 48, "long_factor": [1.0]}}, "48 rotary"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_scaling": {"type": "su", "factor": 4.0, **FACTORS}}, "factor"),
        ({"attention_bias": True}, "attention_bias"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)
def test_phi3_that_would_differ_is_refused(changes, word):
    with pytest.raises(UserError, match=word):
        from_hf({**PHI3, **changes})


def test_found_by_architecture_or_model_type():
    assert find({"architectures": ["Qwen2ForCausalLM"]}).name == "qwen2"
    assert find({"model_type": "qwen2"}).name == "qwen2"
    with pytest.raises(UserError, match="'Qwen2ForCausalLM'"):
        find({"architectures": ["Qwen2ForCasualLM"]})
    with pytest.raises(UserError, match="model_type"):
        find({})


@pytest.mark.parametrize(
    ("spelling", "kind", "factor"),
    [
        ({"rope_scaling": None}, "default", 1.0),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic", 2.0),
        ({"rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 4}}, "linear", 4.0),
        ({"rope_theta": None, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}, "default", 1.0),
    ],
)
def test_rotary_spellings(spelling, kind, factor):
    rope = from_hf({**QWEN, **spelling}).rope
    assert (rope.kind, rope.factor, rope.theta, rope.max_position) == (kind, factor, 1e6, 32768)


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ({}, None),
        ({"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 64}, 64),
        ({"use_sliding_window": True, "sliding_window": 64}, None),  # begins behind the last layer
        ({"use_sliding_window": True, "sliding_window": 64, "layer_types": ["sliding_attention"] * 36}, 64),
    ],
)
def test_sliding_window(changes, window):
    assert from_hf({**QWEN, **changes}).sliding_window == window


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"use_sliding_window": True, "max_window_layers": 10, "sliding_window": 64}, "max_window_layers"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0, "beta_fast": 32}}, "beta_fast"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"logit_scale": 2.0}, "logit_scale"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_attention_heads": 15}, "multiple"),
    ],
)
def test_what_would_change_the_result_is_refused(changes, word):
    with pytest.raises(UserError, match=word):
        from_hf({**QWEN, **changes})


def test_unknown_but_switched_off_is_fine():
    assert from_hf({**QWEN, "some_new_switch": False, "another": None}) == from_hf(QWEN)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_records_are_complete(name):
    family = FAMILIES[name]
    assert family.name == name
    assert family.architectures
    assert templates.get_template(family.template).name == family.template
    assert all(isinstance(preset, LmConfig) and preset.family == name for preset in family.presets.values())
    tokens = jnp.zeros((1, 4), jnp.int32)
    decoder = Decoder(family.tiny)
    params = init_module(decoder, jax.random.key(0), tokens)
    assert apply_module(decoder, params, "", tokens, method="init_all").shape == (1, 4, family.tiny.vocab)
