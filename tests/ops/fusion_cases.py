"""Small seeded inputs for the fusion tests."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp

from earthmind_jax.ops import fusion

N_MODES = [name for name, mode in fusion.FUSION.items() if mode.sensors_out == 1]
HCA = ["hca", "hca_plus", "hca_gated"]


def scene(seed=0, *, batch=2, tiles=3, tokens=12, width=16, text=5, dtype=jnp.float32):
    """Optical, SAR and text of unequal norms, so that no score is uniform by accident."""
    keys = jax.random.split(jax.random.key(seed), 4)
    shape = (batch, tiles, tokens, width)
    optical = jax.random.normal(keys[0], shape) * jax.random.uniform(keys[3], (*shape[:3], 1), minval=0.5, maxval=2)
    sar = jax.random.normal(keys[1], shape) + 0.3
    return {
        "optical": optical.astype(dtype),
        "sar": sar.astype(dtype),
        "text": jax.random.normal(keys[2], (batch, text, width)).astype(dtype),
    }


def start(mode, width=16, seed=1, **options):
    """Parameters of ``mode`` as initialised."""
    specs = fusion.fusion_specs(mode, width, **options)
    keys = jax.random.split(jax.random.key(seed), max(len(specs), 1))
    return {name: s.init(key, s.shape, jnp.float32) for key, (name, s) in zip(keys, specs.items(), strict=False)}


def trained(mode, width=16, seed=2, **options):
    """Parameters of ``mode`` moved away from their start."""
    params = start(mode, width, **options)
    keys = jax.random.split(jax.random.key(seed), max(len(params), 1))
    return {n: v + 0.2 * jax.random.normal(k, v.shape) for k, (n, v) in zip(keys, params.items(), strict=False)}


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
