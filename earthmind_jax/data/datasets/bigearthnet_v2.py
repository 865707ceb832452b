"""BigEarthNet v2 (reBEN): Sentinel-2 and Sentinel-1 patches, labels of 19 classes and pixel reference maps.

Split and labels of each patch are in ``metadata.parquet``, which needs pyarrow. The reference map holds CORINE codes;
the mask of a class is that of its codes. The patches were made by sen2cor 2.11 from products without the offset, though
their names say baseline 99.99.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from earthmind_jax.data.datasets import Dataset
from earthmind_jax.data.datasets._corine import NOMENCLATURE
from earthmind_jax.data.datasets._entry import shown
from earthmind_jax.data.datasets._folders import ask_mask
from earthmind_jax.data.datasets.bigearthnet_v1 import NAME, label_turns, sentinel1, sentinel2
from earthmind_jax.data.records import Line, make_line
from earthmind_jax.errors import UserError

TITLE = "BigEarthNet v2 (reBEN)"
TABLE, S2, S1, MAPS = "metadata.parquet", "BigEarthNet-S2", "BigEarthNet-S1", "Reference_Maps"
COLUMNS = ["patch_id", "labels", "split", "s1_name"]
ROWS = 4096  # read at once


def read(root: Path, split: str) -> Iterator[Line]:
    """The patches of a split, in the order of the table."""
    there = [name for name in (S2, S1, MAPS) if (root / name).is_dir()]
    if not {S2, S1} & set(there):
        raise UserError(f"'{root}' has neither {S2} nor {S1}, the folders of {TITLE}.")
    for row in _rows(root / TABLE):
        if row["split"] == split:
            yield _line(root, there, row)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise UserError(f"'{path}' needs pyarrow to be read; install it: pip install 'earthmind-jax[data]'") from None
    if not path.is_file():
        raise UserError(f"There is no '{path}', the table of {TITLE}; download it beside the folders.")
    try:
        with parquet.ParquetFile(path) as file:
            missing = [name for name in COLUMNS if name not in file.schema_arrow.names]
            if missing:
                raise UserError(f"'{path}' has no column '{missing[0]}'; it has {', '.join(file.schema_arrow.names)}.")
            for batch in file.iter_batches(ROWS, columns=COLUMNS):
                yield from batch.to_pylist()
    except (arrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"'{path}' cannot be read as a parquet table, is it complete? ({reason})") from error


def _line(root: Path, there: list[str], row: dict[str, Any]) -> Line:
    patch, pair = row["patch_id"], row["s1_name"]
    where = f"{root / TABLE} patch {patch}"
    try:
        named = {"patch_id": patch} | ({"s1_name": pair} if S1 in there else {})
        for column, name in named.items():
            if not isinstance(name, str) or not NAME.fullmatch(name):
                raise UserError(f"column '{column}': {shown(name)} is no name of a patch.")
        if not isinstance(row["labels"], list):
            raise UserError(f"column 'labels' must be a list of names, not {shown(row['labels'])}.")
        turns = label_turns(row["labels"], of_19=True)
    except UserError as error:
        return Line(where, None, (f": {error}",))
    tile = patch.rsplit("_", 2)[0]
    if MAPS in there:
        path = f"{MAPS}/{tile}/{patch}/{patch}_reference_map.tif"
        for label in dict.fromkeys(row["labels"]):
            turns.append(ask_mask(label.lower(), patch, {"file": path, "value": sorted(NOMENCLATURE[label])}))
    images = {
        "optical": sentinel2(f"{S2}/{tile}/{patch}", patch) if S2 in there else None,
        "sar": sentinel1(f"{S1}/{pair.rsplit('_', 3)[0]}/{pair}", pair) if S1 in there else None,
    }
    return make_line({"id": patch, **images, "turns": turns}, where, root)


DATASET = Dataset(
    title=TITLE,
    splits=("train", "validation", "test"),
    read=read,
    found=lambda root: (root / S2).is_dir() or (root / S1).is_dir(),
    layout="""
        metadata.parquet                                  patch_id, labels, split, s1_name of each patch (needs pyarrow)
        BigEarthNet-S2/<tile>/<patch>/                    <patch>_B01.tif ... <patch>_B12.tif
        BigEarthNet-S1/<product>/<patch>/                 <patch>_VV.tif, <patch>_VH.tif
        Reference_Maps/<tile>/<patch>/                    <patch>_reference_map.tif (may be missing)
    """,
    licence="Community Data License Agreement - Permissive 1.0",
    source="https://bigearth.net (arXiv 2407.03653)",
)
