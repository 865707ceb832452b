"""The one place where PyTorch's files are opened: tensors and plain values only, and no code from the file is run.

Training frameworks save their settings and counters beside the tensors, as objects of their own classes. Those of
:data:`INERT` become :class:`Inert` records: nothing is imported and nothing is called, only what the file says about
them is kept. A file that names anything else is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

from earthmind_jax.errors import UserError

INERT = ("argparse", "deepspeed", "mmengine", "numpy", "_codecs", "pathlib", "xtuner")
"""Modules (and what is below them) whose objects training checkpoints hold beside their tensors."""


class Inert:
    """What a file says about an object, in place of the object: ``arguments`` of its constructor, and its ``state``."""

    def __new__(cls, *arguments: Any) -> Inert:
        # Here, because objects whose state is all there is are made without __init__.
        made = super().__new__(cls)
        made.arguments, made.state = arguments, None
        return made

    def __init__(self, *arguments: Any) -> None:
        self.arguments: tuple[Any, ...]
        self.state: Any

    def __setstate__(self, state: Any) -> None:
        self.state = state


def load_torch(path: Path) -> Any:
    """The content of a ``.pt`` / ``.pth`` / ``.bin`` file, its tensors still on disk.

    Raises:
      UserError: for a file that is missing, broken or cut short, or needs classes beyond :data:`INERT`, or if torch is
        not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(f"'{path}' is a PyTorch file; reading it needs the [convert] extra (torch).") from error
    if not path.is_file():
        raise UserError(f"There is no file '{path}'.")
    zipped = is_zipfile(path)
    try:
        # Files from before PyTorch 1.6 are not zip archives: they cannot be listed, nor mapped into memory.
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipped and _has_pickle(path) else []
        refused = [name for name in foreign if name.partition(".")[0] not in INERT]
        if refused:
            raise UserError(
                f"'{path}' is not a PyTorch file of plain tensors: it would run '{refused[0]}' when loaded, which is "
                "refused; save its state dict alone (tensors by name) where you trust the file."
            )
        records = [(type("Inert", (Inert,), {}), name) for name in foreign]
        with torch.serialization.safe_globals(records):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except UserError:
        raise
    except Exception as error:  # the loader raises whatever the broken byte led to
        # The loader's own advice, to load without its guard, comes first; its reason after that.
        lines = str(error).partition("WeightsUnpickler error:")[2] or str(error)
        reason = next((line.strip().rstrip(".") for line in lines.splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"'{path}' is not a PyTorch file of plain tensors, or its download was cut short ({reason}); fetch it "
            "again, or save its state dict alone where you trust it."
        ) from error


def _has_pickle(path: Path) -> bool:
    try:
        with ZipFile(path) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    except BadZipFile:
        return False
