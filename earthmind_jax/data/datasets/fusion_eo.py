"""FusionEO: conversations about optical and SAR pairs (the paired part of EarthMind-data).

An entry names one file that lies in both image folders; its conversation is kept as it is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from earthmind_jax.data.datasets import Dataset
from earthmind_jax.data.datasets._folders import read_json
from earthmind_jax.data.records import Line, make_line
from earthmind_jax.errors import UserError

TITLE = "FusionEO"
IMAGES = ("pair_data/train", "train")
TEXTS = "final_all.json"
SPEAKERS = ("human", "gpt")


def read(root: Path, split: str) -> Iterator[Line]:
    """The conversations in the order of the file."""
    folder, path = _images(root), _texts(root)
    if folder is None:
        raise UserError(f"'{root}' has no folder {IMAGES[0]} with rgb/img and sar/img, the images of {TITLE}.")
    if path is None:
        raise UserError(f"'{root}' has no {TEXTS}, the conversations of {TITLE}.")
    entries = read_json(path)
    if not isinstance(entries, list):
        raise UserError(f"'{path}' must be a list of conversations.")
    for number, entry in enumerate(entries):
        yield _line(root, folder, path, entry, number)


def _images(root: Path) -> Path | None:
    return next((root / name for name in IMAGES if (root / name / "rgb" / "img").is_dir()), None)


def _texts(root: Path) -> Path | None:
    places = (root / TEXTS, *(root / name / TEXTS for name in ("pair_data", *IMAGES)))
    return next((path for path in places if path.is_file()), None)


def _line(root: Path, folder: Path, path: Path, entry: Any, number: int) -> Line:
    name = entry.get("image") if isinstance(entry, dict) else None
    where = f"{path} entry {number}"
    if not isinstance(name, str) or not name or Path(name).is_absolute() or ".." in Path(name).parts:
        return Line(where, None, (f": 'image' must be the name of a file, not {name!r}.",))
    try:
        turns = conversation(entry.get("conversations"))
    except UserError as error:
        return Line(where, None, (f": {error}",))
    images = {
        sensor: (folder / place / "img" / name).relative_to(root).as_posix()
        for sensor, place in (("optical", "rgb"), ("sar", "sar"))
    }
    return make_line({"id": f"{number}-{Path(name).stem}", **images, "turns": turns}, where, root)


def conversation(said: Any) -> list[dict[str, str]]:
    """Turns of a list of ``{"from", "value"}``: what is answered before a question is left out, questions that follow
    one another are one (the published reading); UserError where it has another form."""
    if not isinstance(said, list) or not said:
        raise UserError(f"'conversations' must be a list of what was said, not {str(said)[:80]}.")
    turns: list[dict[str, str]] = []
    asked = ""
    for one in said:
        speaker, text = (one.get("from"), one.get("value")) if isinstance(one, dict) else (None, None)
        if speaker not in SPEAKERS or not isinstance(text, str):
            raise UserError(f"'conversations' needs 'from' (human or gpt) and 'value' (text), not {str(one)[:80]}.")
        if speaker == "human":
            asked += text
        elif asked:
            turns.append({"question": asked.strip(), "answer": text.strip()})
            asked = ""
    if not turns:
        raise UserError("'conversations' has no question with an answer.")
    return turns


DATASET = Dataset(
    title=TITLE,
    splits=("train",),
    read=read,
    found=lambda root: _images(root) is not None and _texts(root) is not None,
    layout="""
        final_all.json                                    [{"image": "000123.png", "conversations": [...]}, ...]
        pair_data/train/rgb/img/000123.png, pair_data/train/sar/img/000123.png
    """,
    licence="as the repository of EarthMind-data says; parts are for research only",
    source="https://huggingface.co/datasets/sy1998/EarthMind-data (Multisensor_RS_Data)",
)
