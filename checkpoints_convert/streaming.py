"""A published checkpoint to a checkpoint directory, tensor by tensor, with bounded memory, and resumable.

While the work goes on everything lies in ``.NAME.partial`` beside the target, with a journal of the finished tensors.
Converting once more goes on from there. The directory gets its own name, and its ``config.json`` without which nothing
loads it, at the very end.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import jax
import numpy as np

from checkpoints_convert.assemble import Assembled, assemble
from checkpoints_convert.budget import Budget
from checkpoints_convert.buffers import sync
from checkpoints_convert.convert import absent, configure, conversion_plan, published_beside
from checkpoints_convert.digest import Digests
from checkpoints_convert.journal import Journal
from checkpoints_convert.keep import keep_ignored
from checkpoints_convert.plan import Plan, Step
from checkpoints_convert.reader import Source
from checkpoints_convert.rules import Layout
from checkpoints_convert.store import WeightStore, stacked_axes
from earthmind_jax import checkpoint
from earthmind_jax.config import EarthMindConfig, FusionConfig, GroundingConfig, to_json
from earthmind_jax.data.collate import with_tokens
from earthmind_jax.data.tokenizer import Tokenizer
from earthmind_jax.errors import UserError
from earthmind_jax.models import earthmind

WORKERS = 3  # one more than it takes to keep two cores busy: the disk is waited for
IN_FLIGHT = 256 * 2**20  # bytes of source tensors in memory at a time; one that is larger is alone
NEW = ("fusion/*", "pyramid/*", "text_hidden_fcs/*", "visual_prompt/*")
"""Parameters that no published checkpoint need hold: they start at their initial values."""
FRESH = "in no published checkpoint of this layout: at its initial value"
PUBLISHED, TENSORS, IGNORED = "published", "tensors.json", "ignored.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")

Progress = Callable[[int, int], None]
"""Called with (bytes of the source that are done, bytes in all)."""


def convert_to_checkpoint(
    source: str | Path | Source,
    directory: str | Path,
    *,
    config: EarthMindConfig | Mapping[str, Any] | None = None,
    grounding: GroundingConfig | Mapping[str, Any] | None = None,
    fusion: FusionConfig | None = None,
    dtype: Any = None,
    parts: Mapping[str, Any] | None = None,
    tokenizer: str | Path | None = None,
    progress: Progress | None = None,
) -> EarthMindConfig:
    """Convert ``source`` to the checkpoint ``directory``, which :func:`earthmind_jax.checkpoint.load` reads.

    The memory taken is that of the largest source tensor, plus a few chunks. Beside the weights are kept: the SHA-256
    of every source file, the published configuration, the names, shapes and dtypes of its tensors, and the tensors that
    no parameter takes, so that :mod:`checkpoints_convert.export` gives the published files back.

    Args:
      source, config, grounding, fusion, dtype: as for :func:`checkpoints_convert.convert.convert`.
      parts: what else belongs to the checkpoint (bases, adapters, and what becomes of them): keyword arguments of
        :func:`~checkpoints_convert.assemble.assemble`.
      tokenizer: a tokenizer directory; None takes the one beside the weights, where there is one.

    Returns:
      The configuration that was written.

    Raises:
      UserError: the source cannot be read, is no whole model or does not fit its configuration; ``directory`` exists;
        or another conversion is writing it.
      WorkError: it could not be written (a full disk). Converting again goes on from the last finished tensor.
    """
    assembled = assemble(source, **(parts or {}))
    source, directory = assembled.source, Path(directory).absolute()
    published = dict(config) if isinstance(config, Mapping) else published_beside(assembled)
    layout, config = configure(assembled, config, grounding=grounding, fusion=fusion)
    if not isinstance(config, EarthMindConfig):
        raise UserError(
            f"'{source.where}' holds one component only ({layout.name}); a checkpoint directory needs a whole model."
        )
    plan = conversion_plan(source, layout, config, dtype=dtype)
    fresh = absent(config, plan.targets)
    lacking = [path for path in fresh if not any(fnmatchcase(path, pattern) for pattern in NEW)]
    if lacking:
        raise UserError(
            f"'{source.where}' ({layout.name}) lacks {len(lacking)} parameters of the model, the first '{lacking[0]}'."
        )
    words = _tokenizer(assembled, tokenizer)
    config = with_tokens(config, words) if words is not None else config
    checkpoint.refuse_existing(directory)
    job = _Job(source, layout, plan, config, {path: earthmind.shapes(config)[path] for path in fresh}, dtype)
    with checkpoint.writing(directory), _workplace(directory) as place:
        job.run(place, progress or (lambda done, total: None))
        _describe(job, place, published, words)
        checkpoint.move_to(place, directory)
    return config


class _Job:
    """One conversion: everything that is known before the first tensor is read."""

    def __init__(
        self, source: Source, layout: Layout, plan: Plan, config: EarthMindConfig, fresh: Mapping[str, Any], dtype: Any
    ) -> None:
        self.source, self.layout, self.plan, self.config, self.fresh = source, layout, plan, config, fresh
        self.dtype = None if dtype is None else np.dtype(dtype).name
        targets = plan.targets | {path: (x.shape, dtype or x.dtype) for path, x in fresh.items()}
        self.targets = {path: (shape, np.dtype(kind)) for path, (shape, kind) in sorted(targets.items())}
        self.files = {str(file): [(stat := file.stat()).st_size, stat.st_mtime_ns] for file in source.files}
        self.hashes: dict[str, str] = {}
        self.ignored: dict[str, Any] = {}

    def run(self, place: Path, progress: Progress) -> None:
        """Write weights and ignored tensors below ``place``, but for what is finished there."""
        journal = Journal(place / "journal.jsonl", self._identity())
        if not journal.same:
            _empty(place)
        journal.start()
        hashed = {name: note for part, note in journal.done.items() if (name := _after("hash ", part))}
        digests = Digests(self.source.files, hashed, lambda file, digest: journal.add(f"hash {file}", digest))
        try:
            store = WeightStore(place / checkpoint.WEIGHTS, self.targets, stacked_axes(self.plan))
            if "created" not in journal.done:
                shutil.rmtree(store.directory, ignore_errors=True)
                store.create()
                journal.add("created")
            self._fill(store, journal, digests, progress)
            if "fresh" not in journal.done:
                for path, array in _initial(self.config, list(self.fresh)).items():
                    for file in store.write(path, (), np.asarray(array).astype(self.targets[path][1])):
                        sync(file)
                journal.add("fresh")
            if "ignored" not in journal.done:
                (place / PUBLISHED).mkdir(exist_ok=True)
                journal.add("ignored", keep_ignored(self.source, self.plan, place / PUBLISHED / IGNORED))
            self.ignored = journal.done["ignored"]
            self.hashes = digests.result()
        finally:
            digests.stop()
            journal.close()
        for file, (size, changed) in self.files.items():
            stat = Path(file).stat()
            if (stat.st_size, stat.st_mtime_ns) != (size, changed):
                raise UserError(f"'{file}' changed while it was converted: convert it again.")
        (place / "journal.jsonl").unlink()

    def _fill(self, store: WeightStore, journal: Journal, digests: Digests, progress: Progress) -> None:
        total = sum(step.nbytes for step in self.plan.steps)
        budget, lock = Budget(IN_FLIGHT), threading.Lock()
        done = sum(step.nbytes for step in self.plan.steps if f"tensor {step.source}" in journal.done)
        progress(done, total)

        written: list[tuple[Step, list[Path]]] = []

        def finish(batch: list[tuple[Step, list[Path]]]) -> None:
            nonlocal done
            for _, files in batch:
                for file in files:
                    sync(file)
            for step, _ in batch:
                journal.add(f"tensor {step.source}")
                with lock:
                    done += step.nbytes
                    progress(done, total)

        def write(step: Step, array: np.ndarray, hashed: Future | None) -> None:
            nonlocal written
            try:
                files = []
                for (path, index), piece in zip(step.places, step.forward(array), strict=True):
                    files += store.write(path, index, piece)
                if hashed is not None:
                    hashed.result()
                del array, piece
                with lock:
                    written.append((step, files))
                    full = sum(other.nbytes for other, _ in written) >= IN_FLIGHT
                    batch, written = (written, []) if full else ([], written)
                finish(batch)
            finally:
                budget.give(step.nbytes)

        # Read here alone and in the order of the files, so that they are hashed from what was read.
        places = {step.source: self.source.place(step.source) for step in self.plan.steps}
        left = [step for step in self.plan.steps if f"tensor {step.source}" not in journal.done]
        left.sort(key=lambda step: (places[step.source] is None, places[step.source]))
        with ThreadPoolExecutor(WORKERS) as pool:
            futures: list[Future] = []
            try:
                for step in left:
                    budget.take(step.nbytes)
                    for future in futures:
                        if future.done():
                            future.result()
                    futures = [future for future in futures if not future.done()]
                    place, hashed = places[step.source], None
                    array = self.source.read(step.source)
                    if place is None:
                        digests.close()
                    else:
                        hashed = digests.offer(*place, array.reshape(-1).view(np.uint8))
                    futures.append(pool.submit(write, step, array, hashed))
                    del array
                digests.close()
                for future in futures:
                    future.result()
                finish(written)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a journal to be taken up."""
        layout = json.dumps([(s.source, s.dtype.name, s.how.pattern, s.sizes, s.places) for s in self.plan.steps])
        weights = json.dumps([(path, shape, dtype.name) for path, (shape, dtype) in self.targets.items()])
        return {
            "files": self.files,
            "config": hashlib.sha256(to_json(self.config).encode()).hexdigest(),
            "plan": hashlib.sha256((layout + weights).encode()).hexdigest(),
            "ignored": sorted(self.plan.ignored),
        }

    def provenance(self) -> dict[str, Any]:
        """What ``source.json`` says."""
        return {
            "layout": self.layout.name,
            "source": Path(self.source.where).name,
            "files": {
                Path(file).name: {"sha256": self.hashes[file], "bytes": size} for file, (size, _) in self.files.items()
            },
            "dtype": self.dtype,
            "ignored": self.ignored,
            "fresh": dict.fromkeys(self.fresh, FRESH),
        }


