"""The formulas count what XLA's programs compute, and the programs' counts are XLA's own where it counts in full."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest
import support

from earthmind_jax.config import Group, LoraConfig, MeshConfig, replace_path
from earthmind_jax.distributed.mesh import make_mesh
from earthmind_jax.plan import activations
from earthmind_jax.plan.compile import compile_here
from earthmind_jax.plan.flops import step_flops
from earthmind_jax.plan.ledger import Ledger
from earthmind_jax.plan.memory import abstract_mesh, held_per_device

LEARNS = "lora/|lm/(embed|head)/|projector/|fusion/|pyramid/|text_hidden_fcs/|grounding/decoder/"
ADAPTED = (Group(pattern=LEARNS, learning_rate=1.0), Group(pattern=".*"))
# How often the search for connected parts goes round depends on the masks.
MARKS = {"loss.mark": 1.0, "loss.marks": 3, "loss.mark_parts": False}


def one_device():
    return make_mesh(MeshConfig(data=1), jax.devices()[:1])


def config(model, groups=support.ALL, **changes):
    """A run of four samples with ``key=value`` changes of the model."""
    run = support.run_config(model, groups)
    for key, value in {"data.batch_size": 4, **changes}.items():
        run = replace_path(run, key, value)
    return run


def adapted(model):
    return dataclasses.replace(model, lm=dataclasses.replace(model.lm, lora=LoraConfig(rank=4), remat="full"))


def text_only(mode="hca_plus"):
    return dataclasses.replace(support.model(mode), grounding=None)


CASES = {
    "everything learns": config(text_only("concat"), **{"model.vision.remat": "full"}),
    "adapters and masks": config(adapted(support.model()), ADAPTED, **{"loss.vocab_chunk": 64, **MARKS}),
}


@functools.cache
def compiled(run):
    return compile_here(run, one_device(), 1)


@pytest.mark.parametrize("name", CASES)
def test_formulas_count_the_products_of_the_program(name):
    flops, program = step_flops(CASES[name], 1), compiled(CASES[name])
    np.testing.assert_allclose(flops.executed, program.products, rtol=0.02)
    assert flops.model <= flops.executed
    assert program.unknown_loops == 0
    assert not any(traffic.calls for traffic in program.collectives.values())


@pytest.mark.parametrize("name", CASES)
def test_estimated_activations_are_about_the_buffers_of_the_program(name):
    run = CASES[name]
    held = held_per_device(run, abstract_mesh((1, 1, 1)), 1)
    values = activations.estimate(run, (1, 1, 1), 1, Ledger(run, flash=False))
    assert 0.7 < (values.total + held.gradients) / compiled(run).temporaries < 1.5


def test_scanned_layers_count_as_unscanned_ones():
    run = CASES["everything learns"]
    unscanned = compiled(replace_path(replace_path(run, "model.lm.scan", False), "model.vision.scan", False))
    np.testing.assert_allclose(compiled(run).flops, unscanned.flops_once, rtol=0.04)
    assert compiled(run).flops_once < 0.8 * unscanned.flops_once  # what XLA says of the step that runs


def test_frozen_layers_below_everything_that_learns_run_forwards_alone():
    run = config(text_only(), (Group(pattern="vision/"), *support.ALL))
    parts = step_flops(run, 1).by_component()
    assert parts["vision"].backward == parts["vision"].again == 0
    assert parts["language model"].backward == 2 * parts["language model"].forward
    frozen = config(text_only(), (Group(pattern="lm/blocks/"), *support.ALL))
    lm = step_flops(frozen, 1).by_component()["language model"]
    rows = frozen.data.batch_size * frozen.data.text_length
    attention = 4 * rows * frozen.data.text_length * run.model.lm.heads * run.model.lm.head_dim * run.model.lm.depth
    np.testing.assert_allclose(lm.backward, lm.forward + attention)  # inputs only; attention has two inputs


def test_operations_grow_with_the_batch_and_the_tiles():
    run = CASES["adapters and masks"]
    one, twice = step_flops(run, 1), step_flops(replace_path(run, "data.batch_size", 8), 1)
    np.testing.assert_allclose(twice.model, 2 * one.model, rtol=1e-9)
    tiles = step_flops(run, 3).by_component()
    np.testing.assert_allclose(tiles["vision"].forward, 3 * one.by_component()["vision"].forward)


def test_muon_costs_its_iterations():
    groups = (Group(pattern="projector/fc1/kernel", learning_rate=1.0), Group(pattern=".*"))
    run = config(text_only(), groups, **{"optim.method": "muon"})
    rows, columns = 64, 128  # 48 and 128, filled up to multiples of 32
    wanted = 4 * (2 * 2 * rows**2 * columns + 2 * rows**3)
    assert step_flops(run, 1).by_component()["optimiser"].forward == wanted
    assert "optimiser" not in step_flops(CASES["everything learns"], 1).by_component()
