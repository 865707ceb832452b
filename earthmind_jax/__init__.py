"""EarthMind in JAX: optical and SAR images in, answers and georeferenced masks out.

The public names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from earthmind_jax.infer.predictor import EarthMind
    from earthmind_jax.infer.result import Answer, Mask

__version__ = "0.1.0"
__all__ = ["Answer", "EarthMind", "Mask", "__version__"]

_WHERE = {
    "EarthMind": "earthmind_jax.infer.predictor",
    "Answer": "earthmind_jax.infer.result",
    "Mask": "earthmind_jax.infer.result",
}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
