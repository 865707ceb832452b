"""Conversations in the layout of LLaVA: ``[{"from": "human", "value": ...}, {"from": "gpt", "value": ...}, ...]``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from earthmind_jax.data.datasets import _json
from earthmind_jax.data.datasets._entry import PICTURES, line, mapping, picture, shown, text
from earthmind_jax.data.prompts import IMAGE
from earthmind_jax.data.records import Line
from earthmind_jax.errors import UserError

Images = Callable[[Path, str], dict[str, Any]]
"""Root and the name in an entry -> sensor and image of a record."""

_ASKS, _ANSWERS = ("human", "user"), ("gpt", "assistant")


def conversations(root: Path, name: str, path: Path, images: Images) -> Iterator[Line]:
    """A line, called ``name`` and a number, for each entry of a file; one without ``image`` is a conversation in
    words."""

    def values(entry: Any, number: int) -> dict[str, Any]:
        pictures = {} if mapping(entry).get("image") is None else images(root, text(entry, "image"))
        said = turns(entry.get("conversations"), len(pictures))
        return {"id": f"{name}/{number}", **pictures, "turns": said}

    for number, entry in enumerate(_json.items(path)):
        yield line(f"{path} entry {number + 1}", root, partial(values, entry, number))


def pair(place: str, inner: str = "") -> Images:
    """Optical and SAR image of one name in a folder; the SAR image may have another ending."""

    def images(root: Path, name: str) -> dict[str, Any]:
        return {
            "optical": picture(root, f"{place}/rgb{inner}", name, PICTURES),
            "sar": picture(root, f"{place}/sar{inner}", name, PICTURES),
        }

    return images


def turns(conversation: Any, images: int = 1) -> list[dict[str, Any]]:
    """The turns of a record.

    As in the published reader (shuyansy/EarthMind ``datasets/vqa_dataset.py``) answers before the first question are
    left out and questions that follow each other are one. ``<image>`` stays where it first stands, if there are
    ``images`` and it is in the first question; it is taken out elsewhere.

    Raises:
      UserError: naming the message that is not of this layout.
    """
    if not isinstance(conversation, list) or not conversation:
        raise UserError(f"field 'conversations' must be a list of messages, not {shown(conversation)}.")
    made: list[dict[str, Any]] = []
    asked: list[str] = []
    for number, message in enumerate(conversation):
        speaker = mapping(message).get("from")
        if speaker not in (*_ASKS, *_ANSWERS):
            raise UserError(f"conversations[{number}] must be from 'human' or 'gpt', not {shown(speaker)}.")
        try:
            value = text(message, "value")
        except UserError as error:
            raise UserError(f"conversations[{number}]: {error}") from error
        if speaker in _ASKS:
            asked.append(value)
        elif asked:
            made.append({"question": _question(asked, bool(images) and not made), "answer": value})
            asked = []
        elif made:
            raise UserError(f"conversations[{number}] is an answer that no question comes before.")
    if asked:
        made.append({"question": _question(asked, bool(images) and not made), "answer": None})
    if not made:
        raise UserError("the conversation has no question.")
    return made


def _question(parts: list[str], placed: bool) -> str:
    """The question without ``<image>``, or with one; UserError where there is nothing else."""
    before, found, after = "\n".join(parts).partition(IMAGE)
    rest = before + after.replace(IMAGE, "")
    if not rest.strip():
        raise UserError("a question has no words.")
    after = after.replace(IMAGE, "")
    return before + IMAGE + after if found and placed else rest.strip()
