"""What huge pages do to a training step on a CPU: the demo's first stage, with and without glibc told to use them.

    python benchmarks/bench_memory.py

Runs both ways alternately, each in a process of its own (glibc reads its tunables at the start), and prints the median
step time, the time in the kernel and the peak memory of each, and the ratio.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time

from earthmind_jax.cli import TUNABLES

STEPS, ROUNDS = 8, 2


def measure(stage: int) -> dict[str, float]:
    """Median step time of one stage of the demo, in this process."""
    import jax

    from configs import demo
    from earthmind_jax.data.pipeline import training_pipeline
    from earthmind_jax.distributed.mesh import make_mesh
    from earthmind_jax.distributed.sharding import put_batch
    from earthmind_jax.evaluate.training import setup
    from earthmind_jax.train.state import create
    from earthmind_jax.train.step import compile_step

    ready, mesh = setup(demo.stages()[stage]), make_mesh()
    batch = put_batch(next(training_pipeline(ready.config, ready.source, ready.tokenizer)), mesh)
    with jax.set_mesh(mesh):
        state, shardings = create(ready.config, mesh)
        step = compile_step(ready.config, mesh, shardings)
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        before, times = resource.getrusage(resource.RUSAGE_SELF).ru_stime, []
        for _ in range(STEPS):
            start = time.perf_counter()
            state, metrics = step(state, batch)
            jax.block_until_ready(metrics)
            times.append(time.perf_counter() - start)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "step": statistics.median(times),
        "kernel": (usage.ru_stime - before) / STEPS,
        "peak": usage.ru_maxrss / 2**20,
    }


def main() -> None:
    for stage in (0,):  # the first is the quicker one to compile
        found: dict[str, list[dict[str, float]]] = {"plain": [], "huge pages": []}
        for _ in range(ROUNDS):
            for name, runs in found.items():
                env = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
                if name == "huge pages":
                    env["GLIBC_TUNABLES"] = TUNABLES
                made = subprocess.run(
                    [sys.executable, __file__, str(stage)], env=env, check=True, capture_output=True, text=True
                )
                runs.append(json.loads(made.stdout.splitlines()[-1]))
        best = {name: min(runs, key=lambda run: run["step"]) for name, runs in found.items()}
        for name, run in best.items():
            print(
                f"stage {stage + 1}, {name:10s}: {run['step']:.3f} s a step, {run['kernel']:.3f} s in the kernel, "
                f"{run['peak']:.1f} GiB at most"
            )
        print(f"stage {stage + 1}: huge pages / plain = {best['huge pages']['step'] / best['plain']['step']:.2f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(int(sys.argv[1]))))
    else:
        main()
