"""Fusion of optical and SAR tokens: HCA (Eq. 2-7), our repairs of it, the two released forms and the baselines.

:data:`FUSION` lists the modes; :func:`fuse` runs one and :func:`fusion_specs` says which parameters it learns.

=============== ==== ==========================================================================================
hca             N    the printed structure, intent restored: attention received, scores relative to uniform
hca_plus        N    the weights of hca over sensor-specific linear maps of the tokens, identity at start
hca_gated       N    hca_plus, a learned quality of each token added to the weights' logit, zero at start
hca_printed     N    Eq. 2-7 to the letter: Eq. 5 is the constant 1/L, and the weights are 0.5 within O(1/N)
release_2025_06 2N   one symmetric sigmoid gate from two learned queries; ``gate=False`` is its inference
release_2025_10 N    fixed mix of entropy quality and text relevance, normalised over the whole call
concat          2N   the tokens of both sensors, SAR first within each tile
average         N    element-wise mean
cosine          N    softmax of each token's cosine to the mean of its pair
=============== ==== ==========================================================================================

All modes work per sample and per tile (``across_tiles`` joins the tiles of a sample in the hca family). An invalid
token (padding, nodata, missing sensor) neither gets nor gives weight; a place valid in one sensor only takes that
sensor whole; a place valid in none gives token 0, weights (0, 0) and valid False. Only ``release_2025_10`` lets a
sample depend on its neighbours. A last axis of two is always (optical, SAR).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from earthmind_jax.errors import UserError
from earthmind_jax.ops.fusion_grid import pool_to_grid, pool_valid_to_grid, weights_to_grid
from earthmind_jax.ops.fusion_hca import HcaScores, hca_scores, sensor_map, token_quality
from earthmind_jax.ops.fusion_releases import match_tiles, release_2025_10_weights, symmetric_gate
from earthmind_jax.ops.fusion_scores import attention_map, attention_received, modality_attention_score, score_dtype
from earthmind_jax.ops.fusion_tokens import Tokens, even_weights, mixed, prepare, sensor_weights, side_by_side
from earthmind_jax.types import Fused

__all__ = [
    "FUSION", "FusionMode", "FusionOptions", "HcaScores", "ParamSpec", "Tokens", "attention_map",
    "attention_received", "fuse", "fusion_specs", "hca_scores", "modality_attention_score", "pool_to_grid",
    "pool_valid_to_grid", "sensor_weights", "symmetric_gate", "weights_to_grid",
]  # fmt: skip


@dataclass(frozen=True)
class FusionOptions:
    """Every option of every mode; a mode reads those that it knows.

    Attributes:
      normalise: none | rms | l2, tokens before dot products (hca family).
      scale_by_tokens: scores times the number of valid tokens, so that their mean is 1 (hca family).
      raw_lambda: learn lambda itself instead of rho with lambda = sigmoid(rho) (hca family).
      temperature_init: the sharpness tau at start, above 0, multiplying the difference of scores (hca family).
      map_rank: rank of the sensor maps, 0 = full matrices (hca_plus, hca_gated).
      quality_hidden: hidden units of the quality head (hca_gated).
      block: tokens per block; above it no array is larger than block x block (hca family, release_2025_10).
      across_tiles: scores over all tiles of a sample instead of within each (hca family).
      gate: apply the learned gate, as the June 2025 training did and its inference did not (release_2025_06).
    """

    normalise: str = "rms"
    scale_by_tokens: bool = True
    raw_lambda: bool = False
    temperature_init: float = 1.0
    map_rank: int = 0
    quality_hidden: int = 64
    block: int = 1024
    across_tiles: bool = False
    gate: bool = True

    def __post_init__(self) -> None:
        if self.temperature_init <= 0:
            raise UserError(f"The fusion temperature must start above 0, not at {self.temperature_init}.")
        if self.block < 1 or self.map_rank < 0 or self.quality_hidden < 1:
            raise UserError("Fusion needs block and quality_hidden of at least 1 and map_rank of at least 0.")


@dataclass(frozen=True)
class ParamSpec:
    """A parameter that a mode learns: shape, logical axis names (None = not sharded), and init(key, shape, dtype)."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Callable[..., Array]


@dataclass(frozen=True)
class FusionMode:
    """A way to fuse. ``sensors_out`` is 1 (N tokens a tile) or 2 (2N); ``specs(width, options)`` and
    ``apply(params, tokens, options)`` are reached through :func:`fusion_specs` and :func:`fuse`."""

    name: str
    sensors_out: int
    specs: Callable[[int, FusionOptions], dict[str, ParamSpec]]
    apply: Callable[[Mapping[str, Array], Tokens, FusionOptions], Fused]


