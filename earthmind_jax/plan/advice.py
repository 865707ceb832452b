"""What to change when a run does not fit, each change computed: least loss first.

Rematerialisation costs time, a smaller batch (or the same batch in parts) throughput, bfloat16 masters and moments
precision, more fsdp traffic or devices. A change that fits alone is preferred; else they add up in that order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from earthmind_jax.config import RunConfig, replace_path
from earthmind_jax.errors import UserError
from earthmind_jax.plan import activations
from earthmind_jax.plan.activations import Activations
from earthmind_jax.plan.ledger import Ledger
from earthmind_jax.plan.memory import abstract_mesh, held_per_device
from earthmind_jax.plan.planning import USABLE, Plan, flash_used, total_bytes

Sizes = tuple[int, int, int]
MOST_DEVICES = 256


@dataclass(frozen=True)
class Change:
    """Settings ``key=value`` (and a mesh), what they cost, and the bytes on each device with them."""

    settings: tuple[str, ...]
    cost: str
    total: float
    fits: bool


@dataclass(frozen=True)
class _Step:
    config: RunConfig
    sizes: Sizes
    settings: tuple[str, ...]
    cost: str


def advise(plan: Plan) -> list[Change]:
    """Changes that make ``plan`` fit: all that do so alone, or the shortest chain of them; empty where it fits."""
    if plan.fits:
        return []
    start = _Step(plan.config, plan.sizes, (), "")
    kinds = (_remat, _smaller, _narrow, _wider)
    alone = [change for kind in kinds if (change := _first(plan, kind(start))) is not None and change[0].fits]
    if alone:
        return [change for change, _ in alone]
    costs: list[str] = []
    settings: tuple[str, ...] = ()
    best = None
    for kind in kinds:
        found = _first(plan, kind(start))
        if found is None:
            continue
        best, taken = found
        settings, costs = (*settings, *taken.settings), [*costs, taken.cost]
        start = dataclasses.replace(taken, settings=())
        if best.fits:
            break
    return [] if best is None else [Change(settings, "; ".join(costs), best.total, best.fits)]


def _first(plan: Plan, steps: Iterator[_Step]) -> tuple[Change, _Step] | None:
    """The first step that fits, else the last; None where there is none."""
    limit, last = USABLE * plan.hardware.memory, None
    for step in steps:
        values = _activations(plan, step)
        if values.total > limit:  # whatever the state takes, which is slower to find out
            last = step
        elif (change := _change(plan, step, values)) is not None:
            last = step
            if change.fits:
                return change, step
    change = None if last is None else _change(plan, last, _activations(plan, last))
    return None if last is None or change is None else (change, last)


def _activations(plan: Plan, step: _Step) -> Activations:
    ledger = Ledger(step.config, flash_used(step.config, plan.hardware))
    return activations.estimate(step.config, step.sizes, plan.tiles, ledger)


def _change(plan: Plan, step: _Step, values: Activations) -> Change | None:
    """None on a mesh that does not divide the weights."""
    try:
        total = total_bytes(held_per_device(step.config, abstract_mesh(step.sizes), plan.tiles), values)
    except UserError:
        return None
    return Change(step.settings, step.cost, total, total <= USABLE * plan.hardware.memory)


def _set(step: _Step, settings: list[str], cost: str) -> _Step:
    config = step.config
    for setting in settings:
        key, _, value = setting.partition("=")
        config = replace_path(config, key, value)
    return _Step(config, step.sizes, tuple(settings), cost)


def _remat(step: _Step) -> Iterator[_Step]:
    """Everything recomputed that can be."""
    model, learns = step.config.model, Ledger(step.config, False).learns
    settings = [] if model.lm.remat == "full" else ["model.lm.remat=full"]
    settings += ["model.vision.remat=full"] if model.vision.remat != "full" and learns("vision/") else []
    if settings:
        yield _set(step, settings, "time: a third forward pass")


def _smaller(step: _Step) -> Iterator[_Step]:
    """Fewer samples on a device at a time: the batch in more parts."""
    parts = step.config.optim.accumulate
    each = step.config.data.batch_size // (step.sizes[0] * step.sizes[1] * parts)
    for smaller in (n for n in range(each - 1, 0, -1) if each % n == 0):
        yield _set(step, [f"optim.accumulate={parts * each // smaller}"], "the same batch, in more and smaller parts")


def _narrow(step: _Step) -> Iterator[_Step]:
    """Masters, moments and gradients in bfloat16."""
    if step.config.model.precision.param == "float32":
        yield _set(step, ["model.precision.param=bfloat16"], "precision: small updates are rounded away")


def _wider(step: _Step) -> Iterator[_Step]:
    """Weights over more devices: first those of the data axis, then new ones, with a batch that grows where it must."""
    data, fsdp, tensor = step.sizes
    ways = 2
    while data % ways == 0 and ways <= data:
        sizes = (data // ways, fsdp * ways, tensor)
        yield _on(step, sizes, "traffic: weights are gathered over more devices")
        ways *= 2
    while data * fsdp * tensor * 2 <= MOST_DEVICES:
        data, fsdp = 1, data * fsdp * 2
        yield _on(step, (data, fsdp, tensor), f"{fsdp * tensor} devices")


def _on(step: _Step, sizes: Sizes, cost: str) -> _Step:
    size, ways = step.config.data.batch_size, sizes[0] * sizes[1] * step.config.optim.accumulate
    moved = dataclasses.replace(step, sizes=sizes)
    settings = [f"data.batch_size={-(-size // ways) * ways}"] if size % ways else []
    changed = _set(moved, settings, cost)
    mesh = f"--mesh data={sizes[0]},fsdp={sizes[1]},tensor={sizes[2]}"
    return dataclasses.replace(changed, settings=(mesh, *settings))
