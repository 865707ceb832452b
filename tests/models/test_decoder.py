import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earthmind_jax.config import LmConfig, Precision, RopeConfig
from earthmind_jax.models.decoder import Decoder, init_cache, rope
from earthmind_jax.models.functional import add_prefix, apply_module, init_module, module_axes

CONFIG = LmConfig(vocab=61, width=32, depth=3, heads=4, kv_heads=2, head_dim=8, mlp=48, remat="none")
NTK = dataclasses.replace(
    CONFIG, family="internlm2", qkv_bias=False, rope=RopeConfig(kind="dynamic", factor=2.0, max_position=6)
)
LONGROPE = dataclasses.replace(
    CONFIG,
    family="phi3",
    qkv_bias=False,
    rope=RopeConfig(
        theta=1e4,
        kind="longrope",
        max_position=64,
        original_max_position=8,
        short_factor=(1.0, 1.1, 1.2, 1.3),
        long_factor=(1.0, 2.0, 4.0, 8.0),
    ),
)
TOKENS = jax.random.randint(jax.random.key(7), (3, 12), 0, CONFIG.vocab)


@functools.cache
def weights(config):
    """Random parameters, biases and scales included."""
    params = jax.jit(lambda key: add_prefix(init_module(Decoder(config), key, TOKENS), "lm"))(jax.random.key(0))
    numbers = np.random.default_rng(0)
    noise = {path: 0.3 * numbers.standard_normal(value.shape, np.float32) for path, value in params.items()}
    return {path: value + noise[path] for path, value in params.items()}


@functools.partial(jax.jit, static_argnames=("config", "precision", "fresh", "states", "attention"))
def forward(config, params, tokens, lengths=None, cache=None, precision=Precision(), **options):  # noqa: B008
    """Tokens in, (LmOutput, logits) out."""
    decoder = Decoder(config, precision)
    embeds = apply_module(decoder, params, "lm", tokens, method="embed")
    out = apply_module(decoder, params, "lm", embeds, lengths=lengths, cache=cache, **options)
    return out, apply_module(decoder, params, "lm", out.hidden, method="logits")


@pytest.mark.parametrize("tie", [False, True])
def test_parameters(tie):
    config = dataclasses.replace(CONFIG, tie=tie)
    params = weights(config)
    expected = {
        "lm/embed/embedding": (61, 32),
        "lm/norm/scale": (32,),
        "lm/blocks/norm1/scale": (3, 32),
        "lm/blocks/norm2/scale": (3, 32),
        "lm/blocks/attn/q/kernel": (3, 32, 4, 8),
        "lm/blocks/attn/q/bias": (3, 4, 8),
        **{f"lm/blocks/attn/{name}/kernel": (3, 32, 2, 8) for name in "kv"},
        **{f"lm/blocks/attn/{name}/bias": (3, 2, 8) for name in "kv"},
        "lm/blocks/attn/o/kernel": (3, 4, 8, 32),
        "lm/blocks/mlp/gate/kernel": (3, 32, 48),
        "lm/blocks/mlp/up/kernel": (3, 32, 48),
        "lm/blocks/mlp/down/kernel": (3, 48, 32),
    }
    assert {path: value.shape for path, value in params.items()} == expected | (
        {} if tie else {"lm/head/kernel": (32, 61)}
    )
    axes = add_prefix(module_axes(Decoder(config), TOKENS), "lm")
    assert set(axes) == set(params)
    assert axes["lm/blocks/attn/k/kernel"] == ("layers", "embed", "kv_heads", "head")
    assert axes["lm/embed/embedding"] == ("vocab", "vocab_embed")


@pytest.mark.parametrize("tie", [False, True])
def test_head_is_the_matrix_behind_the_logits(tie):
    config = dataclasses.replace(CONFIG, tie=tie)
    out, logits = forward(config, weights(config), TOKENS)
    head = apply_module(Decoder(config), weights(config), "lm", method="head")
    np.testing.assert_allclose(logits, out.hidden @ head, atol=1e-4)


