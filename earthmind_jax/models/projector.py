"""The two small maps out of and into the language model's width."""

from __future__ import annotations

import flax.linen as nn
import jax
from jax import Array

from earthmind_jax.config import Precision, require
from earthmind_jax.nn.linear import Linear
from earthmind_jax.nn.norm import LayerNorm
from earthmind_jax.ops.windows import pixel_shuffle


class Projector(nn.Module):
    """Vision features to language-model tokens (published ``pixel_shuffle`` + ``mlp1``).

    Attributes:
      width: of the language model.
      downsample: pixel-shuffle factor; factor x factor patches become one token.
      version: "v2", or "v1" of the first InternVL releases, which swaps rows and columns.
    """

    width: int
    downsample: int = 2
    version: str = "v2"
    precision: Precision = Precision()

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """[B H' W' C] patch features -> [B N D] tokens, row-major, N = H' W' / downsample^2.

        Raises:
          UserError: a side of the grid is not a multiple of ``downsample``.
        """
        rows, columns = features.shape[1:3]
        require(
            rows % self.downsample == 0 and columns % self.downsample == 0,
            f"A patch grid of {rows} x {columns} does not divide by the pixel-shuffle factor {self.downsample}.",
        )
        p = self.precision
        x = pixel_shuffle(features, self.downsample, self.version)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        x = LayerNorm(eps=1e-5, axis="hidden", precision=p, name="norm")(x)
        x = Linear(self.width, ("hidden", "embed"), precision=p, name="fc1")(x)
        x = jax.nn.gelu(x, approximate=False)
        return Linear(self.width, ("embed", "embed_out"), precision=p, name="fc2")(x)


class TextHiddenFcs(nn.Module):
    """Language-model states at ``[SEG]`` to prompts of the mask decoder (published ``text_hidden_fcs``)."""

    width: int
    precision: Precision = Precision()

    @nn.compact
    def __call__(self, hidden: Array) -> Array:
        """[... D] -> [... width]."""
        x = Linear(hidden.shape[-1], ("embed", "embed_out"), precision=self.precision, name="fc1")(hidden)
        return Linear(self.width, ("embed", "hidden"), precision=self.precision, name="fc2")(jax.nn.relu(x))
