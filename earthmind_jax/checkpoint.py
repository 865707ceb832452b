"""Checkpoints: one directory holds everything that ``load`` or a resumed run needs.

::

    DIR/config.json      the model (fusion mode and all)
    DIR/run.json         the training run, where there was one
    DIR/source.json      what the weights came from, with hashes
    DIR/tokenizer/       an ordinary Hugging Face tokenizer directory
    DIR/weights/         flat path -> array (orbax); or, of a training run or its adapters,
    DIR/base/            where the frozen weights lie and their hashes (:mod:`earthmind_jax.frozen`), and
    DIR/trained/         the trained weights; or of a run
    DIR/steps/N/         the state of step N (orbax): trained weights, optimiser and rng, input position
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from earthmind_jax.config import EarthMindConfig, from_dict, to_json
from earthmind_jax.errors import UserError, WorkError
from earthmind_jax.frozen import Base
from earthmind_jax.models import api
from earthmind_jax.types import Params

CONFIG, RUN, SOURCE, TOKENIZER, WEIGHTS, TRAINED, STEPS = (
    "config.json",
    "run.json",
    "source.json",
    "tokenizer",
    "weights",
    "trained",
    "steps",
)


@contextlib.contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Turn failures of the file system into one sentence."""
    try:
        yield
    except OSError as error:
        raise WorkError(
            f"Could not write {directory}: {error.strerror or error}; free space or choose another place."
        ) from error
    except ValueError as error:  # tensorstore's, with the system's reason inside
        reason = re.search(r"os_error_code='(\d+)'", str(error))
        if reason is not None:
            raise WorkError(
                f"Could not write {directory}: {os.strerror(int(reason[1]))}; free space or choose another place."
            ) from error
        if any(s in str(error) for s in ("No space left", "RESOURCE_EXHAUSTED", "ENOSPC", "Error writing", "fail")):
            raise WorkError(f"Could not write {directory}: {str(error).splitlines()[0]}") from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write beside and rename, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def save(
    directory: str | Path, config: EarthMindConfig, params: Params, tokenizer: Any, source: dict[str, Any]
) -> None:
    """Write a checkpoint directory beside its place and rename it there at the end.

    Raises:
      UserError: ``directory`` exists and is not empty.
      WorkError: it could not be written (a full disk); nothing is left behind.
    """
    directory = Path(directory).absolute()
    refuse_existing(directory)
    with writing(directory), made_beside(directory) as temporary:
        write_text(temporary / CONFIG, to_json(config))
        write_text(temporary / SOURCE, json.dumps(source, indent=2))
        if tokenizer is not None:
            tokenizer.save(temporary / TOKENIZER)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(temporary / WEIGHTS, params)


def refuse_existing(directory: Path) -> None:
    """Raise a UserError where something other than an empty directory is at ``directory``."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} exists already; choose another place or remove it first.")


@contextlib.contextmanager
def made_beside(directory: Path) -> Iterator[Path]:
    """A new directory that becomes ``directory`` at the end, or nothing."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
    try:
        yield place
        place.chmod(0o755)  # private until now
        move_to(place, directory)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise


def move_to(place: Path, directory: Path) -> None:
    """Give the finished directory ``place`` the name ``directory``, where at most an empty one lies."""
    if directory.exists():
        directory.rmdir()
    os.replace(place, directory)


def read_config(directory: str | Path) -> EarthMindConfig:
    """The model's configuration.

    Raises:
      UserError: the directory is missing, or is not a checkpoint.
    """
    directory = Path(directory)
    if not directory.exists():
        raise UserError(f"Checkpoint {directory} does not exist.")
    path = directory / CONFIG
    if not path.is_file():
        raise UserError(f"{directory} is not a checkpoint: it has no {CONFIG}.")
    try:
        return from_dict(EarthMindConfig, json.loads(path.read_text()))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); the checkpoint is damaged.") from error


def read_source(directory: str | Path) -> dict[str, Any]:
    """What the weights came from, as the checkpoint says; empty where it does not."""
    path = Path(directory) / SOURCE
    try:
        found = json.loads(path.read_text()) if path.is_file() else {}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); the checkpoint is damaged.") from error
    return found if isinstance(found, dict) else {}


