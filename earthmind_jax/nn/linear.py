"""A dense map over any number of trailing axes, with optional low-rank adaptation.

LoRA (Hu et al. 2021): ``y = x W + (alpha / rank) (x a) b``. The factors are a Flax collection of their own, ``lora``,
so that they can be trained, saved and merged without touching the kernels.
"""

from __future__ import annotations

import re
import string

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from earthmind_jax.config import LoraConfig, Precision
from earthmind_jax.errors import UserError
from earthmind_jax.nn.param import Axes, Initializer, check_axes, constrain, fan_in_normal, param
from earthmind_jax.ops.product import product


class Linear(nn.Module):
    """``y[..., out] = sum_in x[..., in] kernel[in, out] + bias[out]`` where ``in`` and ``out`` may be several axes.

    Attributes:
      features: output axes, e.g. ``4096`` or ``(heads, head_dim)``.
      axes: logical names of the kernel, input axes first, e.g. ``("embed", "heads", "head")``.
      use_bias: adds ``bias[out]``.
      contract: number of trailing axes of ``x`` that are summed over.
      precision: storage and compute dtypes.
      lora: adapters, present if ``lora.targets`` is found (``re.search``) in this layer's path, e.g. "blocks/attn/q".
      kernel_init: default is a truncated normal of variance 1 / fan_in.
      bias_init: default zeros.
      output: dtype of the result, also used to accumulate; None is ``precision.compute``.
    """

    features: int | tuple[int, ...]
    axes: Axes
    use_bias: bool = True
    contract: int = 1
    precision: Precision = Precision()
    lora: LoraConfig | None = None
    kernel_init: Initializer | None = None
    bias_init: Initializer = nn.initializers.zeros
    output: str | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``x`` [..., in...] -> [..., out...]."""
        inputs, outputs = x.shape[x.ndim - self.contract :], self._outputs()
        init = self.kernel_init or fan_in_normal(self.contract)
        compute = self.precision.compute
        kernel = param(self, "kernel", init, inputs + outputs, self.axes, self.precision.param, compute=compute)
        x = x.astype(compute)
        y = self._dot(x, kernel, self.contract)
        if self.use_bias:
            bias = param(self, "bias", self.bias_init, outputs, self.axes[self.contract :], self.precision.param)
            y = y + bias.astype(y.dtype)
        if self.adapted:
            y = y + self._adapter(x, inputs, outputs).astype(y.dtype)
        return y

    @property
    def adapted(self) -> bool:
        """Whether this layer carries LoRA factors."""
        return self.lora is not None and re.search(self.lora.targets, "/".join(self.path)) is not None

    def _outputs(self) -> tuple[int, ...]:
        return (self.features,) if isinstance(self.features, int) else tuple(self.features)

    def _dot(self, x: Array, kernel: Array, contract: int) -> Array:
        letters = string.ascii_letters[: kernel.ndim]
        spec = f"...{letters[:contract]},{letters}->...{letters[contract:]}"
        return product(spec, x, kernel, self.output)

    def _adapter(self, x: Array, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Array:
        a, b = self._factors(inputs, outputs)
        if self.lora.dropout > 0.0 and self.has_rng("dropout"):
            x = nn.Dropout(self.lora.dropout, deterministic=False, name="dropout")(x)
        return self._dot(self._dot(x, a, self.contract).astype(x.dtype), b, 1) * (self.lora.alpha / self.lora.rank)

    def _factors(self, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> tuple[Array, Array]:
        if not self.is_initializing() and not self.has_variable("lora", "a"):
            raise UserError(
                f"The model is configured with LoRA but the parameters hold no factors for '{'/'.join(self.path)}'; "
                "set lm.lora to null for weights without adapters."
            )
        rank, contract = self.lora.rank, self.contract
        # Uniform in +-1/sqrt(fan_in) for a and zeros for b, as in the PEFT library: the adapted model starts unchanged.
        uniform = nn.initializers.variance_scaling(
            1 / 3, "fan_in", "uniform", in_axis=tuple(range(contract)), out_axis=contract
        )
        a = self._factor("a", uniform, (*inputs, rank), (*self.axes[:contract], "rank"))
        b = self._factor("b", nn.initializers.zeros, (rank, *outputs), ("rank", *self.axes[contract:]))
        return a, b

    def _factor(self, name: str, init: Initializer, shape: tuple[int, ...], axes: Axes) -> Array:
        check_axes(f"lora {name}", shape, axes)
        boxed = nn.with_logical_partitioning(init, axes)
        stored = self.variable("lora", name, lambda: boxed(self.make_rng("params"), shape, self.precision.param)).value
        return constrain(stored.astype(self.precision.compute), axes)


def merge_factors(kernel: Array, a: Array, b: Array, scale: float) -> Array:
    """``kernel + scale * a b`` in float32, returned in the kernel's dtype.

    Shapes: kernel [in..., out...], a [in..., R], b [R, out...]; or all three with a leading stacked-layers axis.
    ``scale`` is alpha / rank.
    """
    stacked = a.ndim + b.ndim - 2 == kernel.ndim + 1

    def merge(kernel: Array, a: Array, b: Array) -> Array:
        update = jnp.tensordot(a.astype(jnp.float32), b.astype(jnp.float32), axes=1)
        return (kernel.astype(jnp.float32) + scale * update).astype(kernel.dtype)

    return (jax.vmap(merge) if stacked else merge)(kernel, a, b)
