"""What commands print about an answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def print_answer(answer: Any, files: list[Path], as_json: bool, extra: dict[str, Any] | None = None) -> None:
    """An answer, what is to be said beside it (``extra``), and the files written; as JSON where asked."""
    facts = answer.to_dict() | (extra or {}) | {"files": [str(f) for f in files]}
    if as_json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    print(answer.text)
    for name, mask in zip(answer.names, facts["masks"], strict=True):
        what = f" ({mask['name']})" if "name" in mask else ""
        print(f"{name.replace('_', ' ')}{what}: {mask['share']:.1%} of the image, score {mask['score']:.2f}")
    if facts["fusion"]:
        print(f"weights: optical {facts['fusion']['optical']:.2f}, SAR {facts['fusion']['sar']:.2f}")
    print_rest(extra or {}, facts["notes"], files)


def print_rest(extra: dict[str, Any], notes: Sequence[str], files: Sequence[Path]) -> None:
    """What stands below an answer: further facts by name, notes, and the files written."""
    for key, value in extra.items():
        several = isinstance(value, dict)
        print(f"{key}: {', '.join(f'{name} {part}' for name, part in value.items()) if several else value}")
    for note in notes:
        print(f"note: {note}")
    for file in files:
        print(f"wrote {file}")
