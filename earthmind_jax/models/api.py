"""The seam: what everyone outside ``nn/`` and ``models/`` needs of the model, as pure functions over flat parameters.

``init(cfg, key) -> Params``, ``forward(cfg, params, batch)``, ``param_axes(cfg)``, ``shapes(cfg)`` and
``init_cache(cfg.lm, ...)`` for the whole model; the parts of the road are in :mod:`earthmind_jax.models.earthmind`.
"""

from __future__ import annotations

from earthmind_jax.models.decoder import init_cache
from earthmind_jax.models.earthmind import forward, init, param_axes, shapes
from earthmind_jax.models.functional import combine, merge_lora

__all__ = ["combine", "forward", "init", "init_cache", "merge_lora", "param_axes", "shapes"]
