"""Scaled dot-product attention, and the one place where its kernel is picked.

Axis letters: B batch, T query positions, S key positions, N query heads, K key/value heads, h head dimension,
G = N / K query heads that share one key/value head.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from earthmind_jax.ops.product import on_cpu

DENSE_LIMIT = 2**28
"""Largest number of float32 scores (B N T S) held at once before queries are taken block by block."""

BLOCK_SCORES = 2**26
"""Scores of one query block in the blockwise kernel."""

CPU_BLOCK_SCORES, CPU_QUERIES = 2**22, 512
"""On a CPU the scores of a query block should stay in its caches, as long as there are so many queries to cut."""


class Call(NamedTuple):
    """One attention call, checked and completed: what kernels receive and what decides between them."""

    q: Array  # [B T N h]
    k: Array  # [B S K h]
    v: Array  # [B S K h]
    mask: Array | None  # bool [B|1 1|N T|1 S]
    scale: float

    @property
    def scores(self) -> int:
        """Number of attention scores, B N T S."""
        batch, queries, heads, _ = self.q.shape
        return batch * heads * queries * self.k.shape[1]


class Kernel(NamedTuple):
    """``refusal`` says in words why a kernel cannot (or, for the automatic choice, should not) take a call."""

    run: Callable[[Call], Array]
    refusal: Callable[[Call], str | None]


def attend(
    q: Float[Array, "B T N h"],
    k: Float[Array, "B S K h"],
    v: Float[Array, "B S K h"],
    *,
    mask: Bool[Array, "#B #N #T S"] | None = None,
    scale: float | None = None,
    implementation: str = "auto",
    return_weights: bool = False,
) -> Float[Array, "B T N h"] | tuple[Float[Array, "B T N h"], Float[Array, "B N T S"]]:
    """Softmax(q k^T scale) v with a float32 softmax; query head n reads key/value head n // (N // K).

    Args:
      mask: true where a query may look at a key. A query without any such key gives zeros, with zero gradients.
      scale: positive factor of the scores; 1 / sqrt(h) if None.
      implementation: ``auto`` (the fastest kernel that takes the call), ``xla`` (ours, dense or blockwise by size), or
        a kernel by name: ``cudnn``, ``dense``, ``blockwise``. All are exact.
      return_weights: also return the attention weights, float32; only the dense kernel has them.

    Raises:
      ValueError: shapes that do not fit together, or a kernel that cannot take the call.
    """
    call = Call(q, k, v, mask, 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale)
    _check(call)
    if return_weights:
        if implementation not in ("auto", "xla", "dense"):
            raise ValueError(f"Attention weights exist in the dense kernel only, not in {implementation!r}.")
        return _dense(call)
    name = _pick(call, implementation)
    if name == "cudnn" and implementation == "auto":
        try:
            return KERNELS[name].run(call)
        except (NotImplementedError, RuntimeError, ValueError) as error:
            warnings.warn(f"cuDNN attention refused a call and XLA takes it instead: {error}", stacklevel=2)
            name = _pick(call, "xla")
    return KERNELS[name].run(call)


def causal_mask(
    q_positions: Int[Array, "B T"], key_valid: Bool[Array, "B S"], sliding_window: int | None = None
) -> Bool[Array, "B 1 T S"]:
    """Keys that each query may see: valid, not later, and among its ``sliding_window`` most recent (itself included).

    Key s has position s, which holds for a right-padded sequence and for a cache filled from the start.
    """
    query = q_positions[:, :, None]
    key = jnp.arange(key_valid.shape[1], dtype=q_positions.dtype)[None, None, :]
    seen = (key <= query) & key_valid[:, None, :]
    if sliding_window is not None:
        seen &= key > query - sliding_window
    return seen[:, None]


def _check(call: Call) -> None:
    q, k, v, mask, scale = call
    if scale <= 0:
        raise ValueError(f"The scale of attention scores must be positive, not {scale}.")
    if q.ndim != 4 or k.shape != v.shape or k.ndim != 4 or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(f"Attention needs q [B T N h] and k, v [B S K h], not {q.shape}, {k.shape}, {v.shape}.")
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"{q.shape[2]} query heads are no multiple of {k.shape[2]} key/value heads.")
    if mask is None:
        return
    batch, queries, heads, _ = q.shape
    fits = mask.ndim == 4 and mask.shape[0] in (1, batch) and mask.shape[1] in (1, heads)
    fits = fits and mask.shape[2] in (1, queries) and mask.shape[3] == k.shape[1]
    if not fits or mask.dtype != jnp.bool_:
        raise ValueError(f"An attention mask is bool [B|1 1|N T|1 S], not {mask.dtype} {mask.shape} for q {q.shape}.")


def _pick(call: Call, implementation: str) -> str:
    """Name of the kernel for a call: the first of its candidates that does not refuse."""
    if implementation in CANDIDATES:
        return next(name for name in CANDIDATES[implementation] if KERNELS[name].refusal(call) is None)
    if implementation not in KERNELS:
        choices = ", ".join((*CANDIDATES, *KERNELS))
        raise ValueError(f"Unknown attention implementation {implementation!r}; choices: {choices}.")
    # A named kernel of ours runs at any size; an outside one has limits that cannot be talked away.
    if implementation == "cudnn" and (reason := _cudnn_refusal(call)):
        raise ValueError(f"cuDNN attention cannot take this call: {reason}.")
    return implementation


def _heads_first(call: Call) -> tuple[Array, Array, Array, Array | None]:
    """q [B K G T h], k and v [B K S h], mask [B|1 K|1 G|1 T|1 S].

    In this order both products are plain batches of matrices, and no scores are transposed between them.
    """
    q, k, v, mask, _ = call
    batch, queries, heads, head_dim = q.shape
    split = (k.shape[2], heads // k.shape[2])
    if mask is not None:
        mask = mask.reshape(mask.shape[0], *((1, 1) if mask.shape[1] == 1 else split), *mask.shape[2:])
    q = q.reshape(batch, queries, *split, head_dim).transpose(0, 2, 3, 1, 4)
    return q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask


def _heads_last(out: Array) -> Array:
    """[B K G T h] -> [B T N h]."""
    batch, kv_heads, groups, queries, head_dim = out.shape
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, queries, kv_heads * groups, head_dim)


def _mix(q: Array, k: Array, v: Array, mask: Array | None, scale: float) -> tuple[Array, Array]:
    """Of arrays from :func:`_heads_first`: output [B K G T h] in the dtype of q and weights float32 [B K G T S]."""
    batch, kv_heads, groups, queries, head_dim = q.shape
    # The G T queries of a key/value head are one axis: with G = 1 beside it, XLA copies all scores on a CPU.
    rows = q.reshape(batch, kv_heads, groups * queries, head_dim)
    scores = jnp.einsum("BKxh,BKSh->BKxS", rows, k, preferred_element_type=jnp.float32)
    if mask is not None:
        # The finite minimum keeps a row without keys free of NaN, forwards and backwards; it is then set to zero.
        grouped = scores.reshape(*q.shape[:4], -1)
        scores = jnp.where(mask, grouped, jnp.finfo(jnp.float32).min).reshape(scores.shape)
    weights = jnp.exp((scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))) * scale)
    total = weights.sum(axis=-1, keepdims=True)
    # The division comes behind the product, which has h columns where the scores have S.
    out = jnp.einsum("BKxS,BKSh->BKxh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32) / total
    out, weights = out.reshape(q.shape), (weights / total).reshape(*q.shape[:4], -1)
    if mask is not None:
        seen = mask.any(axis=-1, keepdims=True)
        weights, out = jnp.where(seen, weights, 0.0), jnp.where(seen, out, 0.0)
    return out.astype(q.dtype), weights


def _dense(call: Call) -> tuple[Array, Array]:
    """All scores at once: output [B T N h] and weights float32 [B N T S]."""
    out, weights = _mix(*_heads_first(call), call.scale)
    batch, _, _, *pairs = weights.shape
    return _heads_last(out), weights.reshape(batch, -1, *pairs)


def _blockwise(call: Call) -> Array:
    """The dense kernel over blocks of queries, recomputed in the backward pass: memory S per query block, not T S."""
    q, k, v, mask = _heads_first(call)
    queries = q.shape[3]
    largest = min(BLOCK_SCORES, CPU_BLOCK_SCORES) if on_cpu() else BLOCK_SCORES
    block = -(-queries // -(-call.scores // largest))  # equal blocks, so that the last one is hardly padding
    block = min(-(-block // 16) * 16, queries)
    count = -(-queries // block)

    def blocks(x: Array) -> Array:
        x = jnp.pad(x, [(0, 0)] * 3 + [(0, count * block - queries), (0, 0)])
        return jnp.moveaxis(x.reshape(*x.shape[:3], count, block, x.shape[4]), 3, 0)

    shared = mask is not None and mask.shape[3] == 1  # one row for all queries, as it is for every block

    @jax.checkpoint
    def one(xs: tuple[Array, Array | None]) -> Array:
        return _mix(xs[0], k, v, mask if shared else xs[1], call.scale)[0]

    out = jax.lax.map(one, (blocks(q), None if mask is None or shared else blocks(mask)))
    out = jnp.moveaxis(out, 0, 3)  # [B K G count block h]
    return _heads_last(out.reshape(*out.shape[:3], count * block, out.shape[5])[:, :, :, :queries])


def _cudnn(call: Call) -> Array:
    """cuDNN flash attention. It spreads a row without keys evenly over all keys, so that row is zeroed here."""
    q, k, v, mask, scale = call
    if mask is not None:
        mask = jnp.broadcast_to(mask, (*mask.shape[:2], q.shape[1], k.shape[1]))
    out = jax.nn.dot_product_attention(q, k, v, mask=mask, scale=scale, implementation="cudnn")
    if mask is None:
        return out
    seen = jnp.swapaxes(mask.any(axis=-1), 1, 2)[..., None]  # [B|1 T 1|N 1]
    return jnp.where(seen, out, jnp.zeros((), out.dtype))


def _cudnn_refusal(call: Call) -> str | None:
    capability = _cuda_capability()
    if capability < 8.0:
        return "it needs an NVIDIA GPU of compute capability 8.0 or later"
    if call.q.dtype not in (jnp.bfloat16, jnp.float16) or not call.q.dtype == call.k.dtype == call.v.dtype:
        return f"it needs bfloat16 or float16 throughout, not {call.q.dtype}, {call.k.dtype}, {call.v.dtype}"
    head_dim, largest = call.q.shape[-1], 256 if capability >= 9.0 else 128
    if head_dim % 8 or head_dim > largest:
        return f"the head dimension must be a multiple of 8 of at most {largest}, not {head_dim}"
    if call.mask is not None and (call.q.shape[1] % 2 or call.k.shape[1] % 2):
        return "with a mask the numbers of queries and keys must be even"  # its backward pass, and so training
    return None


def _cuda_capability() -> float:
    """Compute capability of the default device, 0 where that is no NVIDIA GPU."""
    device = jax.devices()[0]
    try:
        return float(device.compute_capability) if device.platform in ("gpu", "cuda") else 0.0
    except (AttributeError, ValueError):  # an AMD GPU reports a name such as gfx90a
        return 0.0


def _dense_refusal(call: Call) -> str | None:
    if call.scores > DENSE_LIMIT:
        return "too many scores to hold at once"
    if on_cpu() and call.q.shape[1] >= CPU_QUERIES and call.scores > 2 * CPU_BLOCK_SCORES:
        return "too many scores for the caches of a CPU"
    return None


KERNELS = {
    "cudnn": Kernel(_cudnn, _cudnn_refusal),
    "dense": Kernel(lambda call: _dense(call)[0], _dense_refusal),
    "blockwise": Kernel(_blockwise, lambda call: None),
}
"""Every kernel by name. A new one is an entry here and a place in the order below."""

CANDIDATES = {"auto": ("cudnn", "dense", "blockwise"), "xla": ("dense", "blockwise")}
"""What a choice by purpose tries, in order."""
