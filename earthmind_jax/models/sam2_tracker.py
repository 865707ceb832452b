"""SAM2 through a stack of frames: objects prompted on the first frames are followed through all that come after.

Published as ``SAM2Base.track_step`` and its callers in ``sam2.sam2_video_predictor``; with language prompts it is
``get_sam2_embeddings`` and ``language_embd_inference`` of Sa2VA / EarthMind. Prompted frames do not see each other.
Pure functions of flat parameters; frames run in ``lax.scan``, so that the program and its memory do not grow with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from earthmind_jax.config import GroundingConfig, Precision
from earthmind_jax.errors import UserError
from earthmind_jax.models import functional
from earthmind_jax.models.sam2 import MaskHead, best_mask, single_mask, stable_mask
from earthmind_jax.models.sam2_decoder import Decoded
from earthmind_jax.models.sam2_memory import MASK_BIAS, MASK_SCALE, Memory, MemoryBank, start_bank
from earthmind_jax.models.sam2_prompt import STRIDE, box_points
from earthmind_jax.ops.resize import bilinear_antialiased
from earthmind_jax.types import ImageFeatures, Params, VisualPrompts

ABSENT = -1024.0  # mask logit where the object is not there
MOST_POINTS = 1  # prompts of more points (a box is two) are taken for unambiguous: one mask instead of three

Prompts = Mapping[str, Any]
"""Of one frame, the arrays of :class:`~earthmind_jax.models.sam2_prompt.PromptEncoder` by name, ``masks`` apart: those
are the objects' masks themselves, 0 and 1 at the size of the image [B M 16g 16g], and then the only prompt. ``marks``
(:class:`~earthmind_jax.types.VisualPrompts`), alone or with ``language``, are heard as in a single image."""


@struct.dataclass
class Tracked:
    """M objects on one frame [B M ...], or on F frames [B F M ...]; all float32.

    Attributes:
      logits: masks at low resolution [... h w].
      iou: predicted quality of the mask.
      candidates: predicted quality [... 4] of the single mask and of the three for ambiguous prompts.
      object_score: logits, positive where the object is there.
      pointer: object pointers [... D]; None from a model without memory.
    """

    logits: Array
    iou: Array
    candidates: Array
    object_score: Array
    pointer: Array | None


@dataclass(frozen=True)
class Tracker:
    """The static choices of tracking; hashable.

    Attributes:
      empty_absent: draw no mask (logits of -1024) where the object score is negative, as SAM2 does in videos. The
        language-driven releases draw it all the same.
      prefix: where the parameters of SAM2 are.
    """

    config: GroundingConfig
    precision: Precision
    empty_absent: bool = True
    prefix: str = "grounding"

    def track(
        self,
        params: Params,
        frames: Any,
        prompts: Prompts,
        *,
        encode: Callable[[Any], ImageFeatures] = lambda frame: frame,
        length: Array | None = None,
    ) -> Tracked:
        """Masks of every frame.

        Args:
          frames: F frames, time first: :class:`ImageFeatures` [F B ...], or whatever ``encode`` makes one of.
          prompts: for the first P frames [P B M ...]; every object is prompted on each of them.
          encode: features of one frame, called within the scan, so that those of one frame exist at a time.
          length: frames [B] that are real where stacks are padded at the end; None: all. What comes before the
            padding does not depend on it otherwise.

        Returns:
          Arrays [B F M ...].

        Raises:
          UserError: more prompted frames than frames, prompts that disagree, or frames to follow without a memory.
        """
        count, prompted = _leading(frames, "frames"), _leading(prompts, "prompts")
        if not 1 <= prompted <= count:
            raise UserError(f"There are prompts for {prompted} frames but {count} frames; prompt 1 to {count} of them.")
        follow = count > prompted
        if follow and not self.config.memory:
            raise UserError(
                f"{count - prompted} of {count} frames have no prompt, and this model was converted without the memory "
                "that follows objects: convert it with memory, or prompt every frame."
            )

        def answer(carry: None, given: tuple[Any, Prompts]) -> tuple[None, tuple[Tracked, Array | None]]:
            features = encode(given[0])
            found = self.answer(params, features, given[1])
            return carry, (found, self.remember(params, features, found, prompted=True) if follow else None)

        first = jax.tree.map(lambda x: x[:prompted], frames)
        _, (found, memories) = jax.lax.scan(answer, None, (first, dict(prompts)))
        if follow:
            batch = found.iou.shape[1]
            length = jnp.full((batch,), count, jnp.int32) if length is None else length
            bank = start_bank(self.config, jnp.moveaxis(memories, 0, 2), jnp.moveaxis(found.pointer, 0, 2), length)
            rest = jax.tree.map(lambda x: x[prompted:], frames)
            _, later = jax.lax.scan(lambda bank, frame: self.step(params, bank, encode(frame)), bank, rest)
            found = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), found, later)
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), found)

    def answer(self, params: Params, features: ImageFeatures, prompts: Prompts) -> Tracked:
        """A prompted frame, by itself (``track_step`` of an initial conditioning frame)."""
        if "masks" in prompts:
            return self._given(params, features, prompts)
        if "marks" in prompts:
            return self._pointed(params, features, **prompts)
        encoded, points = _with_corners(prompts)
        decoded = self._head(params, features, **encoded, method="decode")
        if points <= MOST_POINTS:
            return self._tracked(params, decoded, *_best(decoded))
        config = self.config
        chosen = single_mask(decoded)
        if config.stability:
            chosen = stable_mask(decoded, config.stability_delta, config.stability_threshold)
        return self._tracked(params, decoded, chosen.logits[:, :, 0], chosen.iou[:, :, 0], chosen.tokens[:, :, 0])

    def remember(self, params: Params, features: ImageFeatures, found: Tracked, *, prompted: bool) -> Array:
        """The memory of a frame and the masks found on it, [B M g g d]."""
        arguments = (features.embed, found.logits, found.object_score)
        return self._memory(params, *arguments, prompted=prompted, method="remember")

    def step(self, params: Params, bank: MemoryBank, features: ImageFeatures) -> tuple[MemoryBank, Tracked]:
        """The next frame, which has no prompt: the bank with it, and the objects on it."""
        embed = self._memory(params, features.embed, bank, method="read")
        decoded = self._head(params, features, embed=embed, method="decode")
        found = self._tracked(params, decoded, *_best(decoded))
        return bank.push(self.remember(params, features, found, prompted=False), found.pointer), found

    def _pointed(
        self, params: Params, features: ImageFeatures, marks: VisualPrompts, language: Array | None = None
    ) -> Tracked:
        """Marks are not taken for unambiguous, however many points they have: the best of three masks, as
        :meth:`MaskHead.ground` draws them."""
        given = {field.name: getattr(marks, field.name) for field in fields(marks)}
        decoded = self._head(params, features, language=language, **given, method="decode")
        return self._tracked(params, decoded, *_best(decoded))

    def _given(self, params: Params, features: ImageFeatures, prompts: Prompts) -> Tracked:
        """Masks that are given: the decoder makes their pointers only (``_use_mask_as_output``)."""
        if len(prompts) > 1:
            raise UserError(f"A mask is a prompt of its own; leave out {', '.join(sorted(set(prompts) - {'masks'}))}.")
        masks = prompts["masks"].astype(jnp.float32)
        height, columns = features.embed.shape[1:3]
        if masks.shape[2:] != (STRIDE * height, STRIDE * columns):
            size = (STRIDE * height, STRIDE * columns)
            raise UserError(
                f"Masks to follow have {masks.shape[2:]} pixels; resize them to {size}, those of the image."
            )
        if not self.config.memory:
            raise UserError("A mask can only be followed by a model with memory; convert it with memory.")
        small = self._memory(params, masks, method="mask_prompt")
        # The embedding goes in bare here, as published.
        decoded = self._head(params, features, embed=features.embed[:, None], masks=small, method="decode")
        full = jnp.moveaxis(masks * MASK_SCALE + MASK_BIAS, 1, -1)
        logits = jnp.moveaxis(bilinear_antialiased(full, (4 * height, 4 * columns)), -1, 1)
        there = (masks > 0).any((-2, -1))
        # An object is gone from the pointer's view where the decoder says so, too.
        score = jnp.where(there, decoded.object_score, MASK_BIAS)
        pointer = self._memory(params, decoded.tokens[:, :, 0], score, method="pointer")
        score = there * MASK_SCALE + MASK_BIAS
        return Tracked(logits, jnp.ones_like(score), decoded.iou, score, pointer)

    def _tracked(self, params: Params, decoded: Decoded, logits: Array, iou: Array, tokens: Array) -> Tracked:
        score = decoded.object_score
        if self.empty_absent:
            logits = jnp.where(score[..., None, None] > 0, logits, ABSENT)
        pointer = self._memory(params, tokens, score, method="pointer") if self.config.memory else None
        return Tracked(logits, iou, decoded.iou, score, pointer)

    def _head(self, params: Params, *args: Any, **kwargs: Any) -> Any:
        return functional.apply_module(MaskHead(self.config, self.precision), params, self.prefix, *args, **kwargs)

    def _memory(self, params: Params, *args: Any, **kwargs: Any) -> Any:
        memory = Memory(self.config, self.precision)
        return functional.apply_module(memory, params, f"{self.prefix}/memory", *args, **kwargs)


def _best(decoded: Decoded) -> tuple[Array, Array, Array]:
    best = best_mask(decoded)
    return best.logits, best.iou, best.tokens


def _with_corners(prompts: Prompts) -> tuple[dict[str, Array], int]:
    """Boxes as two points before the others, which is how they are given for videos, and the number of points."""
    prompts = dict(prompts)
    if (boxes := prompts.pop("boxes", None)) is not None:
        points, labels = box_points(boxes)
        if "points" in prompts:
            points = jnp.concatenate([points, prompts["points"]], axis=2)
            labels = jnp.concatenate([labels, prompts["labels"]], axis=2)
        prompts |= {"points": points, "labels": labels}
    return prompts, prompts["points"].shape[2] if "points" in prompts else 0


def _leading(tree: Any, what: str) -> int:
    sizes = {x.shape[0] for x in jax.tree.leaves(tree)}
    if len(sizes) != 1:
        raise UserError(f"The {what} need arrays with one number of frames in front, not {sorted(sizes) or 'nothing'}.")
    return sizes.pop()
