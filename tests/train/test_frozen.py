"""The frozen base of a run: written once or referred to, checked at every start, and merged with what was trained."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import support

from earthmind_jax import checkpoint
from earthmind_jax.config import Group, LoraConfig, MeshConfig, Precision
from earthmind_jax.distributed.mesh import make_mesh
from earthmind_jax.errors import UserError
from earthmind_jax.frozen import BASE, REFERENCE, Base
from earthmind_jax.models import api
from earthmind_jax.train import checkpoint as training
from earthmind_jax.train.result import write_result
from earthmind_jax.train.state import create, state_shardings

PLAIN = support.model(grounding=None)
ADAPTED = dataclasses.replace(
    PLAIN,
    lm=dataclasses.replace(PLAIN.lm, lora=LoraConfig(rank=2, alpha=4.0)),
    precision=Precision(compute="bfloat16"),
)
GROUPS = (Group(pattern="lora/", learning_rate=1.0), Group(pattern=".*"))
RUN = support.run_config(ADAPTED, GROUPS)


def mesh(*sizes):
    data, fsdp, tensor = sizes
    return make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: data * fsdp * tensor])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(start, run that wrote its base, run that refers to start, state): both runs with the steps 3 and 6."""
    root = tmp_path_factory.mktemp("frozen")
    params = support.params(ADAPTED)
    checkpoint.save(root / "start", ADAPTED, params, support.tokenizer(), {})
    state, _ = create(RUN, mesh(1, 2, 1), params)
    for name in ("own", "referring"):
        training.start_run(root / name, RUN, support.tokenizer())
        if name == "referring":
            training.refer_to_base(root / name, root / "start", state)
        with training.manager(root / name, 2) as steps:
            for step in (3, 6):
                training.save_step(steps, state, step, {"batches": step})
    return root / "start", root / "own", root / "referring", jax.device_get(state)


