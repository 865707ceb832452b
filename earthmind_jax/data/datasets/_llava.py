"""Conversations in the layout of LLaVA: ``[{"from": "human", "value": ...}, {"from": "gpt", "value": ...}, ...]``."""

from __future__ import annotations

from typing import Any

from earthmind_jax.data.datasets._entry import mapping, shown, text
from earthmind_jax.data.prompts import IMAGE
from earthmind_jax.errors import UserError

_ASKS, _ANSWERS = ("human", "user"), ("gpt", "assistant")


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
