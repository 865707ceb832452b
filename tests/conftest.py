"""Common ground of all tests: eight virtual CPU devices, quick compilation, exact matrix products, recorded data."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
FLAGS = {
    "--xla_force_host_platform_device_count": "8",
    # Toy programs run for milliseconds and compile for seconds: most of the suite's time would be LLVM's optimiser.
    "--xla_backend_optimization_level": "0",
    "--xla_llvm_disable_expensive_passes": "true",
}
if version("jaxlib").startswith("0.10."):  # XLA aborts at a flag that it does not know
    FLAGS["--xla_cpu_use_fusion_emitters"] = "false"  # a third of the time to compile

# Here rather than in a fixture: the flags are read once, when jax starts, and test modules import it when collected.
given = os.environ.get("XLA_FLAGS", "")
# XLA's pool has a thread per core; eight devices that wait for one another in collectives would use it up and hang.
os.environ.setdefault("NPROC", "32")
os.environ["XLA_FLAGS"] = " ".join([given, *(f"{k}={v}" for k, v in FLAGS.items() if k not in given)]).strip()


def pytest_configure() -> None:
    import jax

    jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_of_one_module() -> Iterator[None]:
    """A worker that kept every program it ever compiled would grow to 8 GB."""
    yield
    import jax

    jax.clear_caches()
    gc.collect()


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
