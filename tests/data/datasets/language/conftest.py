"""Small data sets in their published layouts, written when a test asks for one: ``build(name)``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mask_sets
import pytest
import text_sets

TEXTS = ("aid", "dior_rsvg", "rsvqa_hrben", "rsvqa_lr", "uc_merced", "vrsbench")
MASKS = ("earthmind_bench", "earthmind_data", "mmrs_1m", "ref_seg_rs", "risbench", "rrsis_d")
BUILDERS = {name: getattr(text_sets, name) for name in TEXTS} | {name: getattr(mask_sets, name) for name in MASKS}


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Path]:
    """Writes the data set of a name, and ``more`` into it, and gives its directory."""

    def made(name: str, *more: Callable[[Path], None]) -> Path:
        root = tmp_path / name
        root.mkdir()
        for write in (BUILDERS[name], *more):
            write(root)
        return root

    return made


@pytest.fixture
def write_pairs() -> Callable[[Path], None]:
    return mask_sets.pairs
