"""Which bands does a file hold? Names come from the file; a guess by layout is made only where it is silent, and said.

The traps: sorting Sentinel-2 names as text puts ``B8A`` last, and Level-2A has no ``B10``, so that counting bands is
not naming them; Landsat's B4 is red like Sentinel-2's, its B5 is not, and B1 to B4 may be a mere count. Everything here
returns its reason with its answer.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from earthmind_jax.errors import UserError
from earthmind_jax.geo.band_names import canonical
from earthmind_jax.geo.families import Family, family_of
from earthmind_jax.geo.landsat import OLDER_NOTE, THEMATIC_MAPPER, older_landsat
from earthmind_jax.geo.radiometry import SENSORS
from earthmind_jax.geo.sensor_guess import RADAR, landsat_of, other_radar, sensor_of_names


def known_sensor(name: str) -> str:
    """``name`` itself, or a UserError that lists the sensors there are."""
    if name not in SENSORS:
        there = f"{nearest_name(name, SENSORS)}; the sensors are {', '.join(SENSORS)}"
        raise UserError(f"There is no sensor {name!r}{there}.")
    return name


def name_bands(
    descriptions: Sequence[str | None],
    dtype: str,
    path: str,
    tags: Mapping[str, str],
    sensor: str | None = None,
    *,
    told: Sequence[str] | None = None,
    colours: Sequence[str] = (),
    gsd: float | None = None,
    why: str = "as told",
    kind: str | None = None,
    scaled: bool = False,
) -> tuple[tuple[str, ...], str | None, list[str]]:
    """Names the bands of one file: (names, sensor or None, notes that give the reason).

    Args:
      sensor: what the caller knows; it settles common names ("red" -> B04) and layouts that cannot be guessed.
      told: the names as the caller knows them, in the file's order.
      colours: colour interpretation of the bands ("red"), which names bands that have no other name.
      why: what tells the sensor.
      gsd: metres; very high resolution tells colour images from satellites' reflectance.
      kind, scaled: see :func:`earthmind_jax.geo.sensor_guess.sensor_of_names`.
    """
    if told is not None:
        descriptions = _as_told(told, len(descriptions), path)
    family = family_of(path, tags, descriptions)
    if family is not None and sensor in (None, family.sensor) and family.fits(dtype, len(descriptions)):
        sensor, why = family.sensor, why if sensor else f"{family.title}, by its name"
    else:
        family = None
    landsat = sensor or landsat_of(path)
    names = [_canonical_of(text, landsat) for text in descriptions]
    if names == [None] or (family is not None and family.numbers and len(names) == 1 and told is None):
        names = [_band_of_file_name(path, landsat, family) or names[0] or _channel_of_other_sar(path, tags)]
    if sensor is not None:
        names = _as_called(names, descriptions, known_sensor(sensor), family)
    by, notes = "the caller" if told is not None else "the file", []
    if not any(names) and family is not None and len(names) in map(len, family.orders):
        names = next(list(order) for order in family.orders if len(order) == len(names))
        by = f"the order of {family.title}"
    if not any(names) and _are_colours(colours, dtype):
        names, by = list("RGBN"[: len(names)]), "their colour interpretation (a fourth is near infrared)"
        names = _as_called(names, descriptions, sensor, family) if sensor else names
    if told is None and why in ("as told", ""):
        names, notes = _as_landsat_8(names, " ".join((PurePath(path).name.upper(), *map(str, tags.values()))), path)
    _require_once(names, path, by, told is not None)
    if not all(names):
        return _by_layout(names, dtype, sensor)
    named = tuple(str(name) for name in names)
    guess, reason = sensor, why
    if sensor is None:
        guess, reason = sensor_of_names(named, dtype, path, tags, gsd=gsd, kind=kind, scaled=scaled)
        if guess is not None:
            named = tuple(map(str, _as_called(named, descriptions, guess, None)))
    notes = [f"bands named by {by}: {' '.join(named)}", *notes]
    if reason:
        notes.append(f"sensor {guess}: {reason}" if guess else reason)
    return named, guess, notes


def _as_called(
    names: Sequence[str | None], descriptions: Sequence[str | None], sensor: str, family: Family | None
) -> list[str | None]:
    """Names as a sensor calls its bands: by the family's numbers, else by the sensor's common names."""
    numbers, entry = family.numbers if family else {}, SENSORS[sensor]

    def called(name: str | None, text: str | None) -> str | None:
        number = numbers.get(name or "") or (name if family and name in entry.bands else None)
        return number or entry.aliases.get((text or "").strip().lower()) or entry.aliases.get((name or "").lower())

    return [called(name, text) or name for name, text in zip(names, descriptions, strict=True)]


def _require_once(names: Sequence[str | None], path: str, by: str, told: bool) -> None:
    twice = sorted({str(name) for name in names if name is not None and names.count(name) > 1})
    if twice and (told or all(names)):
        how = "--sar-bands" if set(map(str, names)) & RADAR else "--bands"
        raise UserError(
            f"{path}: {by} gives the name {twice[0]} to more than one band; name each band once, in order, and those "
            f"that are not to be used by any other word ({how}), or cut one image out of it (gdal_translate -b)."
        )


def _are_colours(colours: Sequence[str], dtype: str) -> bool:
    """Whether nameless bands are red, green, blue and perhaps near infrared by their colour interpretation; three of 8
    bits are a rendering."""
    if tuple(colours[:3]) != ("red", "green", "blue"):
        return False
    return len(colours) <= 4 if dtype != "uint8" else len(colours) == 4 and colours[3] in ("undefined", "nir")


def _as_landsat_8(names: Sequence[str | None], texts: str, path: str) -> tuple[list[str | None], list[str]]:
    """(names, notes): surface reflectance that is numbered as on Landsat 4 to 7, whose SR_B4 is near infrared and not
    red, as Landsat 8 numbers it; UserError where only the numbers tell."""
    surface = {str(name) for name in names if str(name).startswith(("SR_B", "ST_B"))}
    if surface and older_landsat(texts):
        return [THEMATIC_MAPPER.get(str(name), name) for name in names], [OLDER_NOTE]
    if surface - {"ST_B6"} == {name for name in THEMATIC_MAPPER if name.startswith("SR_")}:
        raise UserError(
            f"{path} numbers its bands as Landsat 4 to 7 do; name them as Landsat 8's, in the file's order, with "
            "--bands (SR_B1 blue is SR_B2, ..., SR_B5 is SR_B6, SR_B7 stays)."
        )
    return list(names), []


def _as_told(told: Sequence[str], count: int, path: str) -> list[str]:
    if len(told) != count:
        given = f"{len(told)} names were given ({' '.join(told)})"
        raise UserError(f"{path} has {count} bands, but {given}; name each band once, in order.")
    return list(told)


def _canonical_of(text: str | None, sensor: str | None) -> str | None:
    """:func:`canonical`, with a bare Landsat number (B4, SR's or Level-1's) under Landsat's own name."""
    upper = (text or "").strip().upper()
    found = re.fullmatch(r"(?:.*_)?B0?(\d{1,2})", upper)
    number = found.group(1) if found else ""
    if number and sensor == "landsat_l2" and not re.search(r"(SR|ST)_B\d+$", upper):
        return f"{'ST' if number == '10' else 'SR'}_B{number}"
    if number and sensor == "landsat_l1" and not re.search(r"(TOA|BT)_B\d+$", upper):
        return f"{'BT' if number in ('10', '11') else 'TOA'}_B{number}"
    return canonical(text)


