"""The data of a run: ``--data``, the configuration's sources, or simulated scenes."""

from __future__ import annotations

import sys
from pathlib import Path

from earthmind_jax.config import DataConfig, SensorConfig, SourceConfig
from earthmind_jax.data.check import broken_lines, missing_file
from earthmind_jax.data.pipeline import simulated
from earthmind_jax.data.records import Record, read_jsonl
from earthmind_jax.data.sources import Mixture, Source
from earthmind_jax.errors import UserError
