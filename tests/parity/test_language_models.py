"""The decoder against transformers with random weights: grouped queries, padding, long prompts, caching, bfloat16.

Qwen2 and Phi-3 are compared with their own classes. InternLM2 has none there: its arithmetic is that of Llama, whose
weights are brought into InternLM2's names and grouped matrix. Weights go through the converter.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from checkpoints_convert.convert import convert
from earthmind_jax.config import Precision
from earthmind_jax.models.decoder import Decoder, init_cache
from earthmind_jax.models.functional import apply_module

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

LENGTH, LENGTHS = 520, (520, 333, 1)
SIZES = {
    "vocab_size": 151,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "attn_implementation": "eager",
}
FACTORS = {"short_factor": [1.0, 1.1, 1.3, 1.6], "long_factor": [1.0, 2.7, 5.5, 12.0]}


def longrope(original):
    return {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": original, **FACTORS}


QWEN2 = {**SIZES, "rope_theta": 1e6}
PHI3 = {**SIZES, "rope_theta": 1e4}
LLAMA = {**SIZES, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 2.0}}
CASES = {
    "qwen2": ("Qwen2", QWEN2),
    "qwen2_tied": ("Qwen2", {**QWEN2, "tie_word_embeddings": True}),
    "qwen2_window": ("Qwen2", {**QWEN2, "use_sliding_window": True, "sliding_window": 100, "max_window_layers": 0}),
    "phi3_window": ("Phi3", {**PHI3, "sliding_window": 100}),
    "phi3_short": ("Phi3", {**PHI3, "rope_parameters": longrope(600), "original_max_position_embeddings": 600}),
    # The switch lies inside of both tests: of the batch, and of the decoded answer.
    "phi3_long": ("Phi3", {**PHI3, "rope_parameters": longrope(160), "original_max_position_embeddings": 160}),
    "internlm2_short": ("Llama", LLAMA),
    "internlm2_long": ("Llama", {**LLAMA, "max_position_embeddings": 160}),
}


def published(name):
    """A PyTorch model with random weights; its configuration and its tensors under the published names."""
    kind, options = CASES[name]
    made = getattr(transformers, f"{kind}Config")(**options)
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(made).eval().requires_grad_(False)
    for path, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter += 0.3 * torch.randn(parameter.shape)
        elif "embed" not in path:
            parameter *= 5.0  # the default draw leaves attention nearly uniform
    config = {**made.to_dict(), "architectures": [f"{kind}ForCausalLM"]}
    tensors = {path: tensor.clone() for path, tensor in model.state_dict().items()}
    if options["tie_word_embeddings"]:
        del tensors["lm_head.weight"]
    return model, *((config, tensors) if kind != "Llama" else internlm2(config, tensors))


def internlm2(config, llama):
    """Llama's configuration and tensors as those of InternLM2: in each group its queries, then its key and value."""
    group = config["num_attention_heads"] // config["num_key_value_heads"]
    names = {
        "input_layernorm": "attention_norm",
        "self_attn.o_proj": "attention.wo",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2",
    }
    tensors = {
        "model.tok_embeddings.weight": llama["model.embed_tokens.weight"],
        "model.norm.weight": llama["model.norm.weight"],
        "output.weight": llama["lm_head.weight"],
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        tensors |= {f"{prefix}{ours}.weight": llama[f"{prefix}{theirs}.weight"] for theirs, ours in names.items()}
        q, k, v = (llama[f"{prefix}self_attn.{x}_proj.weight"] for x in "qkv")
        rows = []
        for queries, key, value in zip(
            q.split(group * config["head_dim"]), k.split(config["head_dim"]), v.split(config["head_dim"]), strict=True
        ):
            rows += [queries, key, value]
        tensors[f"{prefix}attention.wqkv.weight"] = torch.cat(rows)
    kept = {name: value for name, value in config.items() if name not in ("attention_bias", "mlp_bias", "head_dim")}
    return {**kept, "architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "bias": False}, tensors


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    """A PyTorch model, our configuration of it, and its weights under our names."""
    model, config, tensors = published(request.param)
    return model, *converted(config, tensors, tmp_path_factory.mktemp(request.param))


def converted(config, tensors, directory):
    safetensors_torch.save_file(tensors, directory / "model.safetensors")
    config, params = convert(directory, config=config, place=lambda path, array: jnp.asarray(array))
    return dataclasses.replace(config, remat="none"), params


def forward(config, params, tokens, lengths, precision=Precision(), **options):  # noqa: B008
    decoder = Decoder(config, precision)

    @jax.jit
    def run(params, tokens, lengths):
        embeds = apply_module(decoder, params, "lm", tokens, method="embed")
        out = apply_module(decoder, params, "lm", embeds, lengths=lengths, **options)
        return out, apply_module(decoder, params, "lm", out.hidden, method="logits")

    return run(params, tokens, lengths)


def test_states_attention_and_logits_of_a_padded_batch(pair):
    model, config, params = pair
    tokens = np.random.default_rng(0).integers(0, config.vocab, (len(LENGTHS), LENGTH))
    used = np.arange(LENGTH) < np.array(LENGTHS)[:, None]
    expected = model(
        torch.tensor(tokens),
        attention_mask=torch.tensor(used.astype(np.int64)),
        output_hidden_states=True,
        output_attentions=True,
    )
    out, logits = forward(config, params, tokens, jnp.array(LENGTHS), states=True, attention=True)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits[used], expected.logits.numpy()[used], atol=2e-4, rtol=1e-4)
    np.testing.assert_array_equal(out.hidden, out.states[-1])
    for ours, theirs in zip(out.states, expected.hidden_states, strict=True):
        np.testing.assert_allclose(ours[used], theirs.numpy()[used], atol=2e-4, rtol=1e-4)
    for ours, theirs in zip(out.attention, expected.attentions, strict=True):
        np.testing.assert_allclose(ours[used], theirs.numpy().mean(1)[used], atol=2e-4, rtol=1e-4)


def test_greedy_decoding_with_a_cache(pair):
    """Step by step: scaled frequencies follow the length, and cached keys keep those that they were written with."""
    model, config, params = pair
    steps, prompt = 16, np.random.default_rng(1).integers(0, config.vocab, (1, 150))
    expected, memory = [], transformers.DynamicCache()
    feed = torch.tensor(prompt)
    for _ in range(steps):  # not generate(), which for Phi-3 forgets the cache at the switch
        expected.append(model(feed, past_key_values=memory, use_cache=True).logits[0, -1].numpy())
        feed = torch.tensor([[int(expected[-1].argmax())]])
    decoder = Decoder(config)

    @jax.jit
    def step(params, tokens, cache):
        embeds = apply_module(decoder, params, "lm", tokens, method="embed")
        out = apply_module(decoder, params, "lm", embeds, cache=cache)
        return apply_module(decoder, params, "lm", out.hidden[:, -1:], method="logits"), out.cache

    logits, cache = step(params, jnp.asarray(prompt), init_cache(config, 1, 150 + steps))
    ours = [logits[0, 0]]
    for _ in range(steps - 1):
        logits, cache = step(params, jnp.argmax(logits, -1), cache)
        ours.append(logits[0, 0])
    np.testing.assert_array_equal(np.argmax(ours, -1), np.argmax(expected, -1))
    np.testing.assert_allclose(ours, expected, atol=2e-4, rtol=1e-4)
    assert cache.length.tolist() == [150 + steps - 1]


@pytest.mark.parametrize("name", ["qwen2", "phi3_long", "internlm2_long"])
def test_bfloat16_drifts_no_more_than_in_pytorch(name, tmp_path):
    """Relative error of states and logits against float32 with the same, rounded, weights."""
    model, config, tensors = published(name)
    tensors = {path: tensor.bfloat16() for path, tensor in tensors.items()}
    config, half = converted(config, tensors, tmp_path)
    full = {path: value.astype(jnp.float32) for path, value in half.items()}
    tokens, lengths = np.random.default_rng(2).integers(0, config.vocab, (2, LENGTH)), jnp.array([LENGTH] * 2)

    def theirs(dtype):
        for parameter in model.parameters():  # alone, for rotary frequencies stay in float32
            parameter.data = parameter.data.bfloat16().to(dtype)
        out = model(torch.tensor(tokens), output_hidden_states=True)
        return torch.stack(out.hidden_states).float().numpy(), out.logits.float().numpy()

    def ours(params, dtype):
        out, logits = forward(config, params, tokens, lengths, Precision(param=dtype, compute=dtype), states=True)
        return np.asarray(out.states, np.float32), np.asarray(logits)

    results = theirs(torch.float32), theirs(torch.bfloat16), ours(full, "float32"), ours(half, "bfloat16")
    for exact, expected, close, got in zip(*results, strict=True):
        assert drift(close, exact) < 1e-5
        assert 1e-3 < drift(got, close) < 1.1 * drift(expected, exact) < 0.02


def drift(low, high):
    """Root of the mean square difference, relative to that of ``high``."""
    return float(np.linalg.norm(low - high) / np.linalg.norm(high))