def size(directory):
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def equal(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def restored(run):
    abstract, shardings = state_shardings(RUN, mesh(1, 4, 1))
    with training.manager(run, 2) as steps:
        return training.restore_step(steps, steps.latest_step(), abstract, shardings)


def test_steps_hold_no_frozen_weights(made):
    _, own, referring, state = made
    for run in (own, referring):
        for step in ("3", "6"):
            found = checkpoint.stored(run / checkpoint.STEPS / step / checkpoint.TRAINED, run)
            assert set(found) == set(state.trainable)
    assert [p.name for p in (referring / BASE).iterdir()] == [REFERENCE]
    assert json.loads((referring / BASE / REFERENCE).read_text())["weights"] == "../start/weights"
    assert json.loads((own / BASE / REFERENCE).read_text())["weights"] == "base/weights"
    assert size(own / BASE) > size(referring / BASE)


@pytest.mark.parametrize("name", ["own", "referring"])
def test_the_next_stage_shares_the_base(made, tmp_path, name, monkeypatch):
    """Where it freezes nothing that the stage before trained; otherwise it writes its own. By relative paths, too."""
    monkeypatch.chdir(tmp_path)
    before = dict(zip(("own", "referring"), made[1:3], strict=True))[name]
    before, tmp_path = Path(os.path.relpath(before)), Path()
    params = {path: np.asarray(x) for path, x in checkpoint.load(before)[1].items()}
    fewer = (Group(pattern="lora/lm/blocks/attn/", learning_rate=1.0), Group(pattern=".*"))
    for groups, shares in ((GROUPS, True), (fewer, False)):
        run = tmp_path / f"next-{shares}"
        config = support.run_config(ADAPTED, groups)
        state, _ = create(config, mesh(1, 2, 1), params)
        training.start_run(run, config, support.tokenizer())
        training.refer_to_base(run, before, state_shardings(config, mesh(1, 2, 1))[0])
        with training.manager(run, 2) as steps:
            training.save_step(steps, state, 1, {"batches": 1})
        equal(dict(checkpoint.load(run)[1]), jax.device_get(state.params))
        assert (run / BASE / checkpoint.WEIGHTS).exists() != shares
        assert (size(run / BASE) < 10_000) == shares
        if shares:
            assert Base.read(run).weights == Base.read(before).weights


@pytest.mark.parametrize(("rows", "shares"), [(5, True), (7, True), (3, False)])
def test_the_next_stage_trains_rows_of_the_same_vocabulary(tmp_path, rows, shares):
    def run(number, rows, params, base=None):
        groups = (Group(pattern="lm/(embed|head)/", learning_rate=1.0, rows=rows), Group(pattern=".*"))
        config, place = support.run_config(PLAIN, groups), tmp_path / str(number)
        state, _ = create(config, mesh(1, 1, 1), params)
        state = state.replace(trainable={path: x + 1 for path, x in state.trainable.items()})
        training.start_run(place, config, support.tokenizer())
        if base is not None:
            training.refer_to_base(place, base, state)
        with training.manager(place, 2) as steps:
            training.save_step(steps, state, 1, {"batches": 1})
        return place, {path: np.asarray(x) for path, x in state.params.items()}

    first, params = run(1, 5, support.params(PLAIN))
    second, params = run(2, rows, params, first)
    assert (second / BASE / checkpoint.WEIGHTS).exists() != shares
    equal({path: np.asarray(x) for path, x in checkpoint.load(second)[1].items()}, params)


@pytest.mark.parametrize("name", ["own", "referring"])
def test_what_is_restored_and_loaded_is_what_was_trained(made, name):
    run, state = dict(zip(("own", "referring"), made[1:3], strict=True))[name], made[3]
    again, position = restored(run)
    assert position == {"batches": 6}
    equal(jax.device_get(again), state)
    assert {x.dtype for x in again.frozen.values()} == {np.dtype("bfloat16")}
    config, params = checkpoint.load(run)
    assert config == ADAPTED
    equal(dict(params), state.params)


def test_run_and_start_can_move_together(made, tmp_path):
    for directory in (made[0], made[2]):
        shutil.copytree(directory, tmp_path / "elsewhere" / directory.name)
    equal(dict(checkpoint.load(tmp_path / "elsewhere" / made[2].name)[1]), made[3].params)


def changed(directory):
    """Flip one bit of the largest file, keeping its time and size."""
    import os

    file = max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    before, content = file.stat(), bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    return file


def damage(kind, weights):
    if kind == "changed":
        changed(weights)
    elif kind == "a file is gone":
        max((p for p in weights.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size).unlink()
    else:
        shutil.rmtree(weights)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("changed", "are not those that .* was trained with: .* has changed"),
        ("a file is gone", "are not those that .* was trained with: .* is missing"),
        ("all gone", "which does not exist"),
    ],
)
@pytest.mark.parametrize("name", ["own", "referring"])
def test_another_base_is_refused(made, tmp_path, kind, says, name):
    start, own, referring, _ = made
    for directory in (start, own, referring):
        shutil.copytree(directory, tmp_path / directory.name)
    damage(kind, tmp_path / ("own/base/weights" if name == "own" else "start/weights"))
    for use in (checkpoint.load, restored):
        with pytest.raises(UserError, match=says) as error:
            use(tmp_path / name)
        assert "\n" not in str(error.value)


def test_a_lost_or_damaged_note(made, tmp_path):
    run = shutil.copytree(made[1], tmp_path / "run")
    (run / BASE / REFERENCE).write_text("{")
    with pytest.raises(UserError, match=r"base\.json that says where cannot be read"):
        checkpoint.load(run)
    (run / BASE / REFERENCE).unlink()
    with pytest.raises(UserError, match=r"base\.json that says where cannot be read"):
        restored(run)


def test_every_file_is_someones_share(made):
    base = Base.read(made[1])
    damaged = dataclasses.replace(base, files=dict.fromkeys(base.files, "0" * 64))
    found = [damaged.problem(share, 3) for share in range(3)]
    assert all(found)
    assert len(set(found)) == 3
    assert [base.problem(share, 3) for share in range(3)] == [None] * 3


