"""The real training step compiled for devices that are not there: a child process with virtual CPU devices.

XLA partitions the program for the mesh as it would for accelerators of that number, which gives the shapes, loops and
collectives of each device. What follows partitioning differs: a CPU fuses less, keeps scores that a GPU's attention
kernel never writes, widens bfloat16 products (and what it gathers for them) to float32, and sums gradients whole on
every device (all-reduce) where accelerators leave each its part (reduce-scatter, half the bytes).
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from importlib.metadata import version
from typing import Any

import jax
from jax.sharding import Mesh

from earthmind_jax.config import RunConfig, from_dict, to_dict
from earthmind_jax.distributed.mesh import make_mesh
from earthmind_jax.distributed.sharding import batch_sharding
from earthmind_jax.errors import UserError, WorkError
from earthmind_jax.plan.hlo import Program, Traffic
from earthmind_jax.plan.shapes import batch_shapes
from earthmind_jax.train.state import RUN_ONCE, state_shardings
from earthmind_jax.train.step import compile_step

LARGEST = 10  # senders that are told
COUNT_FLAG = "--xla_force_host_platform_device_count"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """What XLA says of the step on one device. Bytes of ``memory_analysis``, operations with loops counted in full.

    Attributes:
      arguments, outputs, aliased, temporaries: ``aliased`` outputs lie in the donated arguments.
      flops: as XLA counts them; ``products`` those of matrix products and convolutions alone.
      flops_once: ``cost_analysis``, which counts the body of a loop once.
      collectives: traffic by kind; ``senders`` the largest bytes sent, by kind and place in the model.
      lowering, compiling: seconds.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    flops: float
    products: float
    flops_once: float
    collectives: dict[str, Traffic]
    senders: dict[str, float]
    unknown_loops: int
    lowering: float
    compiling: float

    @property
    def peak(self) -> int:
        """Bytes held while the step runs."""
        return self.arguments + self.outputs - self.aliased + self.temporaries

    @property
    def sent(self) -> float:
        """Bytes that leave the device."""
        return sum(traffic.sent for traffic in self.collectives.values())

    @property
    def across(self) -> float:
        """Of those, bytes that leave the host."""
        return sum(traffic.across for traffic in self.collectives.values())


def compile_apart(config: RunConfig, devices: int, tiles: int, host: int) -> Compiled:
    """The step of ``config`` on its mesh of ``devices``, compiled in a child process that has so many.

    Args:
      tiles: of each sample, see :func:`earthmind_jax.plan.shapes.most_tiles`.
      host: devices of one host.

    Raises:
      UserError: the configuration cannot run on that mesh.
      WorkError: the compilation failed.
    """
    given = re.sub(rf"{COUNT_FLAG}=\d+", "", os.environ.get("XLA_FLAGS", ""))
    environment = {
        **{name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"},
        "XLA_FLAGS": f"{given} {COUNT_FLAG}={devices}".strip(),
        "JAX_PLATFORMS": "cpu",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    request = {"run": to_dict(config), "tiles": tiles, "host": host}
    command = [sys.executable, "-m", "earthmind_jax.plan.compile"]
    done = subprocess.run(command, input=json.dumps(request), env=environment, capture_output=True, text=True)
    answer = done.stdout.strip().splitlines()[-1:] if done.returncode == 0 else []
    if not answer:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise WorkError(f"The step could not be compiled for {devices} devices: {last}")
    facts = json.loads(answer[0])
    if "error" in facts:
        raise UserError(facts["error"])
    facts["collectives"] = {kind: Traffic(**traffic) for kind, traffic in facts["collectives"].items()}
    return Compiled(**facts)


def compile_here(config: RunConfig, mesh: Mesh, tiles: int, host: int = 0) -> Compiled:
    """The same in this process, for the devices of ``mesh``."""
    # Outside the mesh: what the model traces itself with would otherwise be copied to every device.
    abstract, shardings = state_shardings(config, mesh)
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
    batch = batch_shapes(config, tiles, batch_sharding(mesh))
    start = time.perf_counter()
    with jax.set_mesh(mesh):
        lowered = compile_step(config, mesh, shardings).lower(state, batch)
        between = time.perf_counter()
        compiled = lowered.compile(compiler_options=_options())
    end = time.perf_counter()
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    work = Program(compiled.as_text()).work(host=host)
    return Compiled(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        flops=work.flops,
        products=work.products,
        flops_once=cost["flops"],
        collectives=work.collectives,
        senders=dict(sorted(work.senders.items(), key=lambda item: -item[1])[:LARGEST]),
        unknown_loops=work.unknown_loops,
        lowering=between - start,
        compiling=end - between,
    )


def _options() -> dict[str, Any]:
    """Machine code that nobody will run need not be good; partitioning and buffers are those of the real step."""
    # XLA refuses an option that it does not know, and this one is young.
    emitters = {"xla_cpu_use_fusion_emitters": False} if version("jaxlib").startswith("0.10.") else {}
    return {**RUN_ONCE, **emitters}


def _main() -> None:
    request = json.load(sys.stdin)
    try:
        config = from_dict(RunConfig, request["run"])
        compiled = compile_here(config, make_mesh(config.mesh), request["tiles"], request["host"])
        answer = dataclasses.asdict(compiled)
    except UserError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    _main()
