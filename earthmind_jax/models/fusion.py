"""The fusion of optical and SAR tokens as a module: it declares what the configured mode learns, no more.

The maths is :mod:`earthmind_jax.ops.fusion`; a new mode needs no change here.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
from jax import Array

from earthmind_jax.config import FusionConfig, Precision
from earthmind_jax.nn.param import param
from earthmind_jax.ops.fusion import FusionOptions, fuse, fusion_specs
from earthmind_jax.types import Fused


class Fusion(nn.Module):
    """Tokens of a pair [B I N D] -> :class:`Fused`, by ``config.mode``; ``width`` is D."""

    config: FusionConfig
    width: int
    precision: Precision = Precision()

    @nn.compact
    def __call__(
        self,
        optical: Array | None,
        sar: Array | None,
        optical_valid: Array | None = None,
        sar_valid: Array | None = None,
        text: Array | None = None,
        text_valid: Array | None = None,
        gate: bool = True,
    ) -> Fused:
        """See :func:`earthmind_jax.ops.fusion.fuse`; ``gate`` is that of ``release_2025_06`` (training True)."""
        known = {field.name for field in dataclasses.fields(FusionOptions)}
        options = {name: value for name, value in dataclasses.asdict(self.config).items() if name in known}
        params = {
            name: param(self, name, spec.init, spec.shape, spec.axes, self.precision.param)
            for name, spec in fusion_specs(self.config.mode, self.width, **options).items()
        }
        masks = {"optical_valid": optical_valid, "sar_valid": sar_valid, "text": text, "text_valid": text_valid}
        return fuse(self.config.mode, params, optical, sar, **masks, **options, gate=gate)
