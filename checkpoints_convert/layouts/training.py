"""EarthMind and Sa2VA as their training saves them (xtuner, ``VideoLLaVASAMModel``): the published names inside the
wrappers of training, LoRA factors beside the weights that they adapt, and often only what was trained."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from checkpoints_convert.layouts.earthmind import SAM2_PREFIX
from checkpoints_convert.layouts.lora import with_adapters
from checkpoints_convert.rules import Ignored, Layout
from earthmind_jax.errors import UserError

# Name in training (regular expression) -> published name; all that apply, in this order.
RENAMES = (
    (r"^mllm\.model\.", ""),
    (r"^mllm\.", ""),
    (r"(^|\.)base_model\.model\.", r"\1"),
    (r"\.base_layer\.", "."),
    (r"\.modules_to_save\.[^.]+\.", "."),
    (r"\.lora_([AB])\.[^.]+\.weight$", r".lora_\1.weight"),
    (r"(fuser\.layers\.\d+)\.gamma$", r"\1.g_weight"),
)
_TRAINING = re.compile(r"(^mllm\.|(^|\.)base_model\.model\.|\.lora_[AB]\.)")

FROZEN = tuple(
    Ignored(pattern, "frozen in training: it comes from the checkpoints that the training began with")
    for pattern in ("vision/*", "lm/blocks/*", "lm/norm/*", "grounding/*", "fusion/*")
)


def published_names(names: Iterable[str]) -> dict[str, str]:
    """Name -> published name, for the tensors of a training checkpoint; empty for any other checkpoint.

    Raises:
      UserError: if two tensors would get one name, e.g. those of two adapters.
    """
    names = list(names)
    if not any(_TRAINING.search(name) for name in names):
        return {}
    renamed: dict[str, str] = {}
    for name in names:
        new = name
        for pattern, replacement in RENAMES:
            new = re.sub(pattern, replacement, new)
        if new in renamed:
            raise UserError(
                f"'{renamed[new]}' and '{name}' would both be '{new}' under the published names: keep one "
                "adapter and leave the other out."
            )
        renamed[new] = name
    return {old: new for new, old in renamed.items()}


def trained(layout: Layout) -> Layout:
    """Of the published ``layout`` of a whole model, the part that training saves: without the frozen weights."""
    mark = next(name for name in layout.has if name.startswith("language_model.") and ".layers." in name)
    return replace(
        with_adapters(layout),
        name=layout.name.replace("EarthMind / Sa2VA", "Training checkpoint of EarthMind / Sa2VA"),
        has=("mlp1.1.weight", "text_hidden_fcs.0.weight", mark.removesuffix("weight") + "*weight"),
        lacks=("vision_model.*",),
        fresh=FROZEN,
    )


def without_sam2(layout: Layout) -> Layout:
    """Of the published ``layout`` of a whole model, all but SAM2."""
    return replace(
        layout,
        name=layout.name.replace("EarthMind / Sa2VA", "All of EarthMind / Sa2VA but SAM2"),
        has=tuple(name for name in layout.has if not name.startswith(SAM2_PREFIX)),
        lacks=(SAM2_PREFIX + "*",),
        rules=tuple(rule for rule in layout.rules if not rule.source.startswith(SAM2_PREFIX)),
        covers=tuple(path for path in layout.covers if path != "grounding/*"),
    )
