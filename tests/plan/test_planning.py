"""What is planned is what is held: bytes on each device, buffers of the step that runs, and advice that helps."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import support

from configs import tiny
from earthmind_jax.config import Group, MeshConfig, Precision, replace_path
from earthmind_jax.distributed.mesh import make_mesh
from earthmind_jax.distributed.sharding import put_batch
from earthmind_jax.plan import report
from earthmind_jax.plan.advice import advise
from earthmind_jax.plan.compile import compile_apart
from earthmind_jax.plan.hardware import HARDWARE
from earthmind_jax.plan.memory import abstract_mesh, held_per_device, smallest_per_device
from earthmind_jax.plan.planning import USABLE, make_plan
from earthmind_jax.plan.shapes import batch_shapes, most_tiles
from earthmind_jax.train.state import create
from earthmind_jax.train.step import compile_step

CONFIG = Path(tiny.__file__)
TEXT = support.run_config()
PLAIN = ("model.grounding=null", 'optim.groups=[{"pattern": ".*", "learning_rate": 1.0}]')  # for the command line


def on_first_device(tree):
    """Bytes that the first device really holds."""
    first = jax.devices()[0]
    shards = [s for x in jax.tree.leaves(tree) for s in x.addressable_shards if s.device == first]
    return sum(s.data.nbytes for s in shards)


def test_planned_bytes_are_held_and_planned_buffers_are_those_of_the_step_that_runs():
    model = dataclasses.replace(TEXT.model, precision=Precision(compute="bfloat16"))
    groups = (Group(pattern="projector/|lm/(head|blocks)", learning_rate=1.0), Group(pattern=".*"))
    run = support.run_config(model, groups, mesh=MeshConfig(data=2, fsdp=2, tensor=2))
    held = held_per_device(run, abstract_mesh((2, 2, 2)), 1)
    mesh = make_mesh(run.mesh)
    with jax.set_mesh(mesh):
        state, shardings = create(run, mesh)
        batch = put_batch(support.scenes(run.model), mesh)
        assert on_first_device(state.trainable) == held.trainable == held.gradients
        assert on_first_device(state.frozen) == held.frozen
        assert on_first_device(state.opt) == held.optimiser
        assert on_first_device(batch) == held.batch
        memory = compile_step(run, mesh, shardings).lower(state, batch).compile().memory_analysis()
    planned = compile_apart(run, 8, 1, 0)
    assert planned.temporaries == memory.temp_size_in_bytes
    assert planned.arguments == memory.argument_size_in_bytes
    assert planned.peak == planned.arguments + planned.temporaries + memory.output_size_in_bytes - (
        memory.alias_size_in_bytes
    )


def test_batches_have_the_planned_shapes():
    for model in (support.model(), support.model(grounding=None)):
        run = support.run_config(model)
        real, planned = support.scenes(model), batch_shapes(run, 1)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), real) == jax.tree.map(lambda x: (x.shape, x.dtype), planned)


def test_the_largest_batch_is_planned_for():
    run = tiny.get_config()
    assert most_tiles(run) == 1
    many = replace_path(replace_path(run, "model.sensors.max_tiles", 6), "data.text_length", 512)
    assert most_tiles(many) == 7  # six and a thumbnail
    assert most_tiles(replace_path(many, "data.text_length", 64 + 1)) == 4  # four of 16 tokens, and a word
    triplets = replace_path(run, "model.sensors.optical_bands", ["B04", "B03", "B02", "B08", "B11", "B12"])
    assert most_tiles(triplets) == 2


def test_smallest_is_everything_divided():
    one = held_per_device(TEXT, abstract_mesh((1, 1, 1)), 1)
    assert smallest_per_device(TEXT, abstract_mesh((4, 2, 2))) == one.divisible / 4
    half = held_per_device(TEXT, abstract_mesh((8, 1, 1)), 1)
    assert half.divisible == one.divisible
    assert half.batch == one.batch / 8


def test_sixty_four_devices_planned_from_a_process_with_one():
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [
        sys.executable, "-c", "from earthmind_jax.cli import main; main()", "plan", str(CONFIG), "--json",
        "--hardware", "v5p", "--price", "1", "--mesh", "data=8,fsdp=8", "--set", *PLAIN, "data.batch_size=64",
        "data.text_length=96",
    ]  # fmt: skip
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["devices"] == 64
    compiled, memory = plan["compiled"], plan["memory"]
    state = memory["trainable"] + memory["frozen"] + memory["optimiser"]
    assert abs(compiled["arguments"] - state - memory["batch"]) < 64  # the step's number and the random key
    assert compiled["products"] * 64 >= 0.98 * plan["flops"]["executed"]
    assert compiled["flops"] > compiled["products"] > compiled["flops_once"] / 2
    assert sum(traffic["calls"] for traffic in compiled["collectives"].values()) > 0
    for pace in (plan["ideal"], plan["partitioned"]):
        best, worst = pace["seconds"]
        assert best == max(pace["compute"], pace["memory"], pace["links"])
        assert worst == pytest.approx(pace["compute"] + pace["memory"] + pace["links"])
        assert pace["mfu"][0] == pytest.approx(plan["flops"]["model"] / (64 * 459e12 * best))
        assert pace["tokens"][1] == pytest.approx(64 * 96 / worst)
        assert pace["price_million"][0] == pytest.approx(64 * best / 3600 / (64 * 96) * 1e6)


def plan_of(run, memory):
    """Arithmetic alone, on an H100 with ``memory`` bytes."""
    hardware = dataclasses.replace(HARDWARE["h100"], memory=memory)
    return make_plan(run, hardware, devices=8, compiles=False)


def test_advice_is_computed_and_true():
    run = dataclasses.replace(TEXT, mesh=MeshConfig(data=8), data=dataclasses.replace(TEXT.data, batch_size=64))
    roomy = plan_of(run, 1e12)
    assert roomy.fits
    assert advise(roomy) == []
    tight = plan_of(run, roomy.total * 0.8 / USABLE)
    assert not tight.fits
    advice = advise(tight)
    found = {change.settings[0].split("=")[0]: change for change in advice}
    assert "model.lm.remat" in found
    assert next(iter(found)) == "model.lm.remat"
    for change in found.values():
        assert change.fits
        changed = run
        for setting in change.settings:
            if not setting.startswith("--"):
                changed = replace_path(changed, *setting.split("="))
            else:
                axes = dict(part.split("=") for part in setting.removeprefix("--mesh ").split(","))
                changed = dataclasses.replace(changed, mesh=MeshConfig(**{k: int(v) for k, v in axes.items()}))
        devices = changed.mesh.fsdp * changed.mesh.tensor * (8 if changed.mesh.data == 8 else changed.mesh.data)
        again = make_plan(changed, tight.hardware, devices=devices, compiles=False)
        assert again.fits
        assert again.total == pytest.approx(change.total)
    text = report.text(tight, advice)
    assert "DOES NOT FIT" in text
    assert "model.lm.remat=full" in text


def test_changes_add_up_where_none_is_enough():
    run = dataclasses.replace(TEXT, mesh=MeshConfig(data=8), data=dataclasses.replace(TEXT.data, batch_size=16))
    wanted = ("model.lm.remat=full", "model.vision.remat=full", "optim.accumulate=2", "model.precision.param=bfloat16")
    together = run
    for setting in wanted:
        together = replace_path(together, *setting.split("="))
    plan = plan_of(run, plan_of(together, 1e12).total * 1.001 / USABLE)
    (change,) = advise(plan)
    assert change.fits
    assert change.settings == wanted
    assert change.total == pytest.approx(plan_of(together, 1e12).total)
    assert "nothing among" in report.text(plan, [dataclasses.replace(change, fits=False)])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--hardware", "h10"), "did you mean 'h100'"),
        (("--mesh", "data=2,fsdp=2", "--devices", "8"), "needs 4 devices, but there are 8"),
        (("--mesh", "data=-1,fsdp=3", "--devices", "8"), "does not divide the 8 devices"),
        (("--mesh", "data=-1,fsdp=3"), "say how many devices"),
        (("--mesh", "data=1,model=8"), "there is no axis 'model'"),
        (("--mesh", "data=1,fsdp=many"), "needs a number"),
        (("--mesh", "data=0,fsdp=8"), "must be positive"),
        (("--mesh", "data=3",), "does not divide over 3 batch shards"),
        (("--devices", "0"), "at least one device"),
        (("--devices", "8", "--tiles", "0"), "at least one tile"),
        (("--devices", "8", "--price", "-1"), "not negative"),
        (("--devices", "8", "--set", "model.lm.dept=2"), "did you mean 'depth'"),
        (("--devices", "8", "--set", "data.text_length=16"), "does not hold the"),
    ],
)  # fmt: skip
def test_wrong_requests_get_one_sentence(arguments, says, capsys):
    code, out, err = support.run(capsys, "plan", CONFIG, *arguments)
    assert code == 2, err
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("error: ")
    assert says in err.lower()
    assert not out


def test_a_broken_configuration_gets_one_sentence(tmp_path, capsys):
    file = tmp_path / "broken.py"
    file.write_text("def get_config():\n    return 1\n")
    code, _, err = support.run(capsys, "plan", file)
    assert code == 2
    assert "not a RunConfig" in err
    text = CONFIG.read_text().replace('Group(pattern="grounding/prompt/")', 'Group(pattern="grounding/promt/")')
    file.write_text(text)
    code, _, err = support.run(capsys, "plan", file, "--mesh", "data=8", "--set", "model.grounding=null")
    assert code == 2
    assert "matches no parameter" in err


def test_the_arithmetic_alone_as_a_table(capsys):
    code, out, err = support.run(capsys, "plan", CONFIG, "--mesh", "fsdp=8", "--no-compile", "--set", *PLAIN)
    assert code == 0, err
    assert "8 x h100, mesh data=1 fsdp=8 tensor=1" in out
    assert "as compiled" not in out
    assert [name for name in ("fits", "vision", "language model", "MFU", "cost of a step") if name not in out] == []
