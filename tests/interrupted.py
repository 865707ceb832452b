"""A small training run in a process of its own that can be killed: ``python interrupted.py DIRECTORY``.

Prints a line for each report and one when a save begins, so that a test knows when to strike.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import conftest
import jax
import support

from earthmind_jax.config import Group, LoraConfig, MeshConfig
from earthmind_jax.distributed.mesh import make_mesh
from earthmind_jax.train import checkpoint
from earthmind_jax.train.loop import fit

STEPS = 12
PLAIN = support.model(grounding=None)
MODEL = dataclasses.replace(PLAIN, lm=dataclasses.replace(PLAIN.lm, lora=LoraConfig(rank=2, dropout=0.1)))
GROUPS = (Group(pattern="lora/|fusion/", learning_rate=1.0), Group(pattern=".*"))
RUN = support.run_config(MODEL, GROUPS, steps=STEPS, checkpoint_every=2)
RUN = dataclasses.replace(RUN, data=dataclasses.replace(RUN.data, batch_size=2))


def say(*words: object) -> None:
    print(*words, flush=True)


def train(directory: Path) -> None:
    saved = checkpoint.save_step

    def announced(steps, state, step, position):
        say("saving", step)
        saved(steps, state, step, position)

    checkpoint.save_step = announced
    source = support.Repeat([support.scenes(MODEL, count=2, start=2 * i) for i in range(5)])
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    start = support.params(MODEL)
    fit(
        RUN, directory, source, support.tokenizer(), mesh, params=start, report_every=1,
        on_report=lambda step, values: say("step", step),
    )  # fmt: skip


if __name__ == "__main__":
    conftest.pytest_configure(None)
    train(Path(sys.argv[1]))
