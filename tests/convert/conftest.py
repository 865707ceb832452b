"""A training checkpoint beside what it was trained on."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def parts():
    from trained import make_parts  # needs torch

    return make_parts()


@pytest.fixture
def files(parts, tmp_path):
    from trained import write_parts

    return write_parts(parts, tmp_path)
