"""Pickles of plain values. A pickle is a program, and one from a data set's archive may be anybody's."""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

from earthmind_jax.errors import UserError

_PLAIN = frozenset({
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT",
    "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "EMPTY_LIST", "APPEND", "APPENDS", "LIST",
    "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "PUT", "BINPUT",
    "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET", "MEMOIZE",
})  # fmt: skip
"""Instructions that make None, numbers, text, lists, tuples and dicts, and nothing else."""


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def load(path: Path) -> Any:
    """The value of a pickle that holds plain values only. Any other is refused before an instruction of it is run.

    Raises:
      UserError: it cannot be read, is damaged, or holds anything but lists, tuples, dicts, text and numbers.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror or error}.") from error
    try:
        for instruction, value, _ in pickletools.genops(data):
            if instruction.name not in _PLAIN:
                raise UserError(
                    f"'{path}' is refused: it holds more than lists, dicts, text and numbers (the instruction "
                    f"{instruction.name}), and could run code. Take it from its publisher anew."
                )
            # The memo is an array that grows to the largest place named.
            if instruction.name in ("PUT", "LONG_BINPUT") and int(value) > len(data):
                raise pickle.UnpicklingError("a place that is out of range")
        return _Plain(io.BytesIO(data), encoding="utf-8", errors="replace").load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError, MemoryError) as error:
        raise UserError(f"'{path}' is not a pickle that can be read ({error}); copy it again.") from error
