"""Recorded outputs of the PyTorch code, one runner for each kind of case."""

from __future__ import annotations

from collections.abc import Callable

from checkpoints_convert.verify.recorded import (
    fusion,
    grounding,
    language,
    losses,
    preprocessing,
    trained,
    training,
    vision,
    whole,
)
from checkpoints_convert.verify.recorded.case import Case, Report

Runner = Callable[[Case, Report], None]

RUNNERS: dict[str, Runner] = {
    "a_": vision.intern_vit,
    "b_": vision.projector,
    "c_": language.language_model,
    "d_sam2_fb": grounding.segment_anything,
    "d_sam2_earthmind_language": grounding.language_prompts,
    "e_e2e_": whole.whole_model,
    "f_": preprocessing.preprocessing,
    "g_losses": losses.training_losses,
    "g_train_forward": training.training_forward,
    "h_fusion_releases": fusion.releases,
    "h_hca_paper": fusion.paper,
    "i_xtuner_pth": trained.xtuner,
}
"""Prefix of a case's name -> what compares it; the longest prefix wins."""

NOT_YET: tuple[str, ...] = ()
"""Kinds that are recorded and not yet supported."""


def kind(name: str) -> str | None:
    """The kind of the case called ``name``, out of :data:`RUNNERS` and :data:`NOT_YET`; None if unknown."""
    return max((prefix for prefix in (*RUNNERS, *NOT_YET) if name.startswith(prefix)), key=len, default=None)
