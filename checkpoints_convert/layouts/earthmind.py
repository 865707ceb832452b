"""EarthMind and Sa2VA as published (``Sa2VAChatModel``): InternVL, ``text_hidden_fcs`` and SAM2 in one checkpoint."""

from __future__ import annotations

from checkpoints_convert.layouts import internvl, sam2
from checkpoints_convert.rules import Ignored, Layout, Rule, ignored_under, under

SAM2_PREFIX = "grounding_encoder.sam2_model."

TEXT_HIDDEN_FCS = (
    Rule("0.weight", "fc1/kernel", "O I -> I O"),
    Rule("0.bias", "fc1/bias"),
    Rule("2.weight", "fc2/kernel", "O I -> I O"),
    Rule("2.bias", "fc2/bias"),
)

# Taken where the fusion mode is release_2025_06, ignored otherwise.
LOCAL_QUERY = Rule("local_query", "fusion/local_query")

IGNORED = (
    Ignored("local_query", "the gate of the June 2025 training, which this fusion mode does not have"),
    Ignored("hca_queries", "allocated by the October 2025 training and never read there"),
    *ignored_under(SAM2_PREFIX, sam2.IGNORED),
)


def _earthmind(base: Layout) -> Layout:
    return Layout(
        name=base.name.replace("InternVL", "EarthMind / Sa2VA"),
        rules=(
            *base.rules,
            *under("text_hidden_fcs.", TEXT_HIDDEN_FCS, "text_hidden_fcs/"),
            *under(SAM2_PREFIX, sam2.rules("g_weight"), "grounding/"),
            LOCAL_QUERY,
        ),
        ignored=(*IGNORED, *base.ignored),
        has=(*base.has, "text_hidden_fcs.0.weight", SAM2_PREFIX + sam2.SAM2.has[0]),
        covers=(*base.covers, "text_hidden_fcs/*", "grounding/*", "fusion/local_query"),
        family=base.family,
    )


def _language(base: Layout) -> Layout:
    return Layout(
        name=base.name.replace("InternVL", "EarthMind without its mask decoder"),
        rules=(*base.rules, LOCAL_QUERY),
        ignored=(*IGNORED, *base.ignored),
        has=(*base.has, "local_query"),
        covers=(*base.covers, "fusion/local_query"),
        family=base.family,
    )


EARTHMIND = tuple(map(_earthmind, internvl.INTERNVL))
EARTHMIND_LANGUAGE = tuple(map(_language, internvl.INTERNVL))
