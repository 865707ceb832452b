"""The samples of a run: ``--data``, the sources of its configuration, or simulated scenes."""

from __future__ import annotations

import sys
from pathlib import Path

from earthmind_jax.config import RunConfig, SourceConfig
from earthmind_jax.data.pipeline import generator, simulated
from earthmind_jax.data.sources import Mixture, Source
from earthmind_jax.data.usable import sound, usable


def read_source(
    config: RunConfig, root: Path, *, data: Path | None = None, scenes: int = 4096, skip_broken: bool = False
) -> Source:
    """What a run is trained on.

    Args:
      root: directory that the paths of ``data.sources`` start from.
      data: record file, or directory of a data set (its first split), that stands instead of them.
      scenes: how many to simulate where there are neither.
      skip_broken: leave out broken lines, naming each on standard error.

    Raises:
      UserError: a record file that cannot be read, or its first broken line or missing image.
    """
    if data is not None:
        return _records(data, config, skip_broken)
    sources = config.data.sources
    if not sources:
        return simulated(scenes, config.seed, **_look(config))
    made = [_source(source, i, config, root, skip_broken) for i, source in enumerate(sources)]
    return made[0] if len(made) == 1 else Mixture.of(made, sources)


def _source(source: SourceConfig, number: int, config: RunConfig, root: Path, skip_broken: bool) -> Source:
    if source.path:
        return _records(root / source.path, config, skip_broken, source.dataset, source.split)
    # Scenes of their own for each source of a mixture, and unlike those of a run without sources.
    seed = int(generator(config.seed, number).integers(2**31))
    return simulated(source.simulated, seed, **_look(config))


def _look(config: RunConfig) -> dict[str, object]:
    look: dict[str, object] = {"tasks": config.data.tasks or None, "views": config.data.views}
    return look | ({"cloud": config.data.sky} if config.data.sky else {})


def _records(path: Path, config: RunConfig, skip_broken: bool, dataset: str = "", split: str = "") -> Source:
    named = {"dataset": dataset, "split": split}
    if skip_broken:
        return usable(path, config.model.sensors, lambda line: print(line, file=sys.stderr), **named)
    return sound(path, **named)
