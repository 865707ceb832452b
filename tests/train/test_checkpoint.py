"""Checkpoints: exact round trips, one sentence for every bad directory, and nothing left behind by a failed write."""

from __future__ import annotations

import dataclasses
import errno
import json
import os

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import support

from earthmind_jax import checkpoint
from earthmind_jax.config import MeshConfig, Precision
from earthmind_jax.data.tokenizer import Tokenizer
from earthmind_jax.distributed.mesh import make_mesh
from earthmind_jax.errors import UserError, WorkError
from earthmind_jax.train import checkpoint as training
from earthmind_jax.train.state import create, state_shardings

MODEL = support.model(grounding=None)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoints") / "good"
    checkpoint.save(directory, MODEL, support.params(MODEL), support.tokenizer(), {"from": "a test"})
    return directory


@pytest.fixture
def broken(saved, tmp_path):
    """A copy to be damaged."""
    import shutil

    return shutil.copytree(saved, tmp_path / "broken")


def edit(directory, change):
    path = directory / checkpoint.CONFIG
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def one_sentence(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_round_trip_is_exact(saved):
    config, params = checkpoint.load(saved)
    assert config == MODEL
    assert set(params) == set(support.params(MODEL))
    for path, x in support.params(MODEL).items():
        assert params[path].dtype == x.dtype
        np.testing.assert_array_equal(params[path], x, err_msg=path)
    words = Tokenizer.load(saved / checkpoint.TOKENIZER)
    assert words.encode("Where is the river? [SEG]") == support.tokenizer().encode("Where is the river? [SEG]")
    assert json.loads((saved / checkpoint.SOURCE).read_text()) == {"from": "a test"}
    assert [p.name for p in saved.parent.iterdir()] == ["good"]


def test_a_run_directory_loads_like_a_checkpoint(tmp_path):
    run = support.run_config(dataclasses.replace(MODEL, precision=Precision(compute="bfloat16")))
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    training.start_run(tmp_path / "run", run, support.tokenizer())
    with pytest.raises(UserError, match="no weights"):
        checkpoint.load(tmp_path / "run")
    state, _ = create(run, mesh, support.params(run.model))
    with training.manager(tmp_path / "run", 2) as steps:
        training.save_step(steps, state, 4, {"batches": 4})
    config, params = checkpoint.load(tmp_path / "run")
    assert config == run.model
    for path, x in support.params(run.model).items():
        np.testing.assert_array_equal(params[path], x, err_msg=path)
    # Another mesh, the same numbers.
    abstract, shardings = state_shardings(run, make_mesh(MeshConfig(data=1, fsdp=8)))
    with training.manager(tmp_path / "run", 2) as steps:
        again, position = training.restore_step(steps, 4, abstract, shardings)
    assert position == {"batches": 4}
    jax.tree.map(np.testing.assert_array_equal, again, state)
    assert again.trainable["lm/blocks/mlp/up/kernel"].sharding == shardings.trainable["lm/blocks/mlp/up/kernel"]


def test_an_occupied_place_is_refused(saved):
    with pytest.raises(UserError, match="exists already"):
        checkpoint.save(saved, MODEL, support.params(MODEL), support.tokenizer(), {})


def test_a_missing_directory(tmp_path):
    with pytest.raises(UserError) as error:
        checkpoint.load(tmp_path / "absent")
    assert "absent does not exist" in one_sentence(error)


def test_a_directory_that_is_no_checkpoint(tmp_path):
    with pytest.raises(UserError) as error:
        checkpoint.load(tmp_path)
    assert "is not a checkpoint: it has no config.json" in one_sentence(error)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\xff", b""])
def test_a_configuration_that_is_not_json(broken, content):
    (broken / checkpoint.CONFIG).write_bytes(content)
    with pytest.raises(UserError) as error:
        checkpoint.load(broken)
    assert "config.json is not valid JSON" in one_sentence(error)


@pytest.mark.parametrize("text", ["[1, 2]", '"text"', "null"])
def test_a_configuration_of_another_kind(broken, text):
    (broken / checkpoint.CONFIG).write_text(text)
    with pytest.raises(UserError) as error:
        checkpoint.load(broken)
    assert "must be an object" in one_sentence(error)


def test_an_unknown_fusion_mode(broken):
    edit(broken, lambda values: values["fusion"].update(mode="hca_pluss"))
    with pytest.raises(UserError) as error:
        checkpoint.load(broken)
    assert "Did you mean 'hca_plus'?" in one_sentence(error)


def test_an_unknown_key(broken):
    edit(broken, lambda values: values["lm"].update(heds=4))
    with pytest.raises(UserError) as error:
        checkpoint.load(broken)
    assert "'lm.heds'. Did you mean 'heads'?" in one_sentence(error)


def test_missing_weights(broken):
    import shutil

    shutil.rmtree(broken / checkpoint.WEIGHTS)
    with pytest.raises(UserError) as error:
        checkpoint.load(broken)
    assert "holds no weights" in one_sentence(error)


def test_unreadable_weights(broken):
    for path in (broken / checkpoint.WEIGHTS).iterdir():
        if path.is_file():
            path.write_bytes(b"damaged")
    with pytest.raises(UserError) as error:
        checkpoint.load(broken)
    assert "cannot be read" in one_sentence(error)


def test_weights_of_another_shape(broken):
    edit(broken, lambda values: values["lm"].update(mlp=64))
    with pytest.raises(UserError) as error:
        checkpoint.load(broken)
    assert "3 of another shape (first: lm/blocks/mlp/" in one_sentence(error)


def test_weights_of_another_model(broken):
    edit(broken, lambda values: values["lm"].update(tie=True))
    with pytest.raises(UserError) as error:
        checkpoint.load(broken)
    assert "0 weights missing, 1 unknown" in one_sentence(error)
    assert "lm/head/kernel" in one_sentence(error)


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(("where", "name"), [(ocp.StandardCheckpointer, "save"), (os, "replace")])
def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch, where, name):
    monkeypatch.setattr(where, name, full)
    with pytest.raises(WorkError, match="No space left"):
        checkpoint.save(tmp_path / "new", MODEL, support.params(MODEL), support.tokenizer(), {})
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_stops_a_run(tmp_path, monkeypatch):
    run = support.run_config(MODEL)
    state, _ = create(run, make_mesh(), support.params(MODEL))
    with training.manager(tmp_path, 2) as steps:
        monkeypatch.setattr(type(steps), "save", full)
        with pytest.raises(WorkError, match="No space left"):
            training.save_step(steps, state, 1, {})


