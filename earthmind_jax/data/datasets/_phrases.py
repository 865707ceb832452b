"""Referring segmentation in the layout of RefSegRS: ``output_phrase_{split}.txt``, a picture's name and words a line,
and a mask file of the same name. Facts: JessicaYuan/RefSegRS on Hugging Face, HIT-SIRS/CroBIM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from earthmind_jax.data.datasets._entry import line, picture, require_file, size
from earthmind_jax.data.datasets._refer import ANSWER, QUESTION
from earthmind_jax.data.records import Line
from earthmind_jax.errors import UserError


def read(root: Path, home: str, split: str, places: tuple[str, str], endings: tuple[str, ...]) -> Iterator[Line]:
    """A line for each line of a split.

    Args:
      home: folder below ``root`` that holds the split files and the two ``places``, of images and of masks.
      endings: of both, where the split names none.
    """
    path = require_file(root / home / f"output_phrase_{split}.txt")
    images, masks = (str(Path(home) / place) for place in places)

    def values(raw: bytes, number: int) -> dict[str, Any]:
        try:
            name, _, phrase = raw.decode("utf-8-sig").strip().partition(" ")
        except UnicodeDecodeError as error:
            raise UserError("the text is not UTF-8.") from error
        if not phrase.strip():
            raise UserError(f"it must be the name of a picture and words about it, not '{name}'.")
        image, mask = (picture(root, place, name, endings) for place in (images, masks))
        shape, marked = size(root, image), _mask_size(root / mask)
        if shape != marked:
            raise UserError(
                f"the mask '{root / mask}' is {marked[0]} x {marked[1]} but its image {shape[0]} x {shape[1]}."
            )
        turn = {"question": QUESTION.format(phrase.strip().removesuffix(".")), "answer": ANSWER, "mask": mask}
        return {"id": f"{split}/{number}", "optical": image, "turns": [turn]}

    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if raw.strip():
                yield line(f"{path} line {number}", root, lambda r=raw, n=number: values(r, n))


def _mask_size(path: Path) -> tuple[int, int]:
    """Rows and columns of a mask file, whose numbers may be of any kind that a mask can have."""
    if path.suffix.lower() in (".tif", ".tiff"):
        from earthmind_jax.geo.raster import open_raster

        with open_raster(path, labels=True) as dataset:
            return dataset.height, dataset.width
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"'{path}' cannot be read as a mask ({error}).") from error
