"""One causal decoder for every language model: Qwen2, InternLM2 and Phi-3 are settings of :class:`LmConfig`."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from earthmind_jax.config import LmConfig, Precision, RopeConfig
from earthmind_jax.nn.embed import TokenEmbed
from earthmind_jax.nn.linear import Linear, merge_factors
from earthmind_jax.nn.norm import RMSNorm
from earthmind_jax.nn.param import constrain
from earthmind_jax.nn.stack import scan_or_loop
from earthmind_jax.ops.attention import attend, causal_mask
from earthmind_jax.ops.product import on_cpu
from earthmind_jax.ops.rope import apply_rope, inverse_frequencies, rope_tables, table_scale
from earthmind_jax.types import KVCache, LmOutput


def init_cache(config: LmConfig, batch: int, capacity: int, dtype: Any = "float32") -> KVCache:
    """An empty cache for ``capacity`` tokens (prompt plus answer) of ``batch`` samples.

    On a CPU it is float32, which holds half-precision values as they are: there XLA widens all of a half-precision
    cache and rounds it back at every token.
    """
    dtype = jnp.promote_types(dtype, jnp.float32) if on_cpu() else dtype
    shape = (config.depth, batch, capacity, config.kv_heads, config.head_dim)
    return KVCache(k=jnp.zeros(shape, dtype), v=jnp.zeros(shape, dtype), length=jnp.zeros((batch,), jnp.int32))


@struct.dataclass
class Shared:
    """What all layers of one call have in common: RoPE tables [B T h], mask [B 1 T S], cache slots [B T]; on request
    the queries [B M] whose attention is wanted."""

    cos: Array
    sin: Array
    mask: Array
    slots: Array
    rows: Array | None = None


@struct.dataclass
class Captured:
    """Per-layer outputs kept on request: hidden state [B T D], head-mean attention [B T S] (of some rows [B M S])."""

    state: Array | None
    attention: Array | None


class Decoder(nn.Module):
    """Embeddings in, hidden states out; ``embed`` and ``logits`` are the two ends of the vocabulary."""

    config: LmConfig
    precision: Precision = Precision()

    def setup(self) -> None:
        c, p = self.config, self.precision
        self.table = TokenEmbed(c.vocab, c.width, p, nn.initializers.normal(c.embed_init), name="embed")
        self.final_norm = RMSNorm(c.norm_eps, precision=p, name="norm")
        if not c.tie:
            self.output = Linear(
                c.vocab,
                ("embed", "vocab"),
                use_bias=False,
                precision=p,
                lora=c.lora,
                kernel_init=nn.initializers.normal(0.02),
                output=p.logits,
                name="head",
            )

    def embed(self, tokens: Array) -> Array:
        """int32 [B T] -> [B T D]."""
        return self.table(tokens)

    def logits(self, hidden: Array) -> Array:
        """Final states [... D] -> [... V] in ``precision.logits`` (float32)."""
        if not self.config.tie:
            return self.output(hidden)
        compute, out = self.precision.compute, self.precision.logits
        head = self.table.head().astype(compute)
        return jnp.einsum("...d,dv->...v", hidden.astype(compute), head, preferred_element_type=out)

    def head(self) -> Array:
        """The output matrix [D V], adapters included: for losses that never form all logits at once."""
        if self.config.tie:
            return self.table.head()
        variables = self.output.variables
        kernel = variables["params"]["kernel"]
        if not self.output.adapted:
            return kernel
        lora = self.config.lora
        return merge_factors(kernel, variables["lora"]["a"], variables["lora"]["b"], lora.alpha / lora.rank)

    def init_all(self, tokens: Array) -> Array:
        """Touch every parameter once: tokens [B T] -> logits [B T V]."""
        return self.logits(self(self.embed(tokens)).hidden)

    @nn.compact
    def __call__(
        self,
        embeds: Array,
        positions: Array | None = None,
        lengths: Array | None = None,
        cache: KVCache | None = None,
        *,
        fresh: bool = False,
        states: bool = False,
        attention: bool = False,
        rows: Array | None = None,
    ) -> LmOutput:
        """Run all layers over right-padded ``embeds`` [B T D].

        Args:
          positions: int32 [B T], rotary positions; default: counted from the cache's length, padding repeating the last
            one. Scaled RoPE (dynamic, longrope) goes by the largest position given, over the whole call.
          lengths: int32 [B], tokens in use in this call; default T. Later ones are padding: nobody attends to them.
          cache: earlier keys and values. New ones are written behind each row's ``cache.length``, which then grows by
            ``lengths``; what does not fit into its capacity is dropped. Without one, tokens see this call alone.
          fresh: the cache is known to be empty (prefill), so attention need not look at its unused slots.
          states, attention: also return all hidden states / the head-mean attention of all layers. The columns of the
            latter are the tokens of this call, or the slots of a cache that is not fresh.
          rows: int32 [B M], the only queries whose attention is wanted; it is returned without those of all others ever
            being formed.

        Returns:
          ``hidden`` [B T D] after the final norm; the grown cache if one was given; ``states`` [L+1 B T D]: the
          embeddings, the output of each layer but the last, and ``hidden``; ``attention`` float32 [L B T S], or of
          ``rows`` [L B M S].
        """
        c = self.config
        batch, length, _ = embeds.shape
        lengths = jnp.full((batch,), length, jnp.int32) if lengths is None else lengths
        start = jnp.zeros((batch,), jnp.int32) if cache is None else cache.length
        steps = jnp.arange(length, dtype=jnp.int32)[None]
        slots = start[:, None] + steps  # [B T]
        if positions is None:
            positions = start[:, None] + jnp.minimum(steps, jnp.maximum(lengths[:, None] - 1, 0))
        cos, sin = rope(c.rope, c.head_dim, positions)
        if cache is None or fresh:
            mask = causal_mask(jnp.broadcast_to(steps, slots.shape), steps < lengths[:, None], c.sliding_window)
        else:
            used = jnp.arange(cache.k.shape[2], dtype=jnp.int32)[None] < (start + lengths)[:, None]
            mask = causal_mask(slots, used, c.sliding_window)
        shared = Shared(cos=cos, sin=sin, mask=mask, slots=slots, rows=rows)

        x = embedded = constrain(embeds.astype(self.precision.compute), ("batch", None, None))
        remat, packed = c.remat if cache is None else "none", not self.is_initializing()
        blocks = scan_or_loop(DecoderBlock, c.depth, scan=c.scan, remat=remat, packed=packed)
        blocks = blocks(c, self.precision, fresh, states, attention, name="blocks")
        stored = None if cache is None else (cache.k, cache.v)
        (x, stored), captured = blocks((x, stored), jnp.arange(c.depth), shared)
        hidden = self.final_norm(x)
        return LmOutput(
            hidden=hidden,
            cache=None if cache is None else KVCache(k=stored[0], v=stored[1], length=start + lengths),
            states=jnp.concatenate([embedded[None], captured.state[:-1], hidden[None]]) if states else None,
            attention=captured.attention,
        )


def rope(config: RopeConfig, head_dim: int, positions: Array) -> tuple[Array, Array]:
    """cos and sin tables, float32 [B T h], for ``positions`` [B T].

    "dynamic" (NTK) and "longrope" choose their frequencies from the largest position of the call, over all its rows, as
    the published models do; so there a long row changes the others of its batch.
    """
    inv_freq = inverse_frequencies(
        head_dim,
        config.theta,
        kind=config.kind,
        factor=config.factor,
        max_position=config.max_position,
        original_max_position=config.original_max_position,
        short_factor=config.short_factor,
        long_factor=config.long_factor,
        length=jnp.max(positions) + 1,
    )
    scale = table_scale(
        config.kind, max_position=config.max_position, original_max_position=config.original_max_position
    )
    return rope_tables(positions, inv_freq, scale)


class DecoderBlock(nn.Module):
    """``x += attn(norm1(x)); x += mlp(norm2(x))``; the carry also holds the keys and values of all layers."""

    config: LmConfig
    precision: Precision
    fresh: bool = False
    states: bool = False
    attention: bool = False

    @nn.compact
    def __call__(self, carry: tuple[Array, Any], layer: Array, shared: Shared) -> tuple[Any, Captured]:
        x, stored = carry
        c, p = self.config, self.precision
        attn = DecoderAttention(c, p, self.fresh, self.attention, name="attn")
        y, stored, weights = attn(RMSNorm(c.norm_eps, precision=p, name="norm1")(x), stored, layer, shared)
        x = x + y
        x = x + GatedMlp(c, p, name="mlp")(RMSNorm(c.norm_eps, precision=p, name="norm2")(x))
        x = constrain(x, ("batch", None, None))
        return (x, stored), Captured(state=x if self.states else None, attention=weights)


class DecoderAttention(nn.Module):
    """Grouped-query causal attention with rotary positions."""

    config: LmConfig
    precision: Precision
    fresh: bool = False
    weights: bool = False

    @nn.compact
    def __call__(self, x: Array, stored: Any, layer: Array, shared: Shared) -> tuple[Array, Any, Array | None]:
        """``stored``: keys and values [L B S K h] of all layers, or None; returned behind the output, grown."""
        c, p = self.config, self.precision

        def project(name: str, heads: int, axis: str) -> Array:
            features, axes = (heads, c.head_dim), ("embed", axis, "head")
            return Linear(features, axes, use_bias=c.qkv_bias, precision=p, lora=c.lora, name=name)(x)

        q = apply_rope(project("q", c.heads, "heads"), shared.cos, shared.sin)  # [B T N h]
        k = apply_rope(project("k", c.kv_heads, "kv_heads"), shared.cos, shared.sin)  # [B T K h]
        v = project("v", c.kv_heads, "kv_heads")
        if stored is not None:
            # The whole cache rides in the carry, so that a step writes its T rows in place and copies nothing else.
            rows = jnp.arange(x.shape[0])[:, None]
            stored = tuple(
                full.at[layer, rows, shared.slots].set(new.astype(full.dtype), mode="drop")
                for full, new in zip(stored, (k, v), strict=True)
            )
            if not self.fresh:
                k, v = (jax.lax.dynamic_index_in_dim(full, layer, keepdims=False) for full in stored)
                k, v = k.astype(q.dtype), v.astype(q.dtype)
        y, mean = attend(q, k, v, mask=shared.mask, return_weights=self.weights and shared.rows is None), None
        if shared.rows is not None:
            chosen = jnp.take_along_axis(q, shared.rows[:, :, None, None], axis=1)
            seen = jnp.take_along_axis(shared.mask, shared.rows[:, None, :, None], axis=2)
            mean = jnp.mean(attend(chosen, k, v, mask=seen, return_weights=True)[1], axis=1)
        elif self.weights:
            y, weights = y
            mean = jnp.mean(weights.astype(jnp.float32), axis=1)
        axes = ("heads", "head", "embed")
        y = Linear(c.width, axes, use_bias=False, contract=2, precision=p, lora=c.lora, name="o")(y)
        return y, stored, mean


class GatedMlp(nn.Module):
    """``down(silu(gate(x)) * up(x))``."""

    config: LmConfig
    precision: Precision

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.config

        def dense(name: str, features: int, axes: tuple[str, str], x: Array) -> Array:
            return Linear(features, axes, use_bias=False, precision=self.precision, lora=c.lora, name=name)(x)

        gate = jax.nn.silu(dense("gate", c.mlp, ("embed", "mlp"), x))
        return dense("down", c.width, ("mlp", "embed"), gate * dense("up", c.mlp, ("embed", "mlp"), x))
