"""When was an image taken? From its tags, else from the product name in its file name."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import PurePath

import numpy as np

_TAGS = (
    "datetime", "acquired", "acquisition_time", "sensing_time", "product_start_time", "start_datetime", "date_acquired",
    "acquisitiondatetime", "datatake_1_datatake_sensing_start",
)  # fmt: skip
_ISO = re.compile(r"\d{4}-\d{2}-\d{2}")
# Sentinel-1 and Sentinel-2 name the start of sensing first, Landsat after path and row.
_NAMES = (
    re.compile(r"(?<![A-Z0-9])S[12][A-D]_.*?_(\d{4})(\d{2})(\d{2})T(\d{2})(\d{2})(\d{2})"),
    re.compile(r"(?<![A-Z0-9])L[COTEM]0\d_[A-Z0-9]{4}_\d{6}_(\d{4})(\d{2})(\d{2})_"),
)


def acquired(path: str, tags: Mapping[str, str]) -> np.datetime64 | None:
    """The time of acquisition to the second, UTC; None where neither tags nor name tell."""
    plain = {key.lower().rpartition(":")[2]: str(value) for key, value in tags.items()}
    for key in _TAGS:
        text = plain.get(key, "").strip()
        if not _ISO.match(text):
            continue
        with contextlib.suppress(ValueError):
            return np.datetime64(text.rstrip("Zz").split("+")[0].replace(" ", "T"), "s")
    for text in (PurePath(path).name.upper(), plain.get("product_uri", "").upper()):
        for pattern in _NAMES:
            found = pattern.search(text)
            if found:
                year, month, day, *time = found.groups()
                with contextlib.suppress(ValueError):
                    return np.datetime64(f"{year}-{month}-{day}T{':'.join(time) or '00:00:00'}", "s")
    return None


def days_between(first: np.datetime64 | None, second: np.datetime64 | None) -> float | None:
    """Days between two times, without sign; None where one is unknown."""
    if first is None or second is None:
        return None
    return float(abs(first - second) / np.timedelta64(1, "D"))
