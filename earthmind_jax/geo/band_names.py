"""What a band is called: the field's own name inside what a file says of it.

Names are Sentinel-2's and Landsat's numbers, polarisations, colours (R G B N PAN), the common names of catalogues
(``rededge``, ``nir08``, ``swir16``), or a wavelength (``665nm``).
"""

from __future__ import annotations

import re

from earthmind_jax.geo.quality import QUALITY_BANDS
from earthmind_jax.geo.radiometry import SENSORS

_OPTICAL = re.compile(r"(?<![A-Z0-9])B(?:0?([1-9])|(1[0-3])|0?(8A))(?![A-Z0-9])")
_LANDSAT = re.compile(r"(?<![A-Z0-9])(SR|ST|TOA|BT)_B(\d{1,2})(?![A-Z0-9])")
# A channel (VV), or the element of the covariance matrix that is its power (VVVV, as NISAR names it).
_POLARISATION = re.compile(r"(?<![A-Z])(?:(VV|VH|HH|HV)|(VVVV|VHVH|HHHH|HVHV))(?![A-Z])")
# Of a polarisation, and no backscatter: SNAP's coherence, phase, real and imaginary part.
_NO_POWER = re.compile(r"(?i)(coh|phase|ifg|unw|[iq]_)")
_WAVELENGTH = re.compile(
    r"(?<![\d.-])(?<!- )(\d+(?:\.\d+)?)\s*(n|u|µ|micro|nano)m(?:et(?:er|re)s?)?(?![a-z])", re.IGNORECASE
)
_MODIS = re.compile(r"SUR_REFL_B0?([1-7])")
_MODIS_NANOMETRES = (645, 859, 469, 555, 1240, 1640, 2130)
_PLACEHOLDER = re.compile(r"(bands?|layers?|gr[ae]y|undefined|none|unknown|(band|layer)?[ _-]?\d+)?", re.IGNORECASE)
_AGREE = 0.05  # of a wavelength, to which a number and the wavelength beside it are of one band
_WORDS = {
    **{f"{before}{name}": name[0] for name in ("RED", "GREEN", "BLUE", "R", "G", "B") for before in ("", "VIS-")},
    **dict.fromkeys(("N", "NIR", "NEAR INFRARED", "NEAR-INFRARED", "NEARINFRARED"), "N"),
    **dict.fromkeys(("PAN", "PANCHROMATIC"), "PAN"),
    **dict.fromkeys(("IR", "TIR", "LWIR", "MWIR", "LST", "THERMAL", "THERMAL INFRARED", "INFRARED"), "IR"),
    **dict.fromkeys(("BRIGHTNESS_TEMPERATURE", "BRIGHTNESS TEMPERATURE", "SURFACE_TEMPERATURE"), "IR"),
    # As HLS, PlanetScope and FORCE have it.
    **dict.fromkeys(("COASTAL", "COASTAL_AEROSOL", "COASTAL AEROSOL", "COASTAL_BLUE", "COASTAL BLUE"), "coastal"),
    **{"GREEN_I": "green_i", "YELLOW": "yellow", "NIR_BROAD": "nir", "BROADNIR": "nir"},
    **dict.fromkeys(("REDEDGE", "RED_EDGE", "RED EDGE", "RED-EDGE"), "rededge"),
    **{f"{word}{i}": f"rededge{i}" for word in ("REDEDGE", "RED_EDGE", "RED EDGE ", "RE") for i in (1, 2, 3)},
    **dict.fromkeys(("NIR_NARROW", "NIR08", "NARROWNIR"), "nir08"),
    **dict.fromkeys(("NIR09", "WATER_VAPOR", "WATERVAPOR"), "nir09"),
    **{f"{word}{end}": name for word in ("SWIR", "SWIR_", "SWIR ", "SHORTWAVEINFRARED")
       for end, name in (("1", "swir16"), ("16", "swir16"), ("2", "swir22"), ("22", "swir22"))},
}  # fmt: skip
# What Earth Engine and the agencies put beside the measurements.
_AUXILIARY = re.compile(
    r"(?i)SCL|Fmask|AOT|WVP|TCI_[RGB]|(MSK|CLD|QA|SR_QA|ST_QA|SR_CLOUD)\w*|ST_[A-Z]{3,}|CDIST"
    r"|angle|lia|\w*incidence\w*|layover\w*|\w*ratio\w*|[VH]{2} ?[/-] ?[VH]{2}"
)


def canonical(description: str | None) -> str | None:
    """The field's own name inside a band description (``"B4"``, ``"Sentinel-2 B04"`` -> ``"B04"``;
    ``"Sigma0_VV_db"`` -> ``"VV"``, ``"band 7 (0.49 Micrometers)"`` -> ``"490nm"``), the description itself where it
    says something else, or None where it says nothing (``"bands"``)."""
    text = (description or "").strip()
    if _PLACEHOLDER.fullmatch(text):
        return None
    upper = text.upper()
    for name in QUALITY_BANDS:
        if upper == name.upper():
            return name
    landsat, modis = _LANDSAT.search(upper), _MODIS.search(upper)
    if landsat:  # its own numbering
        return f"{landsat.group(1)}_B{landsat.group(2)}"
    if modis:
        return f"{_MODIS_NANOMETRES[int(modis.group(1)) - 1]}nm"
    optical = _OPTICAL.findall(upper.replace("_", " "))
    polarisation = {one or both[:2] for one, both in _POLARISATION.findall(upper.replace("_", " "))}
    wave = _wavelength(text)
    if len(optical) == 1 and not polarisation:
        digit, number, red_edge = optical[0]
        name = "B8A" if red_edge else f"B{int(digit or number):02d}"
        own = SENSORS["s2_l1c"].wavelengths.get(name)
        return wave if wave and not (own and abs(nanometres(wave) - 1000 * own) < _AGREE * 1000 * own) else name
    if len(polarisation) == 1 and not optical and not _NO_POWER.match(text):
        return polarisation.pop()
    return _WORDS.get(upper) or wave or text


def _wavelength(text: str) -> str | None:
    """``"665nm"`` of a text with one wavelength in it."""
    found = _WAVELENGTH.findall(text)
    if len(found) != 1:
        return None
    number, unit = float(found[0][0]), found[0][1].lower()
    return f"{number * (1 if unit.startswith('n') else 1000):g}nm"


def nanometres(name: str) -> float | None:
    """The wavelength that a band is named by (``"665nm"``)."""
    return float(name[:-2]) if re.fullmatch(r"\d+(\.\d+)?nm", name) else None


def auxiliary(name: str) -> bool:
    """Whether a band is about the others (quality, masks, angles) and no measurement of the ground."""
    return bool(_AUXILIARY.fullmatch(name))