def _describe(job: _Job, place: Path, published: Mapping[str, Any] | None, words: Tokenizer | None) -> None:
    """Everything beside the weights; ``config.json`` is the last."""
    tensors = {name: [info.dtype.name, list(info.shape)] for name, info in job.source.index.items()}
    checkpoint.write_text(place / PUBLISHED / TENSORS, json.dumps(tensors))
    if published is not None:
        checkpoint.write_text(place / PUBLISHED / checkpoint.CONFIG, json.dumps(published, indent=2))
    checkpoint.write_text(place / checkpoint.SOURCE, json.dumps(job.provenance(), indent=2))
    if words is not None:
        words.save(place / checkpoint.TOKENIZER)
    checkpoint.write_text(place / checkpoint.CONFIG, to_json(job.config))


@contextlib.contextmanager
def _workplace(directory: Path) -> Iterator[Path]:
    """``.NAME.partial`` beside ``directory``, for this process alone; it stays there after a failure."""
    place = directory.with_name(f".{directory.name}.partial")
    place.mkdir(parents=True, exist_ok=True)
    handle = os.open(place, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system takes it back however a process ends
        except OSError as error:
            raise UserError(
                f"Another conversion is writing {directory}; wait for it or choose another place."
            ) from error
        yield place
    except UserError:
        if not any(place.iterdir()):
            place.rmdir()
        raise
    finally:
        os.close(handle)


def _initial(config: EarthMindConfig, paths: list[str]) -> dict[str, jax.Array]:
    return jax.jit(lambda: earthmind.init(config, jax.random.key(0), paths))() if paths else {}


def _tokenizer(assembled: Assembled, directory: str | Path | None) -> Tokenizer | None:
    if directory is None:
        places = (Path(place) if Path(place).is_dir() else Path(place).parent for place in assembled.places)
        found = (place for place in places if any((place / name).is_file() for name in TOKENIZER_FILES))
        directory = next(found, None)
    return None if directory is None else Tokenizer.load(directory)


def _after(prefix: str, text: str) -> str:
    return text.removeprefix(prefix) if text.startswith(prefix) else ""


def _empty(place: Path) -> None:
    for entry in place.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
