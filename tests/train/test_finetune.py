"""From published files to a fine-tuned model: converted, adapted to one's own records, better on held-out scenes."""

from __future__ import annotations

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import published
import pytest
import support

from checkpoints_convert.export import export_checkpoint
from checkpoints_convert.streaming import convert_to_checkpoint
from earthmind_jax import checkpoint
from earthmind_jax.config import LoraConfig
from earthmind_jax.data.pipeline import training_pipeline
from earthmind_jax.data.records import read_jsonl
from earthmind_jax.data.simulate import make_questions, make_scene, write_scene
from earthmind_jax.data.tokenizer import Tokenizer
from earthmind_jax.errors import UserError
from earthmind_jax.models import api, earthmind
from earthmind_jax.ops import losses
from earthmind_jax.train.run import load_config, run
from earthmind_jax.train.start import adopted, starting_params

CONFIG = """
import dataclasses
from configs import finetune
from earthmind_jax.config import DataConfig, LoraConfig, LossConfig

def get_config():
    run = finetune.get_config()
    lm = dataclasses.replace(run.model.lm, lora=LoraConfig(rank=4, alpha=8.0, targets=".*"), remat="none")
    model = dataclasses.replace(run.model, lm=lm, max_length=512)
    data = DataConfig(batch_size=8, text_length=448, turns=2)
    optim = dataclasses.replace(run.optim, learning_rate=1e-2)
    return dataclasses.replace(run, model=model, data=data, optim=optim, loss=LossConfig(points=64), steps=30)
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A converted checkpoint (bfloat16 files of the published layout), two record files, and a configuration."""
    root = tmp_path_factory.mktemp("finetune")
    config = published.config(grounding=False)
    drawn = jax.jit(lambda: api.init(config, jax.random.key(0)))()
    half = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), drawn)
    checkpoint.save(root / "drawn", config, half, support.tokenizer(), {})
    export_checkpoint(root / "drawn", root / "source", "internvl")
    convert_to_checkpoint(root / "source", root / "start")
    for name, seeds in (("train", range(16)), ("held_out", range(100, 108))):
        for seed in seeds:
            scene = make_scene(seed, size=32)
            asked = make_questions(scene, np.random.default_rng(seed), ["object_existence"])
            write_scene(scene, root, f"{name}{seed}", questions=asked, records=f"{name}.jsonl")
    (root / "config.py").write_text(CONFIG)
    return root


def held_out(directory, work):
    """Mean loss of the words of the answers in held-out scenes."""
    config, params = checkpoint.load(directory)
    words = Tokenizer.load(directory / checkpoint.TOKENIZER)
    settings = dataclasses.replace(load_config(work / "config.py"), model=config)
    batch = next(training_pipeline(settings, read_jsonl(work / "held_out.jsonl"), words, shuffle=False, augment=False))

    @jax.jit
    def score(params):
        hidden = earthmind.forward(config, params, batch).hidden
        wanted = np.roll(batch.loss_mask, -1, axis=1) & (np.arange(batch.tokens.shape[1]) < batch.tokens.shape[1] - 1)
        head = earthmind.head_kernel(config, params)
        total, count = losses.token_cross_entropy(hidden, head, np.roll(batch.tokens, -1, 1), wanted, chunk=256)
        return total / count

    return float(score(params))


def test_adapters_on_a_converted_checkpoint_improve_held_out_scores(work, one_device, capsys):
    out, start = work / "run", work / "start"
    arguments = ("--start", start, "--data", work / "train.jsonl", "--save", "adapters", "--set", "mesh.data=1")
    code, said, err = support.run(capsys, "train", work / "config.py", "--out", out, *arguments)
    assert code == 0, err
    assert f"wrote {out / 'result'}, " in said
    before, after = held_out(start, work), held_out(out, work)
    assert after < 0.7 * before
    # The frozen weights are those of the start, referred to; the trained ones are a small part.
    assert json.loads((out / "base" / "base.json").read_text())["weights"] == "../start/weights"
    size = sum(path.stat().st_size for path in (out / "result").rglob("*") if path.is_file())
    assert int(said.split("result, ")[1].split()[0].replace(",", "")) == size
    assert held_out(out / "result", work) == after
    # Merged, the words are those of the kernels that were evaluated with the factors folded in.
    code, _, err = support.run(capsys, "result", out, work / "merged", "--form", "merged")
    assert code == 0, err
    (config, params), (plain, merged) = checkpoint.load(out), checkpoint.load(work / "merged")
    assert plain.lm.lora is None
    wanted = api.merge_lora(params, config.lm.lora)
    assert set(merged) == set(wanted)
    for path, x in wanted.items():
        np.testing.assert_array_equal(merged[path], x, err_msg=path)
    np.testing.assert_allclose(held_out(work / "merged", work), after, rtol=0.02)


def test_masters_are_float32_whatever_the_files_hold(work):
    config = adopted(load_config(work / "config.py"), work / "start")
    params = starting_params(config, work / "start")
    assert params["projector/fc1/kernel"].dtype == ml_dtypes.bfloat16
    assert {path.split("/")[1] for path in params if path.startswith("lora/")} == {"lm"}
    from earthmind_jax.distributed.mesh import make_mesh
    from earthmind_jax.train.state import create

    state, _ = create(config, make_mesh(devices=jax.devices()[:1]), params)
    assert {x.dtype for x in state.trainable.values()} == {np.dtype("float32")}
    assert {x.dtype for x in state.frozen.values()} <= {np.dtype(ml_dtypes.bfloat16), np.dtype("int32")}


def test_a_start_is_asked_for_and_must_fit(work):
    config = load_config(work / "config.py")
    with pytest.raises(UserError, match="trains the model of a checkpoint: name it with --start"):
        run(config, work / "none")
    model = support.model(grounding=None)
    adapted = dataclasses.replace(model, lm=dataclasses.replace(model.lm, lora=LoraConfig(rank=2, alpha=4.0)))
    checkpoint.save(work / "other", adapted, support.params(adapted), support.tokenizer(), {})
    with pytest.raises(UserError, match=r"holds another model than the configuration \(lm.lora.rank: 2 -> 4"):
        run(config, work / "none", start=work / "other", data=work / "train.jsonl")
    assert not (work / "none").exists()
