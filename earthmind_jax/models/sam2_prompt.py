"""The prompt encoder of SAM2: points, boxes, low-resolution masks and language vectors become tokens and a dense map.

Published as ``sam2.modeling.sam.prompt_encoder.PromptEncoder``; the language token is the extension of Sa2VA and
EarthMind (``_forward_sam_heads``). M objects are prompted at once. Parameter paths: ``gaussian``, ``points`` (rows:
background, foreground, top-left and bottom-right corner), ``not_a_point``, ``no_mask``, ``mask/...``.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from earthmind_jax.config import GroundingConfig, Precision
from earthmind_jax.errors import UserError
from earthmind_jax.nn.conv import Conv2d
from earthmind_jax.nn.norm import LayerNorm
from earthmind_jax.nn.param import param
from earthmind_jax.ops import position

STRIDE = 16  # pixels of the image per cell of the embedding grid
MASK_STEPS = 4  # mask pixels per cell
MASK_CHANNELS = 16


class Prompts(NamedTuple):
    """float32 ``sparse`` [B M T D], ``dense`` [B M g g D] ([1 1 1 1 D] without mask prompts), ``position`` [g g D];
    ``seen`` bool [B M T], false at tokens that only pad, None where there are none."""

    sparse: Array
    dense: Array
    position: Array
    seen: Array | None = None


class MaskDownscale(nn.Module):
    """Mask logits [B H W 1] -> dense embedding [B H/4 W/4 D] (``mask_downscaling``)."""

    width: int
    precision: Precision

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def conv(name: str, features: int, size: int) -> Conv2d:
            return Conv2d(features, size, stride=size, precision=self.precision, name=name)

        for step, features in ((1, MASK_CHANNELS // 4), (2, MASK_CHANNELS)):
            x = conv(f"conv{step}", features, 2)(x)
            x = LayerNorm(eps=1e-6, axis="channel", precision=self.precision, name=f"norm{step}")(x)
            x = nn.gelu(x, approximate=False)
        return conv("conv3", self.width, 1)(x)


class PromptEncoder(nn.Module):
    """Every kind of prompt, alone or together, for M objects in each of B images."""

    config: GroundingConfig
    precision: Precision

    def setup(self) -> None:
        width, dtype = self.config.width, self.precision.param
        normal = nn.initializers.normal(1.0)
        self.gaussian = param(self, "gaussian", normal, (2, width // 2), (None, None), dtype)
        self.points = param(self, "points", normal, (4, width), (None, "embed"), dtype)
        self.not_a_point = param(self, "not_a_point", normal, (width,), ("embed",), dtype)
        self.no_mask = param(self, "no_mask", normal, (width,), ("embed",), dtype)
        self.mask = MaskDownscale(width, self.precision)

    def __call__(
        self,
        grid: tuple[int, int],
        batch: int,
        *,
        points: Array | None = None,
        labels: Array | None = None,
        valid: Array | None = None,
        boxes: Array | None = None,
        masks: Array | None = None,
        masked: Array | None = None,
        language: Array | None = None,
    ) -> Prompts:
        """Encode the prompts of ``batch`` images whose embeddings have ``grid`` cells (16 pixels each).

        Args:
          points: (x, y) in pixels [B M P 2]; ``labels`` int [B M P]: 1 object, 0 background, 2 and 3 top-left and
            bottom-right corner of a box, -1 no point at all. Without boxes, one "no point" token follows the points.
          valid: bool [B M P], false at points that pad an object's to P. Unlike "no point at all", which is a token
            of its own, nothing sees them: an object's masks are those that its own points alone give.
          boxes: (x0, y0, x1, y1) in pixels [B M 4].
          masks: logits at a quarter of the image's size [B M 4g 4g].
          masked: bool [B M], the objects that have a mask prompt; None: all.
          language: vectors [B M D], one token each, placed last. With neither points nor boxes the tokens begin with
            two "no point" tokens, as the published models do.

        Raises:
          UserError: prompts that disagree about B or M, points without labels, or masks of another size.
        """
        given = {
            "points": points, "labels": labels, "valid": valid, "boxes": boxes, "masks": masks, "masked": masked,
            "language": language,
        }  # fmt: skip
        objects = _objects({name: x for name, x in given.items() if x is not None}, batch)
        if (points is None) != (labels is None):
            raise UserError("Point prompts need labels, one for each point; give both or neither.")
        if (valid is not None and points is None) or (masked is not None and masks is None):
            raise UserError("'valid' and 'masked' say which points and masks are there; give these, too.")
        lead = (batch, objects)
        empty = jnp.broadcast_to(self.not_a_point.astype(jnp.float32), (*lead, 1, self.config.width))
        tokens = []
        if points is not None and labels is not None:
            tokens.append(self._corners(points, labels, grid))
        elif boxes is None:
            tokens.append(empty)
        if boxes is not None:
            tokens.append(self._corners(boxes.reshape(*lead, 2, 2), jnp.array([2, 3]), grid))
        else:
            tokens.append(empty)
        if language is not None:
            tokens.append(language.astype(jnp.float32)[:, :, None])
        sparse = jnp.concatenate(tokens, axis=2)
        return Prompts(
            sparse=sparse,
            dense=self._dense(masks, masked, grid),
            position=position.fourier_grid(*grid, self._frequencies()),
            seen=None if valid is None else _followed(valid, sparse.shape[2]),
        )

    def _frequencies(self) -> Array:
        return jax.lax.stop_gradient(self.gaussian)  # a constant of the published model, never trained

    def _corners(self, points: Array, labels: Array, grid: tuple[int, int]) -> Array:
        """Points [B M P 2] with labels [(B M) P] -> tokens [B M P D]; +0.5 moves to the centre of the pixel."""
        size = jnp.array([grid[1] * STRIDE, grid[0] * STRIDE], jnp.float32)
        code = position.fourier((points.astype(jnp.float32) + 0.5) / size, self._frequencies())
        kind = self.points.astype(jnp.float32)[jnp.clip(labels, 0, 3)]
        return jnp.where(labels[..., None] < 0, self.not_a_point.astype(jnp.float32), code + kind)

    def _dense(self, masks: Array | None, masked: Array | None, grid: tuple[int, int]) -> Array:
        none = self.no_mask.astype(jnp.float32)[None, None, None, None]
        if masks is None:
            return none
        size = (MASK_STEPS * grid[0], MASK_STEPS * grid[1])
        if masks.shape[2:] != size:
            raise UserError(
                f"Mask prompts have {masks.shape[2:]} pixels; resize them to {size}, a quarter of the image."
            )
        dense = self.mask(masks.reshape(-1, *size, 1))
        dense = dense.reshape(*masks.shape[:2], *dense.shape[1:]).astype(jnp.float32)
        return dense if masked is None else jnp.where(masked[..., None, None, None], dense, none)


def box_points(boxes: Array) -> tuple[Array, Array]:
    """Boxes [B M 4] as labelled points [B M 2 2], int [B M 2]: how SAM2's image predictor prompts with a box."""
    lead = boxes.shape[:2]
    return boxes.reshape(*lead, 2, 2), jnp.broadcast_to(jnp.array([2, 3]), (*lead, 2))


def _followed(valid: Array, tokens: int) -> Array:
    """Which of ``tokens`` tokens are there: the points as ``valid`` [B M P] says, and all that follow them."""
    return jnp.pad(valid, ((0, 0), (0, 0), (0, tokens - valid.shape[2])), constant_values=True)


def _objects(given: dict[str, Array], batch: int) -> int:
    """M of the prompts; they must agree about it and about the number of images."""
    leads = {name: x.shape[:2] for name, x in given.items()}
    if len(set(leads.values())) > 1 or any(lead[0] != batch for lead in leads.values()):
        raise UserError(f"Prompts must all be [images, objects, ...] for {batch} images, not {leads}.")
    return next(iter(leads.values()))[1] if leads else 1
