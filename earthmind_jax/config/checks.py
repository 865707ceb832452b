"""What a wrong value is answered with: one sentence, with the nearest name that would have been right."""

from __future__ import annotations

import difflib
import typing

from earthmind_jax.errors import UserError


def nearest(name: str, choices: typing.Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the choice closest to ``name``, or an empty string when none is close."""
    match = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.4)
    return f" Did you mean '{match[0]}'?" if match else ""


def one_of(what: str, value: str, choices: typing.Sequence[str]) -> None:
    """Raise a :class:`UserError` naming the nearest choice unless ``value`` is among ``choices``."""
    if value not in choices:
        raise UserError(f"Unknown {what} '{value}'.{nearest(value, choices)} Choices: {', '.join(choices)}.")


def require(condition: bool, message: str) -> None:
    """Raise a :class:`UserError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise UserError(message)
