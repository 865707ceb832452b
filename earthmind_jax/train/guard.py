"""Watches the loss of every step without holding up the device, and says which samples spoilt it."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from earthmind_jax.config import RunConfig
from earthmind_jax.distributed.sharding import batch_sharding, replicated
from earthmind_jax.errors import WorkError
from earthmind_jax.models import earthmind
from earthmind_jax.train.marks import sample_marks
from earthmind_jax.train.state import RUN_ONCE, TrainState
from earthmind_jax.train.step import Metrics
from earthmind_jax.types import Batch, Params

SHOWN = 8  # samples named in a sentence


@dataclass(frozen=True)
class Taken:
    """A step under way: its number, metrics on the device, batch, and the ids of the samples of this process."""

    step: int
    metrics: Metrics
    batch: Batch
    ids: tuple[str, ...]

    def finite(self) -> bool:
        """Waits for the step."""
        return all(math.isfinite(float(self.metrics[name])) for name in ("loss", "grad_norm"))


class Guard:
    """Stops a run whose loss is not finite, or stays far above its running median.

    Args:
      losses: of the reports so far, so that a resumed run judges as one that was never interrupted.
    """

    def __init__(self, config: RunConfig, mesh: Mesh, losses: Iterable[float] = ()) -> None:
        self._config, self._mesh, self._limits = config, mesh, config.guard
        self._last: Taken | None = None
        self._usual = deque[float](maxlen=config.guard.window)
        self._above = 0
        for loss in losses:
            self._count(loss)

    @property
    def doubtful(self) -> bool:
        """Whether the last reports were too high: such a state must not replace a good one on the disk."""
        return self._above > 0

    def watch(self, taken: Taken, state: TrainState) -> None:
        """Look at the step before ``taken``, whose numbers are there while the device works on this one."""
        self.settle(state)
        self._last = taken

    def settle(self, state: TrainState) -> None:
        """Wait for the last step and look at it; ``state``: the newest.

        Raises:
          WorkError: its loss or gradient is not finite.
        """
        last, self._last = self._last, None
        if last is not None and not last.finite():
            what = "gradient" if math.isfinite(float(last.metrics["loss"])) else "loss"
            raise WorkError(
                f"The {what} is not finite at step {last.step}; lower optim.learning_rate or check the data: "
                f"{blame(self._config, self._mesh, state, last)}. Nothing of this step was kept."
            )

    def report(self, step: int, loss: float) -> None:
        """Compare a reported loss with those before.

        Raises:
          WorkError: it has been too high for as many reports as the configuration allows.
        """
        usual = self._count(loss)
        if self._above >= self._limits.reports:
            raise WorkError(
                f"The loss diverged: at step {step} it is {loss:.4g}, for {self._above} reports in a row more than "
                f"{self._limits.divergence:g} times its median {usual:.4g}; lower optim.learning_rate and start again "
                "from the last saved step, or raise guard.divergence."
            )

    def _count(self, loss: float) -> float:
        """The median so far; a loss that is too high is no part of the next."""
        usual = statistics.median(self._usual) if len(self._usual) >= self._limits.reports else math.inf
        if 0 < usual * self._limits.divergence < loss:
            self._above += 1
        else:
            self._above = 0
            self._usual.append(loss)
        return usual


def blame(config: RunConfig, mesh: Mesh, state: TrainState, taken: Taken) -> str:
    """Which samples of a step make it not finite, each on its own, as part of a sentence."""
    try:
        flags = np.asarray(sound_samples(config, mesh, state, taken.batch))
    except jax.errors.JaxRuntimeError:  # no memory for one more program: the step is still worth naming
        return f"one of the samples {_listed(taken.ids)}" if taken.ids else "no sample could be singled out"
    start = jax.process_index() * len(taken.ids)
    names = taken.ids or tuple(f"row {i}" for i in range(len(flags)))
    mine = flags[start : start + len(names)]
    bad = [name for name, sound in zip(names, mine, strict=True) if not sound]
    if flags.all():
        return f"no sample is at fault alone; the batch held {_listed(names)}"
    if not flags.any():
        return f"every sample is affected ({_listed(names)}), so the weights are at fault"
    return f"not finite for {_listed(bad)}" if bad else "not finite for samples of another process"


def sound_samples(config: RunConfig, mesh: Mesh, state: TrainState, batch: Batch) -> jax.Array:
    """bool [B]: whether all that the losses are made of is finite for each sample of ``batch``."""
    weights = config.loss

    def sound(params: Params, batch: Batch, key: jax.Array) -> jax.Array:
        marked = sample_marks(key, batch, config) if weights.mark else None
        out = earthmind.forward(
            config.model,
            params,
            batch,
            dropout=key,
            phrases=weights.phrase > 0,
            speaks=weights.text > 0 or weights.seg > 0,
            marks=None if marked is None else marked.prompts,
        )
        found = jnp.ones(len(batch.tokens), bool)
        masks = [m.logits for m in (out.masks, out.phrase_masks, out.marked) if m is not None]
        for x in (out.hidden, batch.masks, *masks):
            if x is not None:
                found &= jnp.isfinite(x).reshape(len(x), -1).all(axis=1)
        return found

    key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    run = jax.jit(
        sound,
        in_shardings=(None, batch_sharding(mesh), None),
        out_shardings=replicated(mesh),
        compiler_options=RUN_ONCE,
    )
    return run(state.params, batch, key)


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
