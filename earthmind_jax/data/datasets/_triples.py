"""Data sets of three folders, optical, SAR and label map, with one file name for the three."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earthmind_jax.data.datasets._entry import size
from earthmind_jax.data.datasets._folders import stems, subfolder
from earthmind_jax.data.datasets._labels import map_turns, question_of_classes
from earthmind_jax.data.records import Line, make_line
from earthmind_jax.errors import UserError

Image = Callable[[Path, str], Any]
ENDINGS = (".tif", ".tiff", ".png")


@dataclass(frozen=True, kw_only=True)
class Triples:
    """Where the files lie and what the labels mean.

    Attributes:
      optical, sar, labels: names that the folders go by.
      optical_image, sar_image: what a record writes for a file, given it and its path from the root.
      classes: label value -> name; made from the values of a map where the files come in two codings.
    """

    title: str
    optical: tuple[str, ...]
    sar: tuple[str, ...]
    labels: tuple[str, ...]
    classes: Mapping[int, str]
    optical_image: Image = lambda file, path: path
    sar_image: Image = lambda file, path: path

    def found(self, folder: Path) -> bool:
        """Whether a folder has SAR images and label maps, or optical ones, under these names."""
        return subfolder(folder, *self.sar) is not None and subfolder(folder, *self.optical, *self.labels) is not None

    def read(self, root: Path, folder: Path, *, labelled: bool, only: frozenset[str] = frozenset()) -> Iterator[Line]:
        """A line for each file name in the folders, in order; or for those of the names in ``only``.

        Where the publishers keep the others back their folder is missing: the optical image is left out, the question
        has no answer.

        Raises:
          UserError: there is no SAR, or there are no label maps though the part is ``labelled``.
        """
        sar = subfolder(folder, *self.sar)
        if sar is None:
            raise UserError(f"'{folder}' has no folder {' or '.join(self.sar)}, which {self.title} keeps its SAR in.")
        optical, labels = subfolder(folder, *self.optical), subfolder(folder, *self.labels)
        if labelled and labels is None:
            raise UserError(f"'{folder}' has no folder {' or '.join(self.labels)}, the label maps of {self.title}.")
        there = {name for place in (sar, optical, labels) if place is not None for name in stems(place, ENDINGS)}
        for name in sorted(only or there):
            yield self._line(root, sar / name, optical, labels)

    def _line(self, root: Path, sar: Path, optical: Path | None, labels: Path | None) -> Line:
        name = sar.stem if sar.parent.parent == root else f"{sar.parent.parent.relative_to(root).as_posix()}/{sar.stem}"

        def relative(path: Path) -> str:
            return path.relative_to(root).as_posix()

        if not sar.is_file():
            return Line(f"{sar}", None, (f": there is no SAR image '{sar}'.",))
        values: dict[str, Any] = {"id": name, "optical": None}
        turns: list[dict[str, Any]] = [{"question": question_of_classes(tuple(self.classes.values()), [])["question"]}]
        try:
            if labels is not None:
                path = labels / sar.name
                image = sar if optical is None else optical / sar.name
                turns = map_turns(path, relative(path), name, self._coding(path), size(root, relative(image)))
            if optical is not None:
                values["optical"] = self.optical_image(optical / sar.name, relative(optical / sar.name))
            values["sar"] = self.sar_image(sar, relative(sar))
        except UserError as error:
            return Line(f"{sar}", None, (f": {error}",))
        return make_line(values | {"turns": turns}, f"{sar}", root)

    def _coding(self, path: Path) -> Mapping[int, str]:
        return self.classes
