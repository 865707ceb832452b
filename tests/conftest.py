"""Common ground of all tests: eight virtual CPU devices, quick compilation, exact matrix products, recorded data."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
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


CACHE = "JAX_COMPILATION_CACHE_DIR"


def pytest_configure(config: pytest.Config | None) -> None:
    """One cache of compiled programs for this session, its workers and the processes that tests start.

    Modules forget what they compiled, and processes begin with nothing; what they compile again comes from here. jit's
    own counts of what was compiled (``_cache_size``) know nothing of it.
    """
    if config is not None and CACHE not in os.environ:
        os.environ[CACHE] = tempfile.mkdtemp(prefix="earthmind-compiled-")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(CACHE), ignore_errors=True))
    import jax

    jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_of_one_module() -> Iterator[None]:
    """A worker that kept every program it ever compiled would grow to 8 GB."""
    yield
    import jax

    jax.clear_caches()
    gc.collect()


@pytest.fixture
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands use the first of the eight devices alone: for tests that show a road, and not what eight devices do."""
    import jax

    from earthmind_jax.distributed import mesh

    for user in ("train.run", "demo", "evaluate.fusion_bench"):
        monkeypatch.setattr(f"earthmind_jax.{user}.make_mesh", lambda c=None: mesh.make_mesh(c, jax.devices()[:1]))


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
