"""Sensor-specific linear maps of the mask decoder's image features, identity at the start.

The mask decoder reads a blend of the optical and the SAR feature pyramid. Both come from one encoder, so their features
share a subspace and a plain convex sum can cancel what each sensor alone says; a linear map for each sensor lets
training pull them apart, exactly as ``hca_plus`` does for the language model's tokens. Published weights are unchanged
until the maps are trained.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from earthmind_jax.config import Precision
from earthmind_jax.nn.param import param
from earthmind_jax.types import ImageFeatures

MAPPED_MODES = ("hca_plus", "hca_gated")


class PyramidMaps(nn.Module):
    """Features of B images and ``optical`` bool [B] (else SAR) -> the same features through their sensor's maps."""

    precision: Precision

    @nn.compact
    def __call__(self, features: ImageFeatures, optical: Array) -> ImageFeatures:
        def mapped(name: str, x: Array) -> Array:
            width = x.shape[-1]
            kernel = param(
                self, name, lambda *_: jnp.stack([jnp.eye(width)] * 2), (2, width, width), (None, "channel", None),
                jnp.dtype(self.precision.param),
            )  # fmt: skip
            first, second = (jnp.einsum("bhwc,cd->bhwd", x, k.astype(x.dtype)) for k in kernel)
            return jnp.where(optical[:, None, None, None], first, second)

        return ImageFeatures(
            embed=mapped("embed", features.embed),
            high=tuple(mapped(f"high_{i}", x) for i, x in enumerate(features.high)),
        )
