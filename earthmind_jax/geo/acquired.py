"""When an image was taken, from its tags or its product name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath

import numpy as np

KEYS = (
    "datetime", "acquired", "acquisition_time", "acquisition_date", "sensing_time", "product_start_time",
    "datatake_1_datatake_sensing_start", "sensing_start", "start_datetime", "acquisition_datetime",
)  # fmt: skip
_IN_NAME = re.compile(r"(?<!\d)((?:19|20)\d{6}T\d{6})(?!\d)")  # the first is the start of sensing


def acquisition_time(tags: Mapping[str, str], path: str = "") -> np.datetime64 | None:
    """UTC to the second from the tags of a file, else from a Sentinel-1, Sentinel-2 or Landsat product name."""
    lower = {key.lower(): str(value) for key, value in tags.items()}
    for key in KEYS:
        try:
            text = lower[key].strip().replace(" ", "T")
            return _utc(text)
        except (KeyError, ValueError):
            continue
    found = _IN_NAME.search(PurePath(path).name)
    if found is None:
        return None
    compact = found.group(1)
    try:
        return np.datetime64(
            f"{compact[:4]}-{compact[4:6]}-{compact[6:8]}T{compact[9:11]}:{compact[11:13]}:{compact[13:]}", "s"
        )
    except ValueError:
        return None


def _utc(text: str) -> np.datetime64:
    """ISO 8601, with Z, an offset from UTC, or neither (then UTC)."""
    zone = re.search(r"T.*([+-])(\d{2}):?(\d{2})$", text)
    if zone is None:
        return np.datetime64(text.rstrip("Zz"), "s")
    minutes = int(zone.group(2)) * 60 + int(zone.group(3))
    local = np.datetime64(text[: zone.start(1)], "s")
    return local - np.timedelta64(minutes if zone.group(1) == "+" else -minutes, "m")
