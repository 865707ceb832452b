"""Which bands does a file hold? Names come from the file; a guess by layout is made only where it is silent, and said.

The traps: sorting Sentinel-2 names as text puts ``B8A`` last, and Level-2A has no ``B10``, so that counting bands is
not naming them. Everything here returns its reason with its answer.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from earthmind_jax.errors import UserError
from earthmind_jax.geo.radiometry import SENSORS
from earthmind_jax.geo.reflectance import sentinel2_product

_OPTICAL = re.compile(r"(?<![A-Z0-9])B(?:0?([1-9])|(1[0-3])|0?(8A))(?![A-Z0-9])")
_POLARISATION = re.compile(r"(?<![A-Z])(VV|VH|HH|HV)(?![A-Z])")
_PLACEHOLDER = re.compile(r"(bands?|layers?|gr[ae]y|undefined|none|unknown|(band|layer)?[ _-]?\d+)?", re.IGNORECASE)
_COLOURS = {"R": "R", "RED": "R", "G": "G", "GREEN": "G", "B": "B", "BLUE": "B"}
_LANDSAT = re.compile(r"(?<![A-Z0-9])L[COTEM]0[4-9]_")


def canonical(description: str | None) -> str | None:
    """The field's own name inside a band description (``"B4"``, ``"Sentinel-2 B04"`` -> ``"B04"``;
    ``"Sigma0_VV_db"`` -> ``"VV"``), the description itself where it says something else, or None where it says
    nothing (``"bands"``)."""
    text = (description or "").strip()
    if _PLACEHOLDER.fullmatch(text):
        return None
    if text.upper().startswith(("SR_B", "ST_B")):  # Landsat's own numbering
        return text
    optical = _OPTICAL.findall(text.upper().replace("_", " "))
    polarisation = _POLARISATION.findall(text.upper().replace("_", " "))
    if len(optical) == 1 and not polarisation:
        digit, number, red_edge = optical[0]
        return "B8A" if red_edge else f"B{int(digit or number):02d}"
    if len(polarisation) == 1 and not optical:
        return polarisation[0]
    return _COLOURS.get(text.upper(), text)


def known_sensor(name: str) -> str:
    """``name`` itself, or a UserError that lists the sensors there are."""
    if name not in SENSORS:
        raise UserError(f"There is no sensor {name!r}{_nearest(name, SENSORS)}; the sensors are {', '.join(SENSORS)}.")
    return name


def name_bands(
    descriptions: Sequence[str | None], dtype: str, path: str, tags: Mapping[str, str], sensor: str | None = None
) -> tuple[tuple[str, ...], str | None, list[str]]:
    """Names the bands of one file: (names, sensor or None, notes that give the reason).

    ``sensor`` is what the caller knows; it settles common names ("red" -> B04) and layouts that cannot be guessed.
    """
    names = [canonical(text) for text in descriptions]
    if names == [None]:
        names = [_band_of_file_name(path)]
    if sensor is not None:
        aliases = SENSORS[known_sensor(sensor)].aliases
        common = [aliases.get((text or "").strip().lower()) for text in descriptions]
        names = [told or name for told, name in zip(common, names, strict=True)]
    if all(names) and len(set(names)) == len(names):
        named = tuple(str(name) for name in names)
        guess, reason = (sensor, "as told") if sensor else _sensor_of_names(named, dtype, path, tags)
        notes = [f"bands named by the file: {' '.join(named)}"]
        return named, guess, notes + ([f"sensor {guess}: {reason}"] if guess else [])
    return _by_layout(len(descriptions), dtype, sensor)


def _band_of_file_name(path: str) -> str | None:
    """The band a single-band file is named after, as in ``<patch>_B04.tif``."""
    name = canonical(PurePath(path).stem.split("_")[-1])
    return name if any(name in SENSORS[sensor].bands for sensor in ("s2_l1c", "s1")) else None


def _sensor_of_names(names: tuple[str, ...], dtype: str, path: str, tags: Mapping[str, str]) -> tuple[str | None, str]:
    present = set(names)
    if dtype == "uint8" and len(names) == 3 and (present == {"R", "G", "B"} or present <= set(SENSORS["s2_l1c"].bands)):
        return "rgb8", "three 8-bit bands are a rendering, not a measurement"
    if present <= set(SENSORS["s1"].bands):
        return "s1", "the bands are polarisations"
    if present <= set(SENSORS["s2_l1c"].bands) and dtype != "uint8" and not _LANDSAT.search(PurePath(path).name):
        product = sentinel2_product(path, tags)
        if product:
            return f"s2_{product[0].lower()}", f"the product name says Level-{product[0][1:]}"
        if "B10" in present:
            return "s2_l1c", "band B10 exists in Level-1C only"
        return "s2_l2a", "Sentinel-2 names without B10"
    return None, ""


def _by_layout(count: int, dtype: str, sensor: str | None) -> tuple[tuple[str, ...], str | None, list[str]]:
    for name in (sensor,) if sensor else SENSORS:
        entry = SENSORS[name]
        layouts = entry.layouts + (entry.told_layouts if sensor else ())
        for layout in layouts:
            if len(layout) == count and (sensor or (dtype == "uint8") == entry.is_8bit):
                why = "as told" if sensor else f"{count} bands of {dtype}"
                note = f"the file names no bands: taken as {entry.title} ({why}) in the order {' '.join(layout)}"
                return layout, name, [note]
    note = f"the file names no bands and {count} x {dtype} is no known layout: they are called band_1 to band_{count}"
    return tuple(f"band_{i + 1}" for i in range(count)), sensor, [note]


def select(wanted: Sequence[str], names: Sequence[str], path: str) -> list[int]:
    """Positions of the wanted bands. UserError names the bands there are and the nearest name."""
    folded = {name.upper(): i for i, name in enumerate(names)}
    positions = []
    for band in wanted:
        if not isinstance(band, str):
            raise UserError(f"{path}: ask for bands by name, not by position ({band!r}); it has {' '.join(names)}.")
        position = folded.get(band.upper(), folded.get(str(canonical(band) or "").upper()))
        if position is None:
            raise UserError(f"{path} has no band {band!r}{_nearest(band, names)}; it has {' '.join(names)}.")
        positions.append(position)
    if not positions:
        raise UserError(f"{path}: no band was asked for; it has {' '.join(names)}.")
    return positions


def _nearest(word: str, words: Sequence[str] | Mapping[str, object]) -> str:
    folded = {w.upper(): w for w in words}
    close = difflib.get_close_matches(word.upper(), folded, n=1, cutoff=0.5)
    return f" (did you mean {folded[close[0]]}?)" if close else ""