def fuse(
    mode: str,
    params: Mapping[str, Array],
    optical: Float[Array, "B I N D"] | None,
    sar: Float[Array, "B I N D"] | None,
    *,
    optical_valid: Bool[Array, "B I N"] | None = None,
    sar_valid: Bool[Array, "B I N"] | None = None,
    text: Float[Array, "B L D"] | None = None,
    text_valid: Bool[Array, "B L"] | None = None,
    **options: Any,
) -> Fused:
    """Fuse the tokens of a pair on one token grid (see :func:`pool_to_grid` where the grids differ).

    Masks default to all valid; a sensor given as None is missing everywhere; without ``text`` the text branch is
    ignored. ``params`` holds what :func:`fusion_specs` lists, ``options`` are the fields of :class:`FusionOptions`.
    Gives tokens [B I N D] or [B I 2N D] (tile-interleaved, SAR then optical) in the dtype of the inputs, their
    validity, and float32 weights [B I N 2]. Raises :class:`UserError` for an unknown mode or shapes that do not fit.
    Source: paper, Eq. 2-7 and Table 4; published code of June and October 2025; module docstring.
    """
    chosen = _mode(mode)
    tokens = prepare(optical, sar, optical_valid, sar_valid, text, text_valid, any_tiles=mode == "release_2025_10")
    return chosen.apply(params, tokens, FusionOptions(**options))


def fusion_specs(mode: str, width: int, **options: Any) -> dict[str, ParamSpec]:
    """The parameters of ``mode`` for tokens of ``width``, by name. Raises :class:`UserError` for an unknown mode."""
    return _mode(mode).specs(width, FusionOptions(**options))


def _mode(name: str) -> FusionMode:
    if name not in FUSION:
        raise UserError(f"Unknown fusion mode '{name}'. Choices: {', '.join(FUSION)}.")
    return FUSION[name]


# ---- hca family ----------------------------------------------------------------------------------------------------


def _hca_specs(width: int, options: FusionOptions) -> dict[str, ParamSpec]:
    """``rho`` (lambda = sigmoid(rho) = 0.5 at start) or ``lambda``, and ``log_temperature``."""
    specs = {"rho": ParamSpec((), (), jax.nn.initializers.zeros)}
    if options.raw_lambda:
        specs = _printed_specs(width, options)
    log_temperature = jax.nn.initializers.constant(math.log(options.temperature_init))
    return {**specs, "log_temperature": ParamSpec((), (), log_temperature)}


def _printed_specs(width: int, options: FusionOptions) -> dict[str, ParamSpec]:
    """The scalar of Eq. 6, raw."""
    return {"lambda": ParamSpec((), (), jax.nn.initializers.constant(0.5))}


def _plus_specs(width: int, options: FusionOptions) -> dict[str, ParamSpec]:
    """Those of hca, and for each sensor the matrix W [D D] or the factors A [D R], B [R D] of its map."""
    zeros, rank = jax.nn.initializers.zeros, options.map_rank
    specs = _hca_specs(width, options)
    for sensor in ("optical", "sar"):
        if rank:
            narrow = jax.nn.initializers.lecun_normal()
            specs[f"map_{sensor}_in"] = ParamSpec((width, rank), ("embed", "rank"), narrow)
            specs[f"map_{sensor}_out"] = ParamSpec((rank, width), ("rank", "embed_out"), zeros)
        else:
            specs[f"map_{sensor}"] = ParamSpec((width, width), ("embed", "embed_out"), zeros)
    return specs


def _gated_specs(width: int, options: FusionOptions) -> dict[str, ParamSpec]:
    """Those of hca_plus, and for each sensor a quality head D -> hidden -> 1 whose last layer is zero."""
    zeros, hidden = jax.nn.initializers.zeros, options.quality_hidden
    specs = _plus_specs(width, options)
    for sensor in ("optical", "sar"):
        kernel = jax.nn.initializers.lecun_normal()
        specs[f"quality_{sensor}_in"] = ParamSpec((width, hidden), ("embed", "hidden"), kernel)
        specs[f"quality_{sensor}_bias"] = ParamSpec((hidden,), ("hidden",), zeros)
        specs[f"quality_{sensor}_out"] = ParamSpec((hidden,), ("hidden",), zeros)
    return specs


def _hca_logit(params: Mapping[str, Array], x: Tokens, options: FusionOptions) -> Array:
    """tau (gamma_o - gamma_s), the logit of Eq. 7 with a learned sharpness tau."""
    lam = params["lambda"] if options.raw_lambda else jax.nn.sigmoid(params["rho"].astype(jnp.float32))
    gamma = hca_scores(
        x,
        lam,
        normalise=options.normalise,
        scale_by_tokens=options.scale_by_tokens,
        block=options.block,
        across_tiles=options.across_tiles,
    ).gamma
    return jnp.exp(params["log_temperature"].astype(gamma.dtype)) * (gamma[..., 0] - gamma[..., 1])


