"""JSON of any size, entry by entry: published annotations are lists of up to a million entries in one file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from earthmind_jax.data.regular import require_regular
from earthmind_jax.errors import UserError

CHUNK = 1 << 20  # characters
LARGEST = 1 << 28  # characters of one entry
_CUT = 32  # an error this close to the end of what is read may only mean that more is to come
_HUGE = "it has a number of thousands of digits, or thousands of brackets within each other"
_DECODER = json.JSONDecoder()


def items(path: Path, key: str | None = None) -> Iterator[Any]:
    """The entries of a list in a file, held one at a time.

    Args:
      key: the member of the file's object that is the list; None where the file itself is the list.

    Raises:
      UserError: naming the file and the character where it cannot be read on; entries before it have been given.
    """
    try:
        with require_regular(path).open(encoding="utf-8-sig") as file:
            text = _Text(path, file)
            if key is not None:
                text.enter(key)
            elif text.peek() != "[":
                raise UserError(f"'{path}' must be a list of entries in JSON.")
            yield from text.elements()
            if key is None and text.peek():
                text.fail("something follows the list")
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror or error}.") from error


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number, text) of the lines of a JSONL file that are not empty, for :func:`parse`."""
    try:
        with require_regular(path).open("rb") as file:
            for number, text in enumerate(file, 1):
                if text.strip():
                    yield number, text
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror or error}.") from error


def load(path: Path) -> Any:
    """All of a small file; UserError where it cannot be read."""
    require_regular(path)
    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror or error}.") from error
    except UserError as error:
        raise UserError(f"'{path}' {error}") from error


def parse(text: bytes) -> Any:
    """One JSON value; the UserError is the second half of a sentence that begins with where it stands."""
    try:
        return json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError("is not JSON: the text is not UTF-8.") from error
    except json.JSONDecodeError as error:
        raise UserError(f"is not JSON: {error.msg} (character {error.pos + 1}).") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"is not JSON that can be read: {_HUGE}.") from error


class _Text:
    """A window of a file's text that moves on as values are taken from it."""

    def __init__(self, path: Path, file: Any) -> None:
        self.path, self.file = path, file
        self.text, self.at, self.dropped, self.ended = "", 0, 0, False

    def fail(self, what: str, at: int | None = None) -> NoReturn:
        place = self.dropped + (self.at if at is None else at) + 1
        raise UserError(f"'{self.path}' is not JSON that can be read: {what} (character {place}).")

    def more(self, size: int = CHUNK) -> bool:
        """Read on; false at the end of the file."""
        try:
            new = self.file.read(size)
        except UnicodeDecodeError:
            self.fail("the text is not UTF-8", len(self.text))
        self.dropped += self.at
        self.text, self.at, self.ended = self.text[self.at :] + new, 0, not new
        return bool(new)

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            while self.at < len(self.text):
                if self.text[self.at] not in " \t\r\n":
                    return self.text[self.at]
                self.at += 1
            if not self.more():
                return ""

    def take(self, expected: str) -> str:
        """The next character, one of those expected."""
        char = self.peek()
        if not char or char not in expected:
            names = " or ".join(f"'{c}'" for c in expected)
            self.fail(f"{names} expected, not {f'{char!r}' if char else 'the end of the file'}")
        self.at += 1
        return char

    def value(self) -> Any:
        """The next value, whole."""
        self.peek()
        size = CHUNK
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                open_end = error.pos >= len(self.text) - _CUT or error.msg.startswith("Unterminated")
                if self.ended or not open_end:
                    self.fail(error.msg, error.pos)
            except (ValueError, RecursionError):
                self.fail(_HUGE)
            else:
                if end < len(self.text) or self.ended:  # a number could go on
                    self.at = end
                    return value
            if len(self.text) - self.at > LARGEST:
                self.fail(f"one entry has more than {LARGEST} characters")
            self.more(size)
            size *= 2

    def elements(self) -> Iterator[Any]:
        """The entries of the list that comes next."""
        self.take("[")
        if self.peek() == "]":
            self.at += 1
            return
        while True:
            yield self.value()
            if self.take(",]") == "]":
                return

    def enter(self, key: str) -> None:
        """Move on to the list that is a member of the object that comes next."""
        if self.peek() != "{":
            raise UserError(f"'{self.path}' must be a JSON object with the list '{key}'.")
        self.at += 1
        while self.peek() != "}":
            name = self.value()
            self.take(":")
            is_list = self.peek() == "["
            if name == key and is_list:
                return
            if is_list:
                for _ in self.elements():
                    pass
            else:
                self.value()
            if self.take(",}") == "}":
                break
        raise UserError(f"'{self.path}' has no list '{key}'.")