def _band_of_file_name(path: str, sensor: str | None, family: Family | None) -> str | None:
    """The band a single-band file is named after, as in ``<patch>_B04.tif`` or ``LC08_..._ST_B10.TIF``."""
    stem = re.sub(r"_(\d0m|\(Raw\))$", "", PurePath(path).stem)  # Level-2A's pixel size; Copernicus Browser's ending
    landsat = re.search(r"(?:(SR|ST)_)?B\d{1,2}$", stem.upper())
    if sensor in ("landsat_l1", "landsat_l2") and landsat:
        return _canonical_of(landsat.group(), sensor)
    name = canonical(stem.split("_")[-1])
    if family is not None and name in family.numbers:
        return family.numbers[name]
    return name if any(name in SENSORS[sensor].bands for sensor in ("s2_l1c", "s1")) else None


def _channel_of_other_sar(path: str, tags: Mapping[str, str]) -> str | None:
    """The polarisation of the one channel of a file that names another SAR sensor, "CO" where it tells none."""
    if other_radar(path, tags) is None:
        return None
    texts = " ".join((PurePath(path).name, *map(str, tags.values()))).upper().replace("_", " ")
    found = {name for name in RADAR if re.search(rf"(?<![A-Z]){name}(?![A-Z])", texts)}
    return found.pop() if len(found) == 1 else "CO"


def _by_layout(
    names: Sequence[str | None], dtype: str, sensor: str | None
) -> tuple[tuple[str, ...], str | None, list[str]]:
    count = len(names)
    for name in (sensor,) if sensor else SENSORS:
        entry = SENSORS[name]
        layouts = entry.layouts + (entry.told_layouts if sensor else ())
        for layout in layouts:
            if any(names) or len(layout) != count:
                continue
            if sensor or (dtype == "uint8") == entry.is_8bit:
                why = "as told" if sensor else f"{count} bands of {dtype}"
                note = f"the file names no bands: taken as {entry.title} ({why}) in the order {' '.join(layout)}"
                return layout, name, [note]
    taken = tuple(name or f"band_{i}" for i, name in enumerate(names, 1))
    if any(names):
        return taken, sensor, [f"the file names some of its bands only: {' '.join(taken)}"]
    note = f"the file names no bands and {count} x {dtype} is no known layout: they are called band_1 to band_{count}"
    return taken, sensor, [note]


def select(wanted: Sequence[str], names: Sequence[str], path: str) -> list[int]:
    """Positions of the wanted bands. UserError names the bands there are and the nearest name."""
    folded = {name.upper(): i for i, name in enumerate(names)}
    positions = []
    for band in wanted:
        if not isinstance(band, str):
            raise UserError(f"{path}: ask for bands by name, not by position ({band!r}); it has {' '.join(names)}.")
        position = folded.get(band.upper(), folded.get(str(canonical(band) or "").upper()))
        if position is None:
            raise UserError(f"{path} has no band {band!r}{nearest_name(band, names)}; it has {' '.join(names)}.")
        positions.append(position)
    if not positions:
        raise UserError(f"{path}: no band was asked for; it has {' '.join(names)}.")
    return positions


def nearest_name(word: str, words: Sequence[str] | Mapping[str, object]) -> str:
    """`` (did you mean x?)`` for the nearest of ``words``, or nothing."""
    folded = {w.upper(): w for w in words}
    close = difflib.get_close_matches(word.upper(), folded, n=1, cutoff=0.5)
    return f" (did you mean {folded[close[0]]}?)" if close else ""
