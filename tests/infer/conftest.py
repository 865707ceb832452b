"""A pair of files larger than the model's window, and a run over it, for the tests of large scenes."""

from __future__ import annotations

import pytest
import scenes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture(scope="module")
def pair(folder):
    return scenes.write(folder, "a", (101, 150))


@pytest.fixture(scope="module")
def whole(pair, folder):
    """One uninterrupted run."""
    return scenes.draw(pair, folder / "whole", weights=True)
