"""Normalisation layers: parameters around :mod:`earthmind_jax.ops.norms` (float32 statistics)."""

from __future__ import annotations

import flax.linen as nn
from jax import Array

from earthmind_jax.config import Precision
from earthmind_jax.nn.param import param
from earthmind_jax.ops.norms import layer_norm, rms_norm


class RMSNorm(nn.Module):
    """``x / rms(x) * scale`` over the last axis; result in ``x.dtype``."""

    eps: float = 1e-6
    axis: str | None = "embed"
    precision: Precision = Precision()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = param(self, "scale", nn.initializers.ones, x.shape[-1:], (self.axis,), self.precision.param)
        return rms_norm(x, scale, self.eps)


class LayerNorm(nn.Module):
    """``(x - mean(x)) / std(x) * scale + bias`` over the last axis; result in ``x.dtype``."""

    eps: float = 1e-6
    axis: str | None = "embed"
    precision: Precision = Precision()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape, dtype = x.shape[-1:], self.precision.param
        scale = param(self, "scale", nn.initializers.ones, shape, (self.axis,), dtype)
        bias = param(self, "bias", nn.initializers.zeros, shape, (self.axis,), dtype)
        return layer_norm(x, scale, bias, self.eps)


def norm(kind: str, *, eps: float, precision: Precision, name: str, axis: str | None = "embed") -> nn.Module:
    """The layer of a configuration's ``norm`` field: "layer_norm" or "rms_norm"."""
    layer = {"layer_norm": LayerNorm, "rms_norm": RMSNorm}[kind]
    return layer(eps=eps, axis=axis, precision=precision, name=name)
