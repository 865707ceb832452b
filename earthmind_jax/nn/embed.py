"""Token embedding table."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from earthmind_jax.config import Precision
from earthmind_jax.nn.param import Initializer, constrain, param


class TokenEmbed(nn.Module):
    """``embedding`` [V D]: looked up by token id, and the output head as well where the two are tied."""

    vocab: int
    width: int
    precision: Precision = Precision()
    embedding_init: Initializer = nn.initializers.normal(0.02)

    def setup(self) -> None:
        self.embedding = param(
            self,
            "embedding",
            self.embedding_init,
            (self.vocab, self.width),
            ("vocab", "vocab_embed"),
            self.precision.param,
            gather=False,
        )

    def __call__(self, tokens: Array) -> Array:
        """int [...] -> [... D] in the compute dtype. An id outside the table gives NaN, never a neighbour's row."""
        rest = (None,) * (tokens.ndim - 1)
        # Each device looks up its own columns for all tokens of its replica, then sends every sample home. Left to
        # itself, XLA brings the table (or its gradient) together on every device.
        tokens = constrain(tokens, ("replica", *rest))
        rows = jnp.take(self.embedding, tokens, axis=0, mode="fill", fill_value=jnp.nan)
        rows = constrain(rows.astype(self.precision.compute), ("replica", *rest, "vocab_embed"))
        return constrain(rows, ("batch", *rest, None))

    def head(self) -> Array:
        """The table as an output matrix [D V]."""
        return self.embedding.T