def test_scan_loop_and_remat_agree():
    params = weights(CONFIG)

    @functools.partial(jax.jit, static_argnums=0)
    def gradient(config, params):
        return jax.value_and_grad(lambda p: jnp.mean(forward(config, p, TOKENS)[1] ** 2))(params)

    value, want = gradient(CONFIG, params)
    for changes in ({"remat": "full"}, {"remat": "dots", "scan": False}):
        other, got = gradient(dataclasses.replace(CONFIG, **changes), params)
        np.testing.assert_allclose(value, other, rtol=1e-5)
        for path in params:
            np.testing.assert_allclose(want[path], got[path], rtol=1e-3, atol=1e-5, err_msg=path)


@pytest.mark.parametrize(
    ("config", "fresh"),
    [(CONFIG, False), (CONFIG, True), (dataclasses.replace(CONFIG, sliding_window=4), False)],
    ids=["full", "fresh", "window"],
)
def test_cached_decoding_equals_the_full_forward(config, fresh):
    """Right-padded prompts of different lengths in one batch, then token by token."""
    params, prompt, total = weights(config), 7, TOKENS.shape[1]
    lengths = jnp.array([7, 4, 1])
    _, full = forward(config, params, TOKENS)
    cache = init_cache(config, 3, total + 2)
    out, logits = forward(config, params, TOKENS[:, :prompt], lengths, cache, fresh=fresh)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(logits[row, :length], full[row, :length], atol=1e-4)
    np.testing.assert_array_equal(out.cache.length, lengths)
    rows = jnp.arange(3)
    for step in range(total - prompt):
        position = lengths + step
        out, logits = forward(config, params, TOKENS[rows, position][:, None], cache=out.cache)
        np.testing.assert_allclose(logits[:, 0], full[rows, position], atol=1e-4)
    np.testing.assert_array_equal(out.cache.length, lengths + total - prompt)


def test_prefill_in_chunks_equals_one_prefill():
    params, cache = weights(CONFIG), init_cache(CONFIG, 3, 12)
    _, full = forward(CONFIG, params, TOKENS)
    first, _ = forward(CONFIG, params, TOKENS[:, :5], cache=cache)
    _, logits = forward(CONFIG, params, TOKENS[:, 5:], cache=first.cache)
    np.testing.assert_allclose(logits, full[:, 5:], atol=1e-4)


def test_padding_changes_nothing():
    params, lengths = weights(CONFIG), jnp.array([5, 9, 12])
    _, logits = forward(CONFIG, params, TOKENS, lengths)
    other = jnp.where(jnp.arange(12) < lengths[:, None], TOKENS, 0)
    _, refilled = forward(CONFIG, params, other, lengths)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(logits[row, :length], refilled[row, :length], atol=1e-5)
    _, alone = forward(CONFIG, params, TOKENS[1:2, :9])
    np.testing.assert_allclose(logits[1, :9], alone[0], atol=1e-4)


def test_capture():
    params, lengths = weights(CONFIG), jnp.array([5, 9, 12])
    out, _ = forward(CONFIG, params, TOKENS, lengths, states=True, attention=True)
    assert out.cache is None
    assert out.states.shape == (4, 3, 12, 32)
    assert out.attention.shape == (3, 3, 12, 12)
    np.testing.assert_array_equal(out.states[0], params["lm/embed/embedding"][TOKENS])
    np.testing.assert_array_equal(out.states[-1], out.hidden)
    np.testing.assert_allclose(out.attention[:, 1, :9].sum(-1), 1.0, atol=1e-5)
    np.testing.assert_array_equal(out.attention[:, 1, :, 9:], 0.0)
    np.testing.assert_array_equal(np.triu(out.attention[0, 2], 1), 0.0)
    plain, _ = forward(CONFIG, params, TOKENS, lengths)
    assert plain.states is None
    assert plain.attention is None
    rows = jnp.array([[3, 11], [8, 0], [0, 5]])
    some, _ = forward(CONFIG, params, TOKENS, lengths, rows=rows)
    wanted = np.take_along_axis(np.asarray(out.attention), np.asarray(rows)[None, :, :, None], axis=2)
    np.testing.assert_allclose(some.attention, wanted, atol=1e-6)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(plain.hidden[row, :length], out.hidden[row, :length], atol=1e-5)


