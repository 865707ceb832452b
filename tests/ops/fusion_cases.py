"""Small seeded inputs for the fusion tests."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np

from earthmind_jax.ops import fusion

N_MODES = [name for name, mode in fusion.FUSION.items() if mode.sensors_out == 1]
HCA = ["hca", "hca_plus", "hca_gated"]


def scene(seed=0, *, batch=2, tiles=3, tokens=12, width=16, text=5, dtype=jnp.float32):
    """Optical, SAR and text of unequal norms, so that no score is uniform by accident."""
    random = np.random.default_rng(seed)
    shape = (batch, tiles, tokens, width)
    optical = random.normal(size=shape) * random.uniform(0.5, 2, size=(*shape[:3], 1))
    sar = random.normal(size=shape) + 0.3
    words = random.normal(size=(batch, text, width))
    return {k: jnp.asarray(v, dtype) for k, v in (("optical", optical), ("sar", sar), ("text", words))}


def start(mode, width=16, **options):
    """Parameters of ``mode`` as initialised."""
    specs = fusion.fusion_specs(mode, width, **options)
    return {name: s.init(jax.random.key(1), s.shape, jnp.float32) for name, s in specs.items()}


def trained(mode, width=16, seed=2, **options):
    """Parameters of ``mode`` moved away from their start."""
    random = np.random.default_rng(seed)
    return {n: v + 0.2 * random.normal(size=v.shape).astype(v.dtype) for n, v in start(mode, width, **options).items()}


def run(mode, inputs, params=None, **options):
    """Compiled ``fuse`` on a scene; validity masks may be among ``inputs``. Compiled once for each mode and shape."""
    params = trained(mode, inputs["text"].shape[-1]) if params is None else params
    return _run(mode, inputs, params, tuple(options.items()))


@functools.partial(jax.jit, static_argnums=(0, 3))
def _run(mode, inputs, params, options):
    rest = {k: v for k, v in inputs.items() if k not in ("optical", "sar")}
    return fusion.fuse(mode, params, inputs["optical"], inputs["sar"], **rest, **dict(options))


def same(a, b, tolerance=2e-6):
    """Trees equal within an absolute tolerance."""
    chex.assert_trees_all_close(a, b, rtol=0, atol=tolerance)
