"""Common ground of all tests: eight virtual CPU devices, exact matrix products, and the recorded data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
FLAG = "--xla_force_host_platform_device_count"

# Here rather than in a fixture: the flags are read once, when jax starts, and test modules import it when collected.
if FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAG}=8".strip()


def pytest_configure() -> None:
    import jax

    jax.config.update("jax_default_matmul_precision", "highest")


def _folder(variable: str, default: Path) -> Path:
    path = Path(os.environ.get(variable) or default)
    if not path.is_dir():
        pytest.skip(f"needs {variable}, or {path}")
    return path


@pytest.fixture(scope="session")
def goldens() -> Path:
    """Folder of the recorded outputs of the PyTorch code, one case a subfolder."""
    return _folder("EARTHMIND_GOLDENS", SHARED / "goldens")


@pytest.fixture(scope="session")
def sentinel() -> Path:
    """Folder of real Sentinel-1/2 pairs."""
    return _folder("EARTHMIND_SENTINEL", SHARED / "data" / "sentinel")