@pytest.mark.parametrize("config", [NTK, LONGROPE], ids=["dynamic", "longrope"])
def test_scaled_rotary_follows_the_longest_row_but_not_its_padding(config):
    params = weights(config)
    short, _ = forward(config, params, TOKENS[:, :6], jnp.array([6, 4, 2]))
    padded, _ = forward(config, params, TOKENS, jnp.array([6, 4, 2]))
    np.testing.assert_allclose(short.hidden[:, :2], padded.hidden[:, :2], atol=1e-5)
    long, _ = forward(config, params, TOKENS, jnp.array([12, 4, 2]))
    assert np.abs(long.hidden[1, :4] - padded.hidden[1, :4]).max() > 1e-3


@pytest.mark.parametrize("config", [NTK, LONGROPE], ids=["dynamic", "longrope"])
def test_cached_keys_keep_the_frequencies_they_were_written_with(config):
    params, cache = weights(config), init_cache(config, 3, 12)
    first, _ = forward(config, params, TOKENS[:, :6], cache=cache)
    second, _ = forward(config, params, TOKENS[:, 6:], cache=first.cache)
    np.testing.assert_array_equal(second.cache.k[:, :, :6], first.cache.k[:, :, :6])
    full, _ = forward(config, params, TOKENS)
    assert np.abs(second.hidden - full.hidden[:, 6:]).max() > 1e-3


def test_longrope_tables():
    original, spread = 8, LONGROPE.rope
    scale = np.sqrt(1 + np.log(64 / 8) / np.log(8))
    for last, factors in ((original - 1, spread.short_factor), (original, spread.long_factor)):
        positions = jnp.array([[0, last]])
        cos, sin = jax.jit(functools.partial(rope, spread, 8))(positions)
        angle = last / (np.array(factors) * 1e4 ** (np.arange(0, 8, 2) / 8))
        np.testing.assert_allclose(cos[0, 1], np.tile(np.cos(angle), 2) * scale, rtol=1e-5)
        np.testing.assert_allclose(sin[0, 1], np.tile(np.sin(angle), 2) * scale, rtol=1e-5)


def test_explicit_positions_move_rotation_alone():
    decoder, params = Decoder(CONFIG), weights(CONFIG)
    embeds = apply_module(decoder, params, "lm", TOKENS, method="embed")
    positions = jnp.broadcast_to(jnp.arange(12), (3, 12))
    default = apply_module(decoder, params, "lm", embeds).hidden
    np.testing.assert_allclose(apply_module(decoder, params, "lm", embeds, positions).hidden, default, atol=1e-5)
    # Rotary attention sees differences of positions only.
    np.testing.assert_allclose(apply_module(decoder, params, "lm", embeds, positions + 5).hidden, default, atol=1e-3)
    assert np.abs(apply_module(decoder, params, "lm", embeds, 2 * positions).hidden - default).max() > 1e-2


def test_bfloat16_stays_close_and_logits_are_float32():
    params = weights(CONFIG)
    half = Precision(param="bfloat16", compute="bfloat16")
    stored = {path: value.astype(jnp.bfloat16) for path, value in params.items()}
    _, logits = forward(CONFIG, {path: value.astype(jnp.float32) for path, value in stored.items()}, TOKENS)
    low, low_logits = forward(CONFIG, stored, TOKENS, precision=half)
    assert low.hidden.dtype == jnp.bfloat16
    assert low_logits.dtype == jnp.float32
    a, b = np.asarray(logits).ravel(), np.asarray(low_logits).ravel()
    assert a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) > 0.999
    cache = init_cache(CONFIG, 3, 12, "bfloat16")
    grown = forward(CONFIG, stored, TOKENS, cache=cache, precision=half)[0].cache
    assert grown.k.dtype == cache.k.dtype
    np.testing.assert_array_equal(grown.k, grown.k.astype(jnp.bfloat16))  # whatever holds them, they are rounded


def test_a_decoding_step_updates_the_cache_in_place():
    """With the cache donated, a step needs no second copy of it."""
    params, cache = weights(CONFIG), init_cache(CONFIG, 2, 4096)
    decoder = Decoder(CONFIG)

    def step(params, embeds, cache):
        return apply_module(decoder, params, "lm", embeds, cache=cache)

    compiled = jax.jit(step, donate_argnums=2).lower(params, jnp.ones((2, 1, 32)), cache).compile()
    memory = compiled.memory_analysis()
    stored = cache.k.nbytes + cache.v.nbytes
    assert memory.alias_size_in_bytes >= stored
    assert memory.temp_size_in_bytes < stored