def test_adapters_are_small_and_load_with_their_base(made, tmp_path, monkeypatch):
    _, own, referring, state = made
    monkeypatch.chdir(tmp_path)
    for run in (Path(os.path.relpath(run)) for run in (own, referring)):
        out = tmp_path / f"{run.name}_adapters"
        written = write_result(run, out, "adapters")
        assert written == size(out)
        assert size(out / checkpoint.TRAINED) < size(run / checkpoint.STEPS / "6")
        assert set(checkpoint.stored(out / checkpoint.TRAINED, out)) == set(state.trainable)
        equal(dict(checkpoint.load(out)[1]), state.params)
        # A result of a result is the same again.
        write_result(out, tmp_path / f"{run.name}_again", "adapters")
        equal(dict(checkpoint.load(tmp_path / f"{run.name}_again")[1]), state.params)


def test_the_merged_form_is_the_merged_weights_to_the_bit(made, tmp_path):
    _, own, _, state = made
    assert any(np.abs(x).max() > 0 for path, x in state.trainable.items() if path.endswith("/b"))
    write_result(own, tmp_path / "merged", "merged")
    config, params = checkpoint.load(tmp_path / "merged")
    assert config == dataclasses.replace(ADAPTED, lm=dataclasses.replace(ADAPTED.lm, lora=None))
    equal(dict(params), api.merge_lora(state.params, ADAPTED.lm.lora))
    write_result(own, tmp_path / "full", "full")
    config, params = checkpoint.load(tmp_path / "full")
    assert config == ADAPTED
    equal(dict(params), state.params)
    equal(api.merge_lora(params, config.lm.lora), checkpoint.load(tmp_path / "merged")[1])


def test_forms_that_there_are_not(made, saved_plain, tmp_path):
    start, own, _, _ = made
    with pytest.raises(UserError, match=r"Unknown form 'adapter'.*Did you mean 'adapters'"):
        write_result(own, tmp_path / "out", "adapter")
    with pytest.raises(UserError, match=r"no LoRA adapters \(lm.lora\) to merge"):
        write_result(saved_plain, tmp_path / "out", "merged")
    with pytest.raises(UserError, match="no trained weights of its own"):
        write_result(start, tmp_path / "out", "adapters")
    with pytest.raises(UserError, match="there is no base beside them"):
        write_result(saved_plain, tmp_path / "out", "adapters")
    with pytest.raises(UserError, match="exists already"):
        write_result(own, start, "full")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def saved_plain(tmp_path_factory):
    """A run in which everything is trained."""
    run, directory = support.run_config(PLAIN), tmp_path_factory.mktemp("plain") / "run"
    training.start_run(directory, run, support.tokenizer())
    state, _ = create(run, mesh(1, 1, 1), support.params(PLAIN))
    with training.manager(directory, 2) as steps:
        training.save_step(steps, state, 1, {})
    assert not (directory / BASE).exists()
    return directory


def test_rows_that_learn_alone_are_put_into_their_vocabulary(tmp_path):
    """A step holds the new rows; a checkpoint of the run, and of its adapters, has the whole vocabulary again."""
    groups = (Group(pattern="lm/(embed|head)/", learning_rate=1.0, rows=5), Group(pattern=".*"))
    config = support.run_config(PLAIN, groups)
    state, _ = create(config, mesh(1, 1, 1), support.params(PLAIN))
    state = state.replace(trainable={path: x + 1 for path, x in state.trainable.items()})
    run = tmp_path / "run"
    training.start_run(run, config, support.tokenizer())
    with training.manager(run, 2) as steps:
        training.save_step(steps, state, 3, {"batches": 3})
    write_result(run, tmp_path / "adapters", "adapters")
    for directory in (run, tmp_path / "adapters"):
        _, params = checkpoint.load(directory)
        equal(jax.device_get(params), jax.device_get(state.params))
    abstract, shardings = state_shardings(config, mesh(1, 4, 1))
    with training.manager(run, 2) as steps:
        again, _ = training.restore_step(steps, 3, abstract, shardings)
    equal(jax.device_get(again), jax.device_get(state))
