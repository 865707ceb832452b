"""Where the frozen weights of a training run lie, and proof that they are still the ones it was trained with.

A run writes its frozen weights once, below ``base/weights``, or names those of the checkpoint that it started from. In
both cases ``base/base.json`` holds the place (relative to the run's directory) and the SHA-256 of every file there.
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from earthmind_jax.errors import UserError

BASE, REFERENCE = "base", "base.json"
THREADS = 8  # that hash files; more than that wait for the disk


@dataclass(frozen=True)
class Base:
    """The frozen weights of ``run``: ``weights`` (an orbax directory) and its files' SHA-256 by relative name."""

    run: Path
    weights: Path
    files: dict[str, str]

    @classmethod
    def of(cls, run: Path, weights: Path) -> Base:
        """The weights as they are now; reads them all."""
        run, weights = run.resolve(), weights.resolve()
        names = _names(weights)
        return cls(run, weights, dict(zip(names, _digests(weights, names), strict=True)))

    @classmethod
    def read(cls, run: Path) -> Base:
        """What ``run`` noted of its base.

        Raises:
          UserError: there is no readable note.
        """
        run, path = run.resolve(), run / BASE / REFERENCE
        try:
            noted = json.loads(path.read_text())
            return cls(run, Path(os.path.normpath(run / noted["weights"])), dict(noted["files"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{run} has frozen weights, but {path} that says where cannot be read: {error}.") from error

    def to_json(self) -> str:
        """The text of ``base.json``; absolute places stay so only where there is no relative one (another drive)."""
        try:
            place = os.path.relpath(self.weights, self.run)
        except ValueError:
            place = str(self.weights)
        return json.dumps({"weights": place, "files": self.files}, indent=2)

    def problem(self, share: int = 0, shares: int = 1) -> str | None:
        """A sentence where the weights are not what they were, else None; one of ``shares`` equal parts of the work."""
        if not self.weights.is_dir():
            return (
                f"The frozen weights of {self.run} should lie in {self.weights}, which does not exist: put the "
                "checkpoint that the training started from back there."
            )
        lost = sorted(set(self.files) - set(_names(self.weights)))
        names = sorted(set(self.files) - set(lost))[share::shares]
        wrong = [n for n, found in zip(names, _digests(self.weights, names), strict=True) if found != self.files[n]]
        if lost or wrong:
            what = f"{wrong[0]} has changed" if wrong else f"{lost[0]} is missing"
            return (
                f"The frozen weights in {self.weights} are not those that {self.run} was trained with: {what}; put the "
                "original files back."
            )
        return None

    def check(self) -> None:
        """Raise a UserError unless every file is the same as ever."""
        if (problem := self.problem()) is not None:
            raise UserError(problem)


def _names(directory: Path) -> list[str]:
    return sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file())


def _digests(directory: Path, names: list[str]) -> list[str]:
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda name: _sha256(directory / name), names))


def _sha256(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error
