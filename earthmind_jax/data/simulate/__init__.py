"""Simulated scenes: land cover, a Sentinel-2-like and a Sentinel-1-like image of it, and questions with true answers.

``make_scene`` draws a scene, ``make_questions`` asks about it, ``to_sample`` hands both to the data pipeline and
``write_scene`` writes them as GeoTIFFs and a record line.
"""

from __future__ import annotations

from earthmind_jax.data.simulate.landcover import THEMES, make_layout
from earthmind_jax.data.simulate.layout import Instance, Layout
from earthmind_jax.data.simulate.materials import BANDS, CLASS_NAMES, MATERIALS, POLARISATIONS, Cover
from earthmind_jax.data.simulate.qa import QA
from earthmind_jax.data.simulate.questions import TASKS, make_questions, scene_kind
from earthmind_jax.data.simulate.scene import Scene, make_scene
from earthmind_jax.data.simulate.write import to_sample, write_scene

__all__ = [
    "BANDS", "CLASS_NAMES", "MATERIALS", "POLARISATIONS", "QA", "TASKS", "THEMES", "Cover", "Instance", "Layout",
    "Scene", "make_layout", "make_questions", "make_scene", "scene_kind", "to_sample", "write_scene",
]  # fmt: skip
