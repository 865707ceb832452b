"""The published checkpoint layouts, one table each; the most specific first."""

from __future__ import annotations

from collections.abc import Iterable

from checkpoints_convert.layouts.earthmind import EARTHMIND, EARTHMIND_LANGUAGE
from checkpoints_convert.layouts.internlm2 import INTERNLM2
from checkpoints_convert.layouts.internvl import INTERN_VIT, INTERNVL, INTERNVL_ENCODER
from checkpoints_convert.layouts.internvl_hf import INTERNVL_HF, INTERNVL_HF_NESTED
from checkpoints_convert.layouts.phi3 import PHI3
from checkpoints_convert.layouts.qwen2 import QWEN2
from checkpoints_convert.layouts.sam2 import SAM2
from checkpoints_convert.layouts.sam2_hf import SAM2_HF
from checkpoints_convert.layouts.training import trained, without_sam2
from checkpoints_convert.rules import Layout, match

LAYOUTS = (
    *map(without_sam2, EARTHMIND), *EARTHMIND, *EARTHMIND_LANGUAGE, *INTERNVL, INTERNVL_ENCODER, SAM2, INTERN_VIT,
    QWEN2, INTERNLM2, PHI3, INTERNVL_HF, INTERNVL_HF_NESTED, SAM2_HF,
)  # fmt: skip

TRAINED = tuple(map(trained, EARTHMIND))
"""What training saves of a whole model; names as :func:`~checkpoints_convert.layouts.training.published_names` gives
them. Each shares its rules with a layout above, so that nothing is ever written this way."""


def detect(names: Iterable[str]) -> Layout | None:
    """The first layout that the tensor ``names`` are of, or None."""
    names = list(names)
    return next((layout for layout in (*LAYOUTS, *TRAINED) if layout.fits(names)), None)


def unknown(where: str, names: Iterable[str]) -> str:
    """The sentence for a checkpoint of no known layout: the nearest one, and what first tells them apart."""
    names = list(names)
    sample = names[:: max(1, len(names) // 100)]  # enough to tell layouts apart, and quick

    def taken(layout: Layout) -> list[str]:
        patterns = [rule.source for rule in layout.rules] + [entry.pattern for entry in layout.ignored]
        return [name for name in sample if any(match(pattern, name) is not None for pattern in patterns)]

    shares = {layout.name: taken(layout) for layout in (*LAYOUTS, *TRAINED)}
    known = ", ".join(layout.name for layout in LAYOUTS)

    def lacks(layout: Layout) -> list[str]:
        return [pattern for pattern in layout.has if not any(match(pattern, name) is not None for name in names)]

    nearest = max((*LAYOUTS, *TRAINED), key=lambda layout: (len(shares[layout.name]), -len(lacks(layout))))
    if not shares[nearest.name]:
        return f"'{where}' has tensors ({', '.join(names[:3])}, ...) of no known layout; known layouts: {known}."
    taken_names = set(shares[nearest.name])
    lacking = [f"'{pattern}'" for pattern in lacks(nearest)]
    extra = [f"'{name}'" for name in sample if name not in taken_names]
    barred = [f"'{name}'" for name in names if any(match(x, name) is not None for x in nearest.lacks)]
    differs = [
        *([f"it lacks {', '.join(lacking[:2])}"] if lacking else []),
        *([f"it also has {', '.join((extra or barred)[:2])}"] if extra or barred else []),
    ]
    return (
        f"'{where}' is of no known layout: nearest is '{nearest.name}', but {' and '.join(differs)}; give the whole "
        f"checkpoint, or one of these layouts: {known}."
    )
