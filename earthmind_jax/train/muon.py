"""Muon: matrices learn along orthogonalised momentum (Jordan et al. 2024), at the step size of AdamW.

``optax.contrib.scale_by_muon`` orthogonalises one matrix after the other. A model of a hundred small matrices then
takes a third longer to compile; here all matrices of about one size are one stack.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from earthmind_jax.nn.param import Axes
from earthmind_jax.types import Params

# Of the quintic iterations x -> (a + b x x' + c (x x')^2) x, each the best for what the one before leaves (Amsel et al.
# 2025, "The Polar Express"; for singular values from 0.003 to 1.01). Four of them do what five of the first published
# ones (3.4445, -4.7750, 2.0315) do.
COEFFICIENTS = (
    (8.3019, -24.0424, 17.4699), (4.0454, -3.0128, 0.5697), (3.5113, -2.6308, 0.5262), (2.4969, -1.8400, 0.4375),
)  # fmt: skip
RMS = 0.2  # of an update, as AdamW's: Liu et al. 2025, "Muon is Scalable for LLM Training", section 2.2
PADDED = 32  # sides are filled with zeros to a multiple of it, which changes nothing and saves stacks


class Matrix(NamedTuple):
    """A parameter as a stack of matrices: its ``stacked`` first axes (0 or 1), and how many axes are inputs."""

    stacked: int
    inputs: int


def matrix(path: str, axes: Axes) -> Matrix | None:
    """How a parameter is a matrix (or a stack of them), from its logical axes; None where it is none.

    Maps that see pixels or words (patch embedding, token table, vocabulary head) are not treated as matrices, as is
    usual with Muon. Heads stay together: query, key and value maps give heads x head, output maps take them.
    """
    if not path.endswith("kernel") or "patch_embed" in path or "vocab" in axes or len(axes) < 2:
        return None
    stacked = int(axes[0] == "layers" or (len(axes) == 3 and axes[0] is None))
    gives_heads = axes[stacked + 1] in ("heads", "kv_heads")
    return Matrix(stacked, 1 if gives_heads else len(axes) - stacked - 1)


class MuonState(NamedTuple):
    """Momentum of every matrix, in the parameter's own shape, so that it is sharded as the parameter is."""

    momentum: Params


def scale_by_muon(matrices: Mapping[str, Matrix], beta: float = 0.95) -> optax.GradientTransformation:
    """Updates of root mean square 0.2 along the nearest orthogonal matrix to Nesterov's momentum."""

    def init(params: Params) -> MuonState:
        return MuonState(jax.tree.map(jnp.zeros_like, params))

    def update(grads: Params, state: MuonState, params: Params | None = None) -> tuple[Params, MuonState]:
        momentum = jax.tree.map(lambda m, g: beta * m + g, state.momentum, grads)
        ahead = jax.tree.map(lambda m, g: beta * m + g, momentum, grads)
        paths = [p for p, x in ahead.items() if not isinstance(x, optax.MaskedNode)]
        turned = orthogonal([_flat(ahead[p], matrices[p]) for p in paths])
        done = {}
        for path, x in zip(paths, turned, strict=True):
            scale = RMS * math.sqrt(max(x.shape[1:]))
            done[path] = (scale * x).reshape(ahead[path].shape).astype(ahead[path].dtype)
        return {**ahead, **done}, MuonState(momentum)

    return optax.GradientTransformation(init, update)


def _flat(x: jax.Array, shape: Matrix) -> jax.Array:
    """A parameter as [n rows columns] float32."""
    first, taken = shape.stacked, shape.stacked + shape.inputs
    count, rows, columns = (math.prod(x.shape[i:j]) for i, j in ((0, first), (first, taken), (taken, x.ndim)))
    return x.reshape(count, rows, columns).astype(jnp.float32)


def orthogonal(stacks: list[jax.Array]) -> list[jax.Array]:
    """Each matrix [n rows columns] with its singular values brought near 1 (above 0.003 of its norm: 0.8 - 1.23)."""
    groups: dict[tuple[int, int], list[int]] = {}
    wide = [x.swapaxes(1, 2) if x.shape[1] > x.shape[2] else x for x in stacks]
    for i, x in enumerate(wide):
        rows, columns = (-(-n // PADDED) * PADDED for n in x.shape[1:])
        groups.setdefault((rows, columns), []).append(i)
    done: dict[int, jax.Array] = {}
    for size, members in groups.items():
        padded = [
            jnp.pad(wide[i], ((0, 0), *((0, n - m) for n, m in zip(size, wide[i].shape[1:], strict=True))))
            for i in members
        ]
        turned = _newton_schulz(jnp.concatenate(padded))
        for i, x in zip(members, jnp.split(turned, np.cumsum([p.shape[0] for p in padded])[:-1]), strict=True):
            x = x[:, : wide[i].shape[1], : wide[i].shape[2]]
            done[i] = x.swapaxes(1, 2) if wide[i].shape != stacks[i].shape else x
    return [done[i] for i in range(len(stacks))]


def _newton_schulz(x: jax.Array) -> jax.Array:
    """x [n r c], r <= c."""
    x = x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=(1, 2), keepdims=True) + 1e-12)

    def step(x: jax.Array, coefficients: jax.Array) -> tuple[jax.Array, None]:
        a, b, c = coefficients
        square = jnp.einsum("nij,nkj->nik", x, x)
        return a * x + jnp.einsum("nik,nkj->nij", b * square + c * jnp.einsum("nij,njk->nik", square, square), x), None

    return jax.lax.scan(step, x, jnp.asarray(COEFFICIENTS))[0]
