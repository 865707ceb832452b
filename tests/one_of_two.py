"""One process of a training run on two: ``python one_of_two.py INDEX PORT DIRECTORY STEPS``. For tests."""

from __future__ import annotations

import sys
from pathlib import Path

import jax


def main(index: int, port: str, directory: Path, steps: int) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, index)

    import support  # after the start: making the tokenizer must not touch devices before it

    from earthmind_jax.config import Group, MeshConfig
    from earthmind_jax.distributed.mesh import make_mesh
    from earthmind_jax.train.loop import fit

    groups = (Group(pattern="vision/"), *support.ALL)
    run = support.run_config(groups=groups, steps=steps, checkpoint_every=1000)
    batches = [jax.tree.map(lambda x: x[4 * index :][:4], support.scenes(start=8 * i)) for i in range(2)]
    state = fit(
        run,
        directory,
        support.Repeat(batches),
        support.tokenizer(),
        make_mesh(MeshConfig(data=1, fsdp=2)),
        params=support.params(run.model),
        report_every=5,
        on_report=lambda step, values: print("report", step, flush=True),
    )
    print("done", int(state.step), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
