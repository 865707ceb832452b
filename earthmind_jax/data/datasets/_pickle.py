"""Pickles of plain values. A pickle is a program, and one from a data set's archive may be anybody's.

Numbers and text may also be numpy's own, as pandas and COCO's tools leave them: a pickle makes these by calling
``scalar`` and ``dtype`` of numpy by name. Such names never reach numpy, but stand for what is written here.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from earthmind_jax.errors import UserError

_PLAIN = frozenset({
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT",
    "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "EMPTY_LIST", "APPEND", "APPENDS", "LIST",
    "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "PUT", "BINPUT",
    "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET", "MEMOIZE",
})  # fmt: skip
"""Instructions that make None, numbers, text, lists, tuples and dicts, and nothing else."""
_CALLS = frozenset({"GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "BINBYTES", "SHORT_BINBYTES"})
"""Those that numpy's scalars need beside them; what they may call is in ``_NAMES``."""
_KIND = re.compile(r"b1|[iu][1248]|f[248]|U\d{1,6}")


class _Kind:
    """The type of a scalar: its code, and after BUILD its byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or not _KIND.fullmatch(code):
            raise pickle.UnpicklingError(f"a scalar of the type {str(code)[:40]!r}")
        self.code, self.order = code, "<"

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("a type without byte order")
        self.order = state[1]


def _scalar(kind: Any, data: Any) -> Any:
    if isinstance(data, str):  # bytes of Python 2
        data = data.encode("utf-8", "surrogateescape")
    if not isinstance(kind, _Kind) or not isinstance(data, bytes):
        raise pickle.UnpicklingError("a scalar without type or value")
    found = np.frombuffer(data, np.dtype(kind.order + kind.code))
    if len(found) != 1:
        raise pickle.UnpicklingError("a scalar whose value is not of its type")
    return found.item()


def _encode(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("bytes in another form than latin1")
    return text.encode("latin1")


class _Callable:
    """A function that a pickle can call, and not change."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *values: Any) -> Any:
        return self._function(*values)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a function that is changed")


_NAMES = {
    ("numpy.core.multiarray", "scalar"): _Callable(_scalar),
    ("numpy._core.multiarray", "scalar"): _Callable(_scalar),
    ("numpy", "dtype"): _Callable(_Kind),
    ("_codecs", "encode"): _Callable(_encode),
}


class _Plain(pickle.Unpickler):
    path: Path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise _refused(self.path, f"the name {module[:80]}.{name[:80]}")
        return _NAMES[module, name]


def load(path: Path) -> Any:
    """The value of a pickle that holds plain values, or numpy's scalars in their place, which become plain.

    Any other is refused before an instruction of it is run, or, where names are given by their parts, before anything
    is called or imported.

    Raises:
      UserError: it cannot be read, is damaged, or holds anything but lists, tuples, dicts, text and numbers.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror or error}.") from error
    calls = False
    try:
        for instruction, value, _ in pickletools.genops(data):
            calls |= instruction.name in _CALLS
            known = instruction.name in _PLAIN or instruction.name in _CALLS
            if not known or (instruction.name == "GLOBAL" and tuple(str(value).split(" ", 1)) not in _NAMES):
                raise _refused(path, f"the instruction {instruction.name}")
            # The memo is an array that grows to the largest place named.
            if instruction.name in ("PUT", "LONG_BINPUT") and int(value) > len(data):
                raise pickle.UnpicklingError("a place that is out of range")
        # Python 2 wrote text and bytes alike; the bytes of a scalar must come through whole.
        unpickler = _Plain(io.BytesIO(data), encoding="utf-8", errors="surrogateescape" if calls else "replace")
        unpickler.path = path
        return unpickler.load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError, MemoryError) as error:
        raise UserError(f"'{path}' is not a pickle that can be read ({error}); copy it again.") from error


def _refused(path: Path, what: str) -> UserError:
    return UserError(
        f"'{path}' is refused: it holds more than lists, dicts, text and numbers ({what}), and could run code. "
        "Take it from its publisher anew."
    )
