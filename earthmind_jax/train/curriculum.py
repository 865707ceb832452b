"""One run, or the stages of a curriculum one after the other, each from what the one before learnt.

The stages of a curriculum are runs of their own below one directory, ``1-general``, ``2-earth``, ...
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from earthmind_jax import checkpoint
from earthmind_jax.config import RunConfig, one_of
from earthmind_jax.errors import UserError
from earthmind_jax.train.run import run


def train(
    stages: tuple[RunConfig, ...],
    out: str | Path,
    *,
    stage: str | None = None,
    start: Path | None = None,
    until: int | None = None,
    **options: Any,
) -> None:
    """Train ``stages`` one after the other, going on where an earlier call was interrupted.

    Args:
      stage: name of the only one to train; those before it must be done.
      start: checkpoint that the first stage starts from.
      until: stop after this step (of the stage at hand).
      options: for :func:`run`.

    Raises:
      UserError: an unknown stage, or one before it that is not done.
    """
    if stage is not None:
        one_of("stage", stage, [config.name for config in stages])
    out = Path(out)
    if len(stages) == 1:
        run(stages[0], out, start=start, until=until, **options)
        return
    for number, config in enumerate(stages, 1):
        place = directory(out, number, config)
        if stage in (None, config.name) and steps_done(place) < config.steps:
            run(config, place, start=start, until=until, **options)
            if stage is not None or steps_done(place) < config.steps:
                return  # stopped on purpose
        elif (done := steps_done(place)) < config.steps:
            raise UserError(f"{place} has done {done} of {config.steps} steps; train the stage '{config.name}' first.")
        start = place


def directory(out: Path, number: int, config: RunConfig) -> Path:
    """Where a stage lies, e.g. ``out/1-general``."""
    return out / f"{number}-{re.sub(r'[^a-z0-9]+', '-', config.name.lower()).strip('-')}"


def steps_done(run: Path) -> int:
    """Steps up to the last one that ``run`` saved; 0 where there is none."""
    trained = checkpoint.trained_weights(run)
    return 0 if trained is None else int(trained.parent.name)
