"""Images that records describe: their numbers, and rows of HDF5 arrays."""

from __future__ import annotations

import numpy as np
import pytest
from described import reflectance_counts, write_rows


@pytest.fixture
def counts() -> np.ndarray:
    return reflectance_counts()


@pytest.fixture
def hdf5(tmp_path):
    return write_rows(tmp_path)
