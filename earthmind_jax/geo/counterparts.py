"""Which band of this file stands for the one a model asks for? By name, by wavelength, or by polarisation.

A model is made for the bands of one sensor, mostly Sentinel-2's and Sentinel-1's. Another optical sensor's band stands
for one of them where their centres lie within a few percent; a co-polarised SAR band stands for the other
co-polarised one, and likewise for the cross-polarised.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from earthmind_jax.errors import UserError
from earthmind_jax.geo.band_names import canonical, nanometres
from earthmind_jax.geo.bands import nearest_name
from earthmind_jax.geo.radiometry import SENSORS

WAVELENGTHS = {band: wave for sensor in SENSORS.values() for band, wave in sensor.wavelengths.items()}
WAVELENGTH_TOLERANCE = 0.05  # Landsat's near infrared is 4 % from B08, its red 7 % from the first red edge
CO_POLARISED, CROSS_POLARISED = ("VV", "HH", "CO"), ("VH", "HV")
# One band that is a whole picture: thermal, panchromatic, and a nameless grey one.
GREY = re.compile(r"IR|PAN|TOA_B8|ST_B10|BT_B1[01]|band_1")
_PLACEHOLDER = re.compile(r"band_\d+")


def choose(wanted: Sequence[str], names: Sequence[str], path: str, kind: str) -> tuple[list[int], list[str], list[str]]:
    """What a model that wants some bands is given of a file.

    Args:
      wanted: band names of the model's sensor.
      names: of the file.
      kind: "optical" or "sar"; a SAR file may lack the cross-polarised band, as one-band SAR is padded.

    Returns:
      Positions in ``names``, the names that the model knows them by, and notes on each replacement.

    Raises:
      UserError: a band has no counterpart; it lists those that are there.
    """
    folded = {name.upper(): i for i, name in enumerate(names)}
    if kind == "optical" and len(names) == 1 and GREY.fullmatch(names[0]) and names[0] not in wanted:
        return [0], list(names), [f"one band ({names[0]}) is a grey picture: it stands for {' '.join(wanted)}"]
    positions, known, notes = [], [], []
    for band in wanted:
        exact = folded.get(band.upper(), folded.get(str(canonical(band) or "").upper()))
        if exact is not None:
            positions.append(exact)
            known.append(names[exact])
            continue
        found = _polarised(band, names) if kind == "sar" else _of_wavelength(band, names)
        if found is not None:
            positions.append(found[0])
            known.append(band)
            notes.append(found[1])
        elif kind == "sar" and band in CROSS_POLARISED and any(name in CO_POLARISED for name in names):
            notes.append(f"there is no cross-polarised band for {band}: its channel is padded")
        else:
            raise UserError(_lacking(band, names, path, kind))
    return positions, known, notes


def _polarised(band: str, names: Sequence[str]) -> tuple[int, str] | None:
    for group, word in ((CO_POLARISED, "co"), (CROSS_POLARISED, "cross")):
        if band in group:
            for name in group:
                if name in names:
                    return names.index(name), f"{band} is taken from {name}, the {word}-polarised band of this file"
    return None


def wavelength(band: str) -> float | None:
    """Micrometres at the centre of a band; None of one that has none."""
    named = nanometres(band)
    return named / 1000 if named else WAVELENGTHS.get(band)


def _of_wavelength(band: str, names: Sequence[str]) -> tuple[int, str] | None:
    wave = wavelength(band)
    there = [(abs(own - wave), i) for i, name in enumerate(names) if wave and (own := wavelength(name))]
    if not there:
        return None
    distance, position = min(there)
    if distance > WAVELENGTH_TOLERANCE * wave:
        return None
    name = names[position]
    return position, f"{band} ({wave:.3f} um) is taken from {name} ({wavelength(name):.3f} um)"


def _lacking(band: str, names: Sequence[str], path: str, kind: str) -> str:
    there = " ".join(names)
    if all(_PLACEHOLDER.fullmatch(name) for name in names):
        option = "--sar-bands" if kind == "sar" else "--bands"
        return (
            f"{path} has no band {band!r} that is known: its {len(names)} bands have no names; name them in order "
            f"with {option} (such as {option} {'HH HV' if kind == 'sar' else 'B02 B03 B04 B08'})."
        )
    wave = wavelength(band) if kind == "optical" else None
    what = f" ({wave:.3f} um) and none within {WAVELENGTH_TOLERANCE:.0%} of it" if wave else nearest_name(band, names)
    return f"{path} has no band {band!r}{what}; it has {there}."
