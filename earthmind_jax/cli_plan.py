"""``earthmind plan``: what a training run will need, before it runs; see :mod:`earthmind_jax.cli`."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import tyro

from earthmind_jax.errors import UserError


def plan(
    config: Path,
    /,
    set_: Annotated[tuple[str, ...], tyro.conf.arg(name="set")] = (),
    stage: str | None = None,
    start: Path | None = None,
    mesh: str | None = None,
    devices: int | None = None,
    hardware: str = "h100",
    tiles: int | None = None,
    price: float | None = None,
    compile_: Annotated[bool, tyro.conf.arg(name="compile")] = True,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Say what a training run will need on a mesh that need not exist: memory, operations, traffic, time, cost.

    Compiles the training step for that many virtual devices (about a minute for 4B parameters on 8, four on 256) and
    allocates none of its arrays. What does not fit comes with the changes that make it fit.

    Example: earthmind plan configs/tiny.py --mesh data=1,fsdp=8 --hardware h100 --set data.batch_size=16

    Args:
        config: Python file with a function get_config() returning a RunConfig.
        set_: configuration keys to change, key=value.
        stage: of a curriculum; the first if not given.
        start: checkpoint whose model is to be trained, where the configuration leaves it to that.
        mesh: sizes of the mesh's axes, e.g. data=4,fsdp=64,tensor=1; those of the configuration if not given.
        devices: how many devices there are; the product of the mesh's axes if not given.
        hardware: a100, h100, h200 or v5p.
        tiles: image tiles of each sample; those of the largest batch that the run can meet if not given.
        price: of one device for one hour; a round default of the hardware if not given.
        compile_: compile the step; without it the arithmetic alone, in seconds.
        as_json: print JSON.
    """
    if "jax" not in sys.modules:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # planning leaves the accelerators to those who compute
    from earthmind_jax.plan import report
    from earthmind_jax.plan.advice import advise
    from earthmind_jax.plan.hardware import find_hardware
    from earthmind_jax.plan.planning import facts, make_plan, parse_mesh, with_sizes
    from earthmind_jax.train.run import load_config
    from earthmind_jax.train.start import adopted

    chosen = find_hardware(hardware)
    if price is not None and price < 0:
        raise UserError(f"A price is not negative, as {price} is.")
    run = adopted(load_config(config, set_, stage), start)
    if mesh is not None:
        run = dataclasses.replace(run, mesh=with_sizes(run.mesh, parse_mesh(mesh)))
    made = make_plan(
        run,
        chosen,
        devices=devices,
        tiles=tiles,
        price=price,
        compiles=compile_,
        announce=lambda text: print(text, file=sys.stderr),
    )
    advice = advise(made)
    if as_json:
        print(json.dumps(facts(made) | {"advice": [dataclasses.asdict(change) for change in advice]}, indent=2))
    else:
        print(report.text(made, advice))