def fingerprint(config: EarthMindConfig, params: Params, tokenizer: Any) -> str:
    """16 hexadecimal digits that tell one model from another: configuration, tokenizer, and of every weight its shape,
    dtype and up to 4096 evenly spaced values (training changes far more than those)."""
    found = hashlib.sha256(to_json(config).encode())
    found.update(tokenizer.inner.backend_tokenizer.to_str().encode())
    for path in sorted(params):
        values = np.asarray(params[path])
        found.update(f"{path} {values.shape} {values.dtype}".encode())
        found.update(np.ascontiguousarray(values.reshape(-1)[:: max(1, values.size // 4096)]).tobytes())
    return found.hexdigest()[:16]


def load(directory: str | Path) -> tuple[EarthMindConfig, Params]:
    """Configuration and weights of a checkpoint, of adapters, or of a training run (its latest whole step).

    Frozen weights of a run come in the dtype in which it computes, as it was trained with them.

    Raises:
      UserError: not a checkpoint, the weights do not fit the configuration, or a base is not what it was.
    """
    directory = Path(directory).absolute()
    config = read_config(directory)
    wanted = api.shapes(config)
    if (directory / WEIGHTS).is_dir():
        found = stored(directory / WEIGHTS, directory)
        return config, read(directory / WEIGHTS, placed(checked(found, wanted, directory)), directory)
    place = trained_weights(directory)
    if place is None:
        raise UserError(f"{directory} holds no weights: neither {WEIGHTS}/ nor a finished step in {STEPS}/.")
    trained = read(place, placed(stored(place, directory)), directory)
    # A vocabulary of which only the last rows were trained lies in the base as a whole.
    rest = {p: x for p, x in wanted.items() if p not in trained or _part(trained[p], x)}
    if rest:
        base = Base.read(directory)
        base.check()
        held = stored(base.weights, directory)
        checked({**trained, **{path: x for path, x in held.items() if path in rest}}, wanted, directory)
        frozen = read(base.weights, placed({path: compute_dtype(config, x) for path, x in rest.items()}), directory)
        trained = api.combine(frozen, trained)
    return config, checked(trained, wanted, directory)


def _part(x: jax.Array, whole: jax.ShapeDtypeStruct) -> bool:
    """Whether ``x`` is smaller than ``whole`` along exactly one axis."""
    differ = [a < b for a, b in zip(x.shape, whole.shape, strict=False) if a != b]
    return x.ndim == whole.ndim and differ == [True]


def trained_weights(directory: Path) -> Path | None:
    """Where the trained weights of adapters, or of the latest whole step of a run, lie."""
    if (directory / TRAINED).is_dir():
        return directory / TRAINED
    if not (directory / STEPS).is_dir():
        return None
    with ocp.CheckpointManager(directory / STEPS, options=ocp.CheckpointManagerOptions(create=False)) as steps:
        step = steps.latest_step()
    return None if step is None else directory / STEPS / str(step) / TRAINED


def compute_dtype(config: EarthMindConfig, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """A frozen array as training holds it."""
    dtype = config.precision.compute if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype
    return jax.ShapeDtypeStruct(x.shape, dtype)


def stored(path: Path, directory: Path) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every array in the orbax directory ``path``, which belongs to ``directory``."""
    with damaged(directory), ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.metadata(path.absolute()).item_metadata  # of a relative path orbax finds nothing
        return {name: jax.ShapeDtypeStruct(m.shape, m.dtype) for name, m in dict(found).items()}


def placed(arrays: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
    """The same, to be read onto one device."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return {path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for path, x in arrays.items()}


def read(path: Path, targets: dict[str, jax.ShapeDtypeStruct], directory: Path) -> Params:
    """The arrays ``targets`` of the orbax directory ``path``, in their dtypes and shardings; others are not read."""
    arguments = ocp.args.PyTreeRestore(
        targets, ocp.checkpoint_utils.construct_restore_args(targets), partial_restore=True
    )
    with damaged(directory), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return dict(checkpointer.restore(path.absolute(), arguments))


def checked(params: Any, wanted: dict[str, jax.ShapeDtypeStruct], directory: Path) -> Any:
    missing, extra = sorted(set(wanted) - set(params)), sorted(set(params) - set(wanted))
    shapes = [p for p in set(wanted) & set(params) if tuple(params[p].shape) != tuple(wanted[p].shape)]
    if missing or extra or shapes:
        first = (missing or extra or shapes)[0]
        raise UserError(
            f"{directory} does not fit its {CONFIG}: {len(missing)} weights missing, {len(extra)} unknown, "
            f"{len(shapes)} of another shape (first: {first})."
        )
    return params


@contextlib.contextmanager
def damaged(directory: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (ValueError, OSError, KeyError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"The weights in {directory} cannot be read: {reason}") from error
