"""Questions about the buildings of an image: how many there are, and where."""

from __future__ import annotations

from typing import Any

from earthmind_jax.data.datasets._folders import ask_mask


def building_turns(name: str, count: int, mask: Any, told: str = "") -> list[dict[str, Any]]:
    """How many, and where they are if there are any; ``told`` is a sentence before the first question."""
    turns: list[dict[str, Any]] = [
        {"question": f"{told} How many buildings are in the image?".strip(), "answer": f"{count}"}
    ]
    return turns + ([ask_mask("buildings", name, mask)] if count else [])
