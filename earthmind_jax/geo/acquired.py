"""When was an image taken? From its tags, else from the product name in its file name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import PurePath

import numpy as np

KEYS = (
    "datetime", "acquired", "acquisition_time", "acquisition_date", "sensing_time", "product_start_time",
    "datatake_1_datatake_sensing_start", "sensing_start", "start_datetime", "acquisition_datetime", "date_acquired",
    "acquisitiondatetime", "acquisition_start_utc",
)  # fmt: skip
# Sentinel-1 and Sentinel-2 name the start of sensing first, Landsat the day after path and row, PlanetScope begins with
# the time, and HLS counts the days of the year.
_NAMES = (
    re.compile(r"(?<!\d)((?:19|20)\d{6}T\d{6})(?!\d)", re.IGNORECASE),
    re.compile(r"(?<![A-Z0-9])L[COTEM]0\d_[A-Z0-9]{4}_\d{6}_(\d{8})_", re.IGNORECASE),
    re.compile(r"^((?:19|20)\d{6}_\d{6})_\d\d_\w{4}_"),
    re.compile(r"HLS\.[LS]30\.T\w{5}\.((?:19|20)\d{5}T\d{6})\."),
)
_DAY = re.compile(r"(?<!\d)((?:19|20)\d\d)[-_]?(0[1-9]|1[0-2])[-_]?(0[1-9]|[12]\d|3[01])(?!\d)")


def acquisition_time(tags: Mapping[str, str], path: str = "") -> np.datetime64 | None:
    """UTC to the second from the tags of a file, else from a Sentinel-1, Sentinel-2 or Landsat product name."""
    # GDAL splits a tag ``s2:datetime=...`` at the colon: key ``s2``, value ``datetime=...``.
    pairs = (f"{key}={value}".rpartition("=") for key, value in tags.items())
    plain = {re.split("[:=]", key.lower())[-1]: value.strip() for key, _, value in pairs}
    for key in KEYS:
        time = _utc(plain.get(key, ""))
        if time is not None:
            return time
    for text in (PurePath(path).name, plain.get("product_uri", "")):
        for pattern in _NAMES:
            found = pattern.search(text)
            time = found and _utc(_calendar(found.group(1).upper()))
            if time is not None:
                return time
    return None


def day_in_name(path: str) -> np.datetime64 | None:
    """The first day that stands in a file's name, whatever it is the day of (``s2_20240611.tif``); None without one."""
    for found in _DAY.finditer(PurePath(path).name):
        try:
            return np.datetime64("-".join(found.groups()), "D")
        except ValueError:  # the 31st of June
            continue
    return None


def days_between(first: np.datetime64 | None, second: np.datetime64 | None) -> float | None:
    """Days between two times, without sign; None where one is unknown."""
    if first is None or second is None:
        return None
    return float(abs(first - second) / np.timedelta64(1, "D"))


def _calendar(text: str) -> str:
    """A time in a file's name as ISO 8601 has it."""
    if re.fullmatch(r"\d{7}T\d{6}", text):
        try:
            return datetime.strptime(text, "%Y%jT%H%M%S").isoformat()
        except ValueError:
            return ""
    return text.replace("_", "T")


def _utc(text: str) -> np.datetime64 | None:
    """ISO 8601, with Z, an offset from UTC, or neither (then UTC); None where it is no such time."""
    try:
        time = datetime.fromisoformat(text.removesuffix("UTC").strip())
        if time.tzinfo is not None:
            time = time.astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError):
        return None
    return np.datetime64(time, "s")
