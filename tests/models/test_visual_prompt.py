"""The learned prompt encoder: nothing until it is trained, then what the copies of visual tokens cannot say."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import support

from checkpoints_convert.export import find_layout, tensors_of
from earthmind_jax import checkpoint
from earthmind_jax.config import EarthMindConfig, MeshConfig, VisualPromptConfig, from_json, to_json
from earthmind_jax.data.records import Sample, Turn
from earthmind_jax.distributed.mesh import make_mesh
from earthmind_jax.distributed.sharding import param_shardings
from earthmind_jax.errors import UserError
from earthmind_jax.models import earthmind
from earthmind_jax.models.visual_prompt import region_numbers

PLAIN = support.model(grounding=None)
CONFIG = dataclasses.replace(PLAIN, prompts=VisualPromptConfig(width=32, heads=2, mlp=48, tokens=24, regions=4))
PREFIX = "visual_prompt/"


def box(rows, columns):
    region = np.zeros((32, 32), bool)
    region[rows, columns] = True
    return region


LEFT, RIGHT = box(slice(0, 16), slice(0, 8)), box(slice(8, 24), slice(16, 32))


def sample(seed, regions=(LEFT, RIGHT), answer="No", **images):
    picture = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)
    question = "Does {region} touch {region}?" if regions else "Is there a lake?"
    turn = Turn(question, answer, region=tuple(regions) or None)
    return Sample(f"s{seed}", (turn,), **{"optical": picture, **images})


@functools.cache
def batch():
    samples = [sample(0), sample(1, ()), sample(2, (RIGHT,))]
    return support.batch(samples, CONFIG, text=256)


@functools.cache
def params():
    """As drawn for tests, except for the prompt encoder, which is new."""
    drawn = {k: v for k, v in support.params(CONFIG).items() if not k.startswith(PREFIX)}
    paths = [path for path in earthmind.shapes(CONFIG) if path.startswith(PREFIX)]
    new = jax.jit(lambda key: earthmind.init(CONFIG, key, only=paths))(jax.random.key(1))
    return drawn | {k: np.asarray(v) for k, v in new.items()}


@functools.cache
def logits_of(config):
    def run(params, batch):
        hidden = earthmind.forward(config, params, batch).hidden
        return earthmind.logits(config, params, hidden)

    return jax.jit(run)


def test_untrained_it_changes_no_bit():
    plain = {k: v for k, v in params().items() if not k.startswith(PREFIX)}
    assert set(earthmind.shapes(PLAIN)) == set(plain)
    assert len(params()) > len(plain)
    with_it, without = logits_of(CONFIG)(params(), batch()), logits_of(PLAIN)(plain, batch())
    np.testing.assert_array_equal(with_it, without)


def test_other_parameters_begin_with_the_same_numbers():
    paths = ["projector/fc1/kernel", "lm/blocks/attn/q/kernel", "vision/class_embedding"]
    one, two = (jax.jit(functools.partial(earthmind.init, c, only=paths))(jax.random.key(3)) for c in (PLAIN, CONFIG))
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_region_numbers():
    tokens = jnp.array([[5, 90, 7, 7, 91, 7, 90, 7, 91, 7]])
    index = jnp.array([[0, -1, 1, 2, -1, 3, -1, 1, -1, -1]])
    assert region_numbers(tokens, index, 90, 91).tolist() == [[-1, -1, 0, 0, -1, -1, -1, 1, -1, -1]]


def _trained():
    """Parameters whose last map is not zero."""
    made = dict(params())
    kernel = made[f"{PREFIX}out/kernel"]
    made[f"{PREFIX}out/kernel"] = np.random.default_rng(0).standard_normal(kernel.shape).astype(np.float32)
    return made


@functools.cache
def corrected():
    return jax.jit(functools.partial(_change, CONFIG))


def test_it_touches_region_tokens_and_nothing_else():
    tokens, index = jnp.asarray(batch().tokens), jnp.asarray(batch().visual_index)
    numbers = np.asarray(region_numbers(tokens, index, CONFIG.tokens.vp_start, CONFIG.tokens.vp_end))
    assert [len(set(row[row >= 0].tolist())) for row in numbers] == [2, 0, 1]
    change = np.abs(corrected()(_trained(), batch())).max(-1)
    np.testing.assert_array_equal(change > 0, numbers >= 0)


def test_neither_padding_nor_neighbours_matter():
    wanted = corrected()(_trained(), batch())
    alone = support.batch([sample(0)], CONFIG, text=320, tiles=2)
    np.testing.assert_allclose(corrected()(_trained(), alone)[0, :256], wanted[0], atol=2e-5)


def test_tokens_beyond_the_limit_stay_as_they_are():
    few = dataclasses.replace(CONFIG, prompts=dataclasses.replace(CONFIG.prompts, tokens=3))
    run = jax.jit(functools.partial(_change, few))
    change = np.abs(run(_trained(), batch())).max(-1)
    assert (change > 0).sum(-1).tolist() == [3, 0, 3]


def _placed(config, params, batch):
    text = earthmind.embed(config, params, batch.tokens)
    visual = earthmind.encode(config, params, batch.optical).reshape(len(text), -1, text.shape[-1])
    return earthmind.place(text, visual, batch.visual_index), visual


def _change(config, params, batch):
    embeds, visual = _placed(config, params, batch)
    return earthmind.refine(config, params, embeds, visual, batch.tokens, batch.visual_index) - embeds


def test_it_learns_what_copies_cannot_say():
    """Four pictures that are one colour everywhere: copies of their tokens do not say which half is marked (every token
    holds the same), so words alone cannot be right more than half of the time; the encoder knows the place."""
    samples = []
    for value in (40, 90, 150, 220):
        grey = np.full((32, 32, 3), value, np.uint8)
        for answer, half in (("Yes", slice(0, 16)), ("No", slice(16, 32))):
            samples.append(sample(0, (box(slice(0, 32), half),), answer, optical=grey))
    data = support.batch(samples, CONFIG, text=192)
    last = np.asarray(data.loss_mask).argmax(1) - 1  # where the answer is about to begin
    target = np.asarray(data.tokens)[np.arange(8), last + 1]
    words = np.unique(target)
    assert len(words) == 2
    frozen = {k: jnp.asarray(v) for k, v in params().items() if not k.startswith(PREFIX)}
    learned = {k: jnp.asarray(v) for k, v in params().items() if k.startswith(PREFIX)}
    optimiser = optax.adam(3e-3)
    embeds, visual = jax.jit(functools.partial(_placed, PLAIN))(frozen, data)

    def loss(learned):
        given = earthmind.refine(CONFIG, learned, embeds, visual, data.tokens, data.visual_index)
        hidden = earthmind.language(CONFIG, frozen, given, data.lengths).hidden[jnp.arange(8), last]
        said = earthmind.logits(CONFIG, frozen, hidden[:, None])[:, 0, words]
        return optax.softmax_cross_entropy_with_integer_labels(said, jnp.asarray(target == words[1], int)).mean()

    @jax.jit
    def step(learned, state):
        value, gradient = jax.value_and_grad(loss)(learned)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(learned, updates), state, value

    state, values = optimiser.init(learned), []
    for _ in range(40):
        learned, state, value = step(learned, state)
        values.append(float(value))
    assert values[0] > 0.6
    assert values[-1] < 0.1
    still = {k for k, v in learned.items() if np.abs(v - params()[k]).max() == 0}
    assert not {path for path in still if not path.endswith("/k/bias")}  # a bias of all keys changes no attention


def test_sharding_covers_it():
    axes, shapes = earthmind.param_axes(CONFIG), earthmind.shapes(CONFIG)
    assert set(axes) == set(shapes)
    shardings = param_shardings(shapes, axes, make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    split = [p for p, s in shardings.items() if p.startswith(PREFIX) and any(s.spec)]
    assert {p for p in shapes if p.startswith(PREFIX) and p.endswith("kernel")} <= set(split)


def test_checkpoints_hold_it(tmp_path):
    assert from_json(EarthMindConfig, to_json(CONFIG)) == CONFIG
    checkpoint.save(tmp_path / "a", CONFIG, params(), support.tokenizer(), {})
    config, loaded = checkpoint.load(tmp_path / "a")
    assert config.prompts == CONFIG.prompts
    assert set(loaded) == set(params())
    for path in loaded:
        np.testing.assert_array_equal(loaded[path], params()[path])


def test_bad_settings_are_refused():
    for bad in ({"heads": 3}, {"tokens": 0}):
        with pytest.raises(UserError, match=r"prompts\."):
            VisualPromptConfig(**bad)


def test_exports_leave_it_out():
    """No published layout has a place for it, as for the maps of fusion."""
    layout = find_layout("internvl", CONFIG)
    plain = {k: v for k, v in params().items() if not k.startswith(PREFIX)}
    assert set(tensors_of(layout, params())) == set(tensors_of(layout, plain))