TRAINED = dataclasses.replace(
    support.run_config(MODEL), optim=dataclasses.replace(support.run_config().optim, clip=0.5)
)


@pytest.fixture(scope="module")
def eight():
    """(directory with step 4, its state) as saved on eight devices, with moments that are not zero."""
    import tempfile

    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    state, _ = create(TRAINED, mesh, support.params(MODEL))
    numbers = np.random.default_rng(0)
    moments = [
        jax.device_put(numbers.standard_normal(x.shape, np.float32) if x.ndim else x, x.sharding)
        for x in jax.tree.leaves(state.opt)
    ]
    state = state.replace(step=state.step + 4, opt=jax.tree.unflatten(jax.tree.structure(state.opt), moments))
    with tempfile.TemporaryDirectory() as directory:
        with training.manager(directory, 2) as steps:
            training.save_step(steps, state, 4, {"batches": 4})
        yield directory, jax.device_get(state)


@pytest.mark.parametrize("sizes", [(1, 4, 1), (2, 4, 1), (2, 2, 2)])
def test_every_mesh_restores_the_same_bits(eight, sizes):
    data, fsdp, tensor = sizes
    directory, state = eight
    mesh = make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: data * fsdp * tensor])
    abstract, shardings = state_shardings(TRAINED, mesh)
    with training.manager(directory, 2) as steps:
        again, _ = training.restore_step(steps, 4, abstract, shardings)
    assert jax.tree.map(lambda x: x.sharding, again) == shardings
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again), state)
    assert int(again.step) == 4


@pytest.mark.parametrize(
    ("keep", "period", "left"), [(1, 0, [6]), (2, 0, [5, 6]), (2, 3, [3, 5, 6]), (9, 0, [1, 2, 3, 4, 5, 6])]
)
def test_the_newest_steps_and_those_of_a_period_are_kept(tmp_path, small, keep, period, left):
    with training.manager(tmp_path, keep, period) as steps:
        for step in range(1, 7):
            training.save_step(steps, small, step, {})
    assert sorted(int(p.name) for p in (tmp_path / checkpoint.STEPS).iterdir()) == left


@pytest.fixture(scope="module")
def small():
    """A state of one array, as orbax does not mind."""
    one = jax.numpy.arange(64, dtype=np.float32)
    return training.TrainState(jax.numpy.int32(3), {"w": one}, {}, {"m": one}, jax.random.key_data(jax.random.key(0)))


@pytest.fixture
def small_files():
    """Files of more than 3000 bytes cannot be written, as on a disk that is full."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_save_that_fails_in_the_background_stops_the_run(tmp_path, small, small_files, capfd):
    numbers = jax.numpy.asarray(np.random.default_rng(0).standard_normal(100_000, np.float32))
    big = small.replace(trainable={"w": numbers})
    with training.manager(tmp_path, 9) as steps:
        training.save_step(steps, small, 1, {})

    def saves():
        with training.manager(tmp_path, 9) as steps:
            training.save_step(steps, big, 2, {})
            for step in range(3, 9):
                training.save_step(steps, small, step, {})

    with pytest.raises(WorkError, match=f"Could not write {tmp_path}: File too large; free space") as error:
        saves()
    assert capfd.readouterr().err == ""
    assert "\n" not in str(error.value)
    assert [p.name for p in (tmp_path / checkpoint.STEPS).iterdir()] == ["1"]


def test_a_last_save_that_fails_is_waited_for(tmp_path, small, small_files):
    numbers = jax.numpy.asarray(np.random.default_rng(0).standard_normal(100_000, np.float32))
    with pytest.raises(WorkError, match="Could not write"), training.manager(tmp_path, 9) as steps:
        training.save_step(steps, small.replace(trainable={"w": numbers}), 1, {})
    assert list((tmp_path / checkpoint.STEPS).iterdir()) == []


def test_a_file_where_the_steps_should_be(tmp_path):
    (tmp_path / checkpoint.STEPS).write_text("")
    with pytest.raises(WorkError, match="Could not write"), training.manager(tmp_path, 2):
        pass


def test_the_same_step_is_not_saved_twice(tmp_path, small):
    with training.manager(tmp_path, 2) as steps:
        training.save_step(steps, small, 3, {})
        with pytest.raises(WorkError, match="step 3 is there already"):
            training.save_step(steps, small, 3, {})


def test_half_a_step_is_never_picked_and_is_removed(tmp_path, small):
    import shutil

    with training.manager(tmp_path, 2) as steps:
        training.save_step(steps, small, 3, {})
    place = tmp_path / checkpoint.STEPS
    half = place / "5.orbax-checkpoint-tmp"
    shutil.copytree(place / "3", half)
    assert checkpoint.trained_weights(tmp_path) == place / "3" / checkpoint.TRAINED
    with training.manager(tmp_path, 2) as steps:
        assert steps.latest_step() == 3
        training.save_step(steps, small, 5, {})
    assert sorted(p.name for p in place.iterdir()) == ["3", "5"]