def _hca(params: Mapping[str, Array], x: Tokens, options: FusionOptions) -> Fused:
    return mixed(x, sensor_weights(_hca_logit(params, x, options), x.optical_valid, x.sar_valid))


def _mapped(params: Mapping[str, Array], x: Tokens, logit: Array) -> Fused:
    weights = sensor_weights(logit, x.optical_valid, x.sar_valid)
    return mixed(x, weights, sensor_map(params, "optical", x.optical), sensor_map(params, "sar", x.sar))


def _hca_plus(params: Mapping[str, Array], x: Tokens, options: FusionOptions) -> Fused:
    return _mapped(params, x, _hca_logit(params, x, options))


def _hca_gated(params: Mapping[str, Array], x: Tokens, options: FusionOptions) -> Fused:
    quality = token_quality(params, "optical", x.optical) - token_quality(params, "sar", x.sar)
    return _mapped(params, x, _hca_logit(params, x, options) + quality)


def _hca_printed(params: Mapping[str, Array], x: Tokens, options: FusionOptions) -> Fused:
    gamma = hca_scores(
        x,
        params["lambda"],
        printed=True,
        normalise="none",
        scale_by_tokens=False,
        block=options.block,
        across_tiles=options.across_tiles,
    ).gamma
    return mixed(x, sensor_weights(gamma[..., 0] - gamma[..., 1], x.optical_valid, x.sar_valid))


# ---- published code and baselines ----------------------------------------------------------------------------------


def _nothing(width: int, options: FusionOptions) -> dict[str, ParamSpec]:
    return {}


def _query_specs(width: int, options: FusionOptions) -> dict[str, ParamSpec]:
    """The two learned queries of the June 2025 release, drawn from N(0, 1) as there."""
    return {"local_query": ParamSpec((2, width), (None, "embed"), jax.nn.initializers.normal(1.0))}


def _release_2025_06(params: Mapping[str, Array], x: Tokens, options: FusionOptions) -> Fused:
    if not options.gate:
        return side_by_side(x)
    gate = symmetric_gate(params["local_query"], x.optical, x.sar)
    return side_by_side(x, jnp.where(x.optical_valid & x.sar_valid, gate, 1.0))  # a lone sensor has no partner to gate


def _release_2025_10(params: Mapping[str, Array], x: Tokens, options: FusionOptions) -> Fused:
    x = match_tiles(x)
    weights = release_2025_10_weights(x, block=options.block)
    both = (x.optical_valid & x.sar_valid)[..., None]
    return mixed(x, jnp.where(both, weights, jnp.stack([x.optical_valid, x.sar_valid], -1)))


def _concat(params: Mapping[str, Array], x: Tokens, options: FusionOptions) -> Fused:
    return side_by_side(x)


def _average(params: Mapping[str, Array], x: Tokens, options: FusionOptions) -> Fused:
    return mixed(x, even_weights(x))


def _cosine(params: Mapping[str, Array], x: Tokens, options: FusionOptions) -> Fused:
    """The paper's "naive (native) attention": token importance from the cosine of the pair, softmax over the sensors.

    One cosine cannot rank two sensors, so each token is compared with the mean m of its pair, which gives
    cos(o, m) - cos(s, m) = (|o| - |s|) (1 - cos(o, s)) / |o + s|: where the sensors agree they count alike, where they
    disagree the stronger token leads. Source: Table 4, Sec. 5.4; the definition is ours, the paper gives none.
    """
    dtype = score_dtype(x.optical, x.sar)
    optical, sar = x.optical.astype(dtype), x.sar.astype(dtype)

    def cosine(a: Array, b: Array) -> Array:
        return (a * b).sum(-1) * jax.lax.rsqrt((a * a).sum(-1) * (b * b).sum(-1) + 1e-20)

    logit = cosine(optical, optical + sar) - cosine(sar, optical + sar)
    return mixed(x, sensor_weights(logit, x.optical_valid, x.sar_valid))


FUSION: dict[str, FusionMode] = {
    mode.name: mode
    for mode in (
        FusionMode("hca", 1, _hca_specs, _hca),
        FusionMode("hca_plus", 1, _plus_specs, _hca_plus),
        FusionMode("hca_gated", 1, _gated_specs, _hca_gated),
        FusionMode("hca_printed", 1, _printed_specs, _hca_printed),
        FusionMode("release_2025_06", 2, _query_specs, _release_2025_06),
        FusionMode("release_2025_10", 1, _nothing, _release_2025_10),
        FusionMode("concat", 2, _nothing, _concat),
        FusionMode("average", 1, _nothing, _average),
        FusionMode("cosine", 1, _nothing, _cosine),
    )
}
"""Every mode by name."""
