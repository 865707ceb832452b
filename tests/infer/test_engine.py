"""Cached generation against the full forward pass, its independence of shapes and neighbours, and how it ends."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support

from earthmind_jax.infer.engine import Engine, bucket
from earthmind_jax.models import earthmind

CONFIG = support.model()
SAMPLES = tuple(
    support.sample(i, kind, answer=None) for i, kind in enumerate((support.BOTH, ("optical",), ("sar",), support.BOTH))
)
NEW = 7


@functools.cache
def engine():
    return Engine(CONFIG, support.params(CONFIG), support.tokenizer())


@functools.cache
def batch():
    return support.batch(SAMPLES, sensors=support.BOTH, text=96)


@functools.cache
def fused():
    return engine().encode(batch())


def generate(**options):
    return engine().generate(batch(), fused(), **{"max_new": NEW, **options})


@functools.cache
def plain():
    return generate(stop=False, keep_logits=True)


@functools.cache
def _full():
    return jax.jit(lambda params, batch: _states(params, batch))


def _states(params, batch):
    text = earthmind.embed(CONFIG, params, batch.tokens)
    optical, sar = earthmind.encode_sensors(CONFIG, params, batch.optical, batch.sar)
    seen = earthmind.fuse(
        CONFIG, params, optical, sar, batch.optical_valid, batch.sar_valid, text, batch.question, training=False
    )
    rows = seen.tokens.reshape(len(batch.tokens), -1, CONFIG.lm.width)
    hidden = earthmind.language(CONFIG, params, earthmind.place(text, rows, batch.visual_index), batch.lengths).hidden
    return hidden, earthmind.logits(CONFIG, params, hidden)


def full(ids):
    """States and logits of one uncached pass over the prompts followed by ``ids``, at the generated positions.

    Row i of the states is that of the i-th generated token; row i of the logits is what it was chosen from.
    """
    tokens = np.array(batch().tokens)
    starts, count = np.asarray(batch().lengths), len(ids[0])
    for row, (start, new) in enumerate(zip(starts, ids, strict=True)):
        tokens[row, start : start + count] = new
    longer = batch().replace(tokens=tokens, lengths=starts + count)
    hidden, logits = _full()(support.params(CONFIG), longer)
    places = starts[:, None] + np.arange(count)
    rows = np.arange(len(ids))[:, None]
    return np.asarray(hidden)[rows, places], np.asarray(logits)[rows, places - 1]


def test_prompts_differ_in_length():
    assert len(set(np.asarray(batch().lengths).tolist())) > 1


def test_cached_greedy_is_the_argmax_of_the_full_pass():
    made = plain()
    hidden, logits = full(made.ids)
    assert [len(row) for row in made.ids] == [NEW] * 4
    assert len({tuple(row) for row in made.ids}) > 1
    np.testing.assert_array_equal(made.ids, logits.argmax(-1))
    np.testing.assert_allclose(made.logits, logits, atol=2e-4)
    np.testing.assert_allclose(made.hidden, hidden, atol=2e-4)


def test_neither_buckets_nor_neighbours_matter():
    wanted = plain()
    longer = support.batch(SAMPLES, sensors=support.BOTH, text=128, tiles=2)
    made = engine().generate(longer, engine().encode(longer), max_new=NEW, stop=False)
    assert made.ids == wanted.ids
    np.testing.assert_allclose(made.hidden, wanted.hidden, atol=2e-4)
    for i in (0, 2):
        alone = support.batch(SAMPLES[i : i + 1], sensors=support.BOTH, text=96)
        made = engine().generate(alone, engine().encode(alone), max_new=NEW, stop=False)
        assert made.ids == wanted.ids[i : i + 1]
        np.testing.assert_allclose(made.hidden[0], wanted.hidden[i], atol=2e-4)


def test_a_longer_answer_begins_like_a_short_one():
    longer = generate(max_new=20, stop=False)
    assert [row[:NEW] for row in longer.ids] == plain().ids
    assert [len(row) for row in longer.ids] == [20] * 4


def test_every_row_ends_at_its_own_stop_token():
    rows = generate(max_new=20, stop=False).ids
    stopping = Engine(CONFIG, support.params(CONFIG), support.tokenizer())
    stopping.stop_ids = (rows[0][2],)
    made = stopping.generate(batch(), fused(), max_new=20)
    cut = [row[: row.index(stopping.stop_ids[0])] if stopping.stop_ids[0] in row else row for row in rows]
    assert made.ids == cut
    assert len(made.ids[0]) <= 2
    assert made.texts == [support.tokenizer().decode(row).strip() for row in cut]


def test_the_end_of_turn_ends_the_answer():
    eos = support.tokenizer().id("<|im_end|>")
    assert eos in engine().stop_ids
    made = generate(forced={0: 65, 1: 66, 2: eos}, max_new=16)
    assert made.ids == [[65, 66]] * 4
    assert made.hidden.shape[1] == 3, "nothing is generated once every row has stopped"
    ignored = generate(forced={0: 65, 1: 66, 2: eos}, stop=False)
    assert [row[:3] for row in ignored.ids] == [[65, 66, eos]] * 4
    assert [len(row) for row in ignored.ids] == [NEW] * 4


def test_stop_words_of_several_tokens():
    config = dataclasses.replace(CONFIG, template="phi3_chat")
    phi = Engine(config, support.params(CONFIG), support.tokenizer())
    assert phi.stop_words == ("<|end|>",)
    words = support.tokenizer()
    answer = words.encode("a lake")
    spoken = [*answer, *words.encode("<|end|>"), *words.encode("more")]
    assert len(words.encode("<|end|>")) > 1
    made = phi.generate(batch(), fused(), max_new=48, forced=dict(enumerate(spoken)))
    assert made.texts == ["a lake"] * 4
    assert made.ids == [answer] * 4
    assert made.hidden.shape[1] <= len(spoken) + 16
    # A row that ended by its end token does not keep the others waiting for the word.
    both = phi.generate(
        batch(), fused(), max_new=48, forced={**dict(enumerate(answer)), len(answer): config.tokens.eos}
    )
    assert both.ids == [answer] * 4


def test_the_answer_never_leaves_the_context():
    short = dataclasses.replace(CONFIG, max_length=int(batch().lengths.max()) + 2)
    made = Engine(short, support.params(CONFIG), support.tokenizer()).generate(
        batch(), fused(), max_new=NEW, stop=False
    )
    room = short.max_length - np.asarray(batch().lengths)
    assert made.ids == [row[:most] for row, most in zip(plain().ids, room, strict=True)]
    assert min(len(row) for row in made.ids) == 2


def test_seg_states_are_rows_of_the_full_pass():
    seg = CONFIG.tokens.seg
    made = generate(forced={1: seg, 4: seg}, stop=False)
    hidden, _ = full(made.ids)
    assert made.seg_states.shape == (4, 2, CONFIG.lm.width)
    assert made.seg_valid.all()
    np.testing.assert_allclose(made.seg_states, hidden[:, [1, 4]], atol=2e-4)
    none = generate(forced=dict.fromkeys(range(NEW), 65))
    assert none.seg_states.shape[1] == 0
    assert not none.seg_valid.size


def test_temperature_draws_by_seed():
    first, again, other = (generate(temperature=1.5, seed=seed, stop=False).ids for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert first != plain().ids
    assert generate(temperature=1e-4, stop=False).ids == plain().ids


def test_masks_do_not_depend_on_each_other():
    states = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3, CONFIG.lm.width), np.float32))
    logits, iou = engine().masks(batch(), fused(), states)
    side = CONFIG.grounding.mask_size
    assert (logits.shape, iou.shape) == ((4, 3, side, side), (4, 3))
    for i in range(3):
        one, score = engine().masks(batch(), fused(), states[:, i : i + 1])
        np.testing.assert_allclose(one[:, 0], logits[:, i], atol=2e-4)
        np.testing.assert_allclose(score[:, 0], iou[:, i], atol=2e-4)
    assert np.abs(logits[:, 0] - logits[:, 1]).max() > 1e-2


def test_buckets():
    assert [bucket(n, (1, 4, 16)) for n in (0, 1, 2, 4, 5, 17)] == [1, 1, 4, 4, 16, 17]


@pytest.mark.parametrize("answers", [(3, 9, 16)])
def test_one_compilation_for_each_bucket(answers):
    fresh = Engine(CONFIG, support.params(CONFIG), support.tokenizer())
    assert fresh.compiled() == {"encode": 0, "prefill": 0, "decode": 0, "masks": 0}
    for seed in (0, 1):
        samples = [support.sample(i + seed, answer=None) for i in range(4)]
        inputs = support.batch(samples, sensors=support.BOTH, text=96)
        seen = fresh.encode(inputs)
        for count in answers:
            fresh.generate(inputs, seen, max_new=count, temperature=float(seed), seed=seed, forced={seed: 65})
    assert fresh.compiled() == {"encode": 1, "prefill": 1, "decode": 1, "masks": 0}
    fresh.generate(inputs, seen, max_new=17)
    assert fresh.compiled() == {"encode": 1, "prefill": 2, "decode": 2, "masks": 0}
