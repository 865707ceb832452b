"""Convolutions on channels-last images [B H W C], with PyTorch's padding and stride rules."""

from __future__ import annotations

import flax.linen as nn
import jax
from jax import Array

from earthmind_jax.config import Precision
from earthmind_jax.nn.param import Axes, Initializer, fan_in_normal, param
from earthmind_jax.ops.product import product


class Conv2d(nn.Module):
    """2-D convolution, ``kernel`` [kh kw C/groups features] (HWIO; from PyTorch's OIHW by transpose (2, 3, 1, 0)).

    Attributes:
      features: output channels.
      kernel: side of the square kernel, or (kh, kw), pixels.
      stride: pixels.
      padding: zeros added on every side, pixels.
      groups: channel groups; ``groups == C`` is a depthwise convolution.
      axes: logical names of the four kernel axes.
    """

    features: int
    kernel: int | tuple[int, int]
    stride: int = 1
    padding: int = 0
    groups: int = 1
    use_bias: bool = True
    axes: Axes = (None, None, "channel", "embed")
    precision: Precision = Precision()
    kernel_init: Initializer | None = None
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``x`` [B H W C] -> [B H' W' features], H' = (H + 2 padding - kh) // stride + 1."""
        kh, kw = (self.kernel, self.kernel) if isinstance(self.kernel, int) else self.kernel
        shape = (kh, kw, x.shape[-1] // self.groups, self.features)
        init, compute = self.kernel_init or fan_in_normal(3), self.precision.compute
        kernel = param(self, "kernel", init, shape, self.axes, self.precision.param, compute=compute)
        x = x.astype(compute)
        if kh == kw == self.stride and self.padding == 0 and self.groups == 1:
            y = _patch_product(x, kernel)
        else:
            y = jax.lax.conv_general_dilated(
                x,
                kernel,
                window_strides=(self.stride, self.stride),
                padding=((self.padding, self.padding),) * 2,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=self.groups,
            )
        if self.use_bias:
            bias = param(self, "bias", self.bias_init, (self.features,), self.axes[-1:], self.precision.param)
            y = y + bias.astype(y.dtype)
        return y


def _patch_product(x: Array, kernel: Array) -> Array:
    """A convolution whose windows do not overlap is one matrix product over patches. x [B H W C], kernel [p p C D]."""
    patch = kernel.shape[0]
    batch, height, width, channels = x.shape
    rows, columns = height // patch, width // patch
    x = x[:, : rows * patch, : columns * patch]  # PyTorch drops an incomplete last window
    x = x.reshape(batch, rows, patch, columns, patch, channels)
    return product("bhpwqc,pqcd->bhwd", x, kernel)


class ConvTranspose2x2(nn.Module):
    """Transposed convolution with a 2x2 kernel and stride 2: doubles the resolution, windows do not overlap.

    ``out[2y + i, 2x + j] = in[y, x] @ kernel[i, j] + bias`` with ``kernel`` [2 2 C features] (from PyTorch's
    ConvTranspose2d weight (C, features, 2, 2) by transpose (2, 3, 0, 1), no flip).
    """

    features: int
    use_bias: bool = True
    axes: Axes = (None, None, "channel", "embed")
    precision: Precision = Precision()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``x`` [B H W C] -> [B 2H 2W features]."""
        batch, height, width, channels = x.shape
        shape = (2, 2, channels, self.features)

        def init(key: Array, shape: tuple[int, ...], dtype: str) -> Array:
            # Each output pixel is a sum over C alone, so that the fan-in does not count the four kernel positions.
            return fan_in_normal(3, scale=4.0)(key, shape, dtype)

        compute = self.precision.compute
        kernel = param(self, "kernel", init, shape, self.axes, self.precision.param, compute=compute)
        y = product("bhwc,ijcd->bhiwjd", x.astype(compute), kernel)
        y = y.reshape(batch, 2 * height, 2 * width, self.features)
        if self.use_bias:
            bias = param(self, "bias", nn.initializers.zeros, (self.features,), self.axes[-1:], self.precision.param)
            y = y + bias.astype(y.dtype)
        return y
