"""The decoder against transformers' Qwen2 with random weights: grouped queries, padding, long prompts, caching."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earthmind_jax.models import families
from earthmind_jax.models.decoder import Decoder, init_cache
from earthmind_jax.models.functional import apply_module

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LENGTH, LENGTHS = 520, (520, 333, 1)


@pytest.fixture(scope="module", params=["untied", "tied", "window"])
def pair(request):
    """A PyTorch model, our configuration of it, and its weights under our names."""
    published = transformers.Qwen2Config(
        vocab_size=151,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        rope_theta=1e6,
        tie_word_embeddings=request.param == "tied",
        use_sliding_window=request.param == "window",
        sliding_window=100,
        max_window_layers=0,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM(published).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter += 0.3 * torch.randn(parameter.shape)
        elif "embed" not in name:
            parameter *= 5.0  # the default draw leaves attention nearly uniform
    config = families.from_hf({**published.to_dict(), "architectures": ["Qwen2ForCausalLM"]})
    return model, dataclasses.replace(config, remat="none"), _params(model, config)


def _params(model, config):
    state = {name.removeprefix("model."): value.numpy() for name, value in model.state_dict().items()}
    width, heads, kv, head = config.width, config.heads, config.kv_heads, config.head_dim
    params = {"embed/embedding": state["embed_tokens.weight"], "norm/scale": state["norm.weight"]}
    if not config.tie:
        params["head/kernel"] = state["lm_head.weight"].T
    blocks = {
        "norm1/scale": ("input_layernorm.weight", (-1,)),
        "norm2/scale": ("post_attention_layernorm.weight", (-1,)),
        "attn/o/kernel": ("self_attn.o_proj.weight", (heads, head, width)),
        "mlp/down/kernel": ("mlp.down_proj.weight", (config.mlp, width)),
    }
    for name in ("gate", "up"):
        blocks[f"mlp/{name}/kernel"] = (f"mlp.{name}_proj.weight", (width, config.mlp))
    for name, count in (("q", heads), ("k", kv), ("v", kv)):
        blocks[f"attn/{name}/kernel"] = (f"self_attn.{name}_proj.weight", (width, count, head))
        blocks[f"attn/{name}/bias"] = (f"self_attn.{name}_proj.bias", (count, head))
    for ours, (theirs, shape) in blocks.items():
        layers = [state[f"layers.{layer}.{theirs}"].T.reshape(shape) for layer in range(config.depth)]
        params[f"blocks/{ours}"] = np.stack(layers)
    return {f"lm/{path}": jnp.asarray(value) for path, value in params.items()}


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
    decoder = Decoder(config)

    @jax.jit
    def run(params, tokens, lengths):
        embeds = apply_module(decoder, params, "lm", tokens, method="embed")
        out = apply_module(decoder, params, "lm", embeds, lengths=lengths, states=True, attention=True)
        return out, apply_module(decoder, params, "lm", out.hidden, method="logits")

    out, logits = run(params, tokens, jnp.array(LENGTHS))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits[used], expected.logits.numpy()[used], atol=2e-4, rtol=1e-4)
    np.testing.assert_array_equal(out.hidden, out.states[-1])
    for ours, theirs in zip(out.states, expected.hidden_states, strict=True):
        np.testing.assert_allclose(ours[used], theirs.numpy()[used], atol=2e-4, rtol=1e-4)
    for ours, theirs in zip(out.attention, expected.attentions, strict=True):
        np.testing.assert_allclose(ours[used], theirs.numpy().mean(1)[used], atol=2e-4, rtol=1e-4)


def test_greedy_decoding_with_a_cache(pair):
    model, config, params = pair
    steps, prompt = 16, np.random.default_rng(1).integers(0, config.vocab, (1, 150))
    expected = model.generate(
        torch.tensor(prompt),
        attention_mask=torch.ones(1, 150, dtype=torch.int64),
        max_new_tokens=steps,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    decoder = Decoder(config)

    @jax.jit
    def step(params, tokens, cache):
        embeds = apply_module(decoder, params, "lm", tokens, method="embed")
        out = apply_module(decoder, params, "lm", embeds, cache=cache)
        return jnp.argmax(apply_module(decoder, params, "lm", out.hidden[:, -1:], method="logits"), -1), out.cache

    token, cache = step(params, jnp.asarray(prompt), init_cache(config, 1, 150 + steps))
    tokens = [int(token[0, 0])]
    for _ in range(steps - 1):
        token, cache = step(params, token, cache)
        tokens.append(int(token[0, 0]))
    assert tokens == expected[0, 150:].tolist()
    assert cache.length.tolist() == [150 + steps - 1]
