"""What a file holds, from its header alone: measured bands, the sensor they are from, and what tells validity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import rasterio
from affine import Affine
from rasterio.enums import ColorInterp
from rasterio.errors import CRSError

from earthmind_jax.errors import UserError
from earthmind_jax.geo.band_names import auxiliary, canonical, nanometres
from earthmind_jax.geo.bands import name_bands
from earthmind_jax.geo.grid import ground_sample_distance
from earthmind_jax.geo.products import product_in
from earthmind_jax.geo.quality import QUALITY_BANDS
from earthmind_jax.geo.radiometry import SENSORS
from earthmind_jax.geo.sensor_guess import MEASURED, RADAR, measured
from earthmind_jax.geo.snap_tag import snap_band_names
from earthmind_jax.geo.vrt_sources import source_names

BAND_NAME_TAGS = ("netcdf_varname", "bandname", "band_name", "name", "common_name", "polarization", "polarisation",
                  "polarimetric_interp")  # fmt: skip
# WorldView's names of bands that are not the field's.
MAXAR = {"P": "PAN", "C": "coastal", "Y": "yellow", "RE": "rededge", "N2": "nir09"}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Bands to read of a file of whatever sensor.

    Attributes:
      bands: names as a model knows them; all bands of the file where None.
      names: of the file's bands in its order, where the caller knows them.
      kind: "optical" or "sar": bands of another sensor may stand for those asked for (see ``counterparts``).
    """

    bands: tuple[str, ...] | None = None
    names: tuple[str, ...] | None = None
    kind: str | None = None

    def __len__(self) -> int:
        """How many bands; 0 where it is all of them."""
        return len(self.bands or ())


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The measured bands of a file with their 1-based positions, and the others (quality, masks, angles).

    ``quality`` is the position and the name of the band that tells validity.
    """

    bands: tuple[str, ...]
    indexes: tuple[int, ...]
    others: tuple[str, ...]
    other_indexes: tuple[int, ...]
    sensor: str | None
    notes: tuple[str, ...]
    quality: tuple[int, str] | None


def contents(
    dataset: rasterio.DatasetReader, sensor: str | None, told: Sequence[str] | None = None, kind: str | None = None
) -> Contents:
    """Reads a header: names of the bands (``told``: as the caller knows them), and the sensor.

    Of a file with optical and SAR bands those of the ``kind`` ("optical" or "sar") are measurements, and optical ones
    where it is not told.

    Raises:
      UserError: no image bands, a name given twice, or a number of names that is not that of the bands.
    """
    keep = data_bands(dataset, told)
    product, why = product_in(dataset), "as told"
    if sensor is None and product is not None:
        sensor, why = product.sensor, product.reason
    texts = [_spoken(dataset, i) for i in keep]
    if not any(texts) and dataset.driver == "GTiff":
        named = _maxar_bands(dataset) or snap_band_names(dataset.name)
        texts = [named[i - 1] for i in keep] if len(named) == dataset.count else texts
    if not any(texts) and told is None and product is None and dataset.driver == "VRT":
        texts, source, reason = source_names(dataset, keep)
        sensor, why = (source, reason) if sensor is None and source is not None else (sensor, why)
    names, guess, notes = name_bands(
        texts,
        dataset.dtypes[keep[0] - 1],
        dataset.name if product is None else product.named_after,
        dataset.tags(),
        sensor,
        told=told,
        colours=[dataset.colorinterp[i - 1].name for i in keep],
        gsd=_gsd(dataset),
        why=why,
        kind=kind,
        scaled=all(dataset.scales[i - 1] not in (0.0, 1.0) for i in keep),
    )
    if product is not None:
        notes = [f"{product.title} {product.path}", *notes, *product.notes]
    if sensor is not None and told is None and names[0] == "band_1":
        _require_layout(dataset, sensor, len(names))
    if sensor is not None and product is None and told is None:
        _require_own_numbers(dataset, sensor, names)
    data = _measurements(names, guess, kind)
    rest = [i for i in range(len(names)) if i not in data]
    pages = len(dataset.subdatasets) if dataset.driver == "GTiff" else 0
    if pages > 1:
        notes = [
            *notes,
            f"the first of {pages} pages is read, although there are others; save each as a file",
        ]
    left = [names[i] for i in rest if not auxiliary(names[i])]
    if left:
        notes = [*notes, _left_out(left, guess)]
    quality = next(((keep[i], names[i]) for i in rest if names[i] in QUALITY_BANDS), None)
    return Contents(
        bands=tuple(names[i] for i in data),
        indexes=tuple(keep[i] for i in data),
        others=tuple(names[i] for i in rest),
        other_indexes=tuple(keep[i] for i in rest),
        sensor=guess,
        notes=tuple(notes),
        quality=quality,
    )


def _spoken(dataset: rasterio.DatasetReader, index: int) -> str | None:
    """What a file says of a band: its description, or a tag that names it."""
    tags = {key.lower(): value for key, value in dataset.tags(index).items()}
    said = [dataset.descriptions[index - 1], *(tags[key] for key in BAND_NAME_TAGS if tags.get(key))]
    if tags.get("wavelength"):
        said.append(f"{tags['wavelength']} {tags.get('wavelength_units') or tags.get('wavelength_unit') or 'nm'}")
    return next((text for text in said if canonical(text)), None)


def _maxar_bands(dataset: rasterio.DatasetReader) -> list[str]:
    """Names of the bands in the metadata (IMD) that Maxar puts beside an image, in its order."""
    keys = dataset.tags(ns="IMD") if "IMD" in dataset.tag_namespaces() else {}
    groups = dict.fromkeys(key.partition(".")[0].removeprefix("BAND_") for key in keys if key.startswith("BAND_"))
    return [MAXAR.get(group, group) for group in groups]


def _measurements(names: Sequence[str], sensor: str | None, kind: str | None) -> list[int]:
    """Positions of the bands that the sensor measured; of all that are not about others where none is known of it."""
    data = [i for i, name in enumerate(names) if not auxiliary(name)] or list(range(len(names)))
    if sensor is None:
        return [i for i in data if names[i] in measured(tuple(names), kind)] or data
    own = SENSORS[sensor].bands
    waves = sensor == "reflectance"
    return [i for i in data if names[i] in own or (waves and nanometres(names[i]))] or data


def _left_out(names: Sequence[str], sensor: str | None) -> str:
    radar = [name for name in names if name in RADAR]
    if radar and not set(names) - RADAR:
        return f"it holds SAR bands, too ({' '.join(radar)}): give it as the SAR image as well (--sar)"
    why = f"{SENSORS[sensor].title} has no such bands" if sensor else "they are no bands of a sensor"
    return f"left out, since {why}: {' '.join(names)}"


def _require_layout(dataset: rasterio.DatasetReader, sensor: str, count: int) -> None:
    """UserError where nameless bands are told to be from a sensor that has no such layout, and look like another's."""
    guess = contents(dataset, None).sensor
    if guess is None or SENSORS[guess].is_8bit:
        return
    kind, entry = SENSORS[sensor].kind, SENSORS[sensor]
    options = ("--sar-sensor", "--sar-bands") if kind == "sar" else ("--sensor", "--bands")
    raise UserError(
        f"{dataset.name} has {count} bands without names, which is no layout of {entry.title} ({sensor}); name "
        f"them in order with {options[1]}, or leave out {options[0]} {sensor}: it looks like {SENSORS[guess].title}."
    )


def _require_own_numbers(dataset: rasterio.DatasetReader, sensor: str, names: Sequence[str]) -> None:
    """UserError where bands that are merely numbered are told to be from a sensor that numbers none: B04 may be red,
    near infrared, or the fourth of some."""
    present = {name for name in names if not auxiliary(name)}
    if sensor in ("vhr", "reflectance") and present and present <= set(SENSORS["s2_l1c"].bands):
        raise UserError(
            f"{dataset.name} numbers its bands ({' '.join(names)}), which does not say which they are on "
            f"{SENSORS[sensor].title}; name them in order with --bands (such as red green blue nir)."
        )


def data_bands(dataset: rasterio.DatasetReader, told: Sequence[str] | None = None) -> list[int]:
    """1-based indexes without alpha, which is validity and not data; all where each is told a name. What the file
    itself gives the name of a measurement is one, though it be stored as alpha."""
    if told is not None and len(told) == dataset.count:
        return list(range(1, dataset.count + 1))
    kinds = zip(dataset.colorinterp, dataset.descriptions, strict=True)
    keep = [i for i, (kind, text) in enumerate(kinds, 1) if kind != ColorInterp.alpha or canonical(text) in MEASURED]
    if not keep:
        raise UserError(f"{dataset.name} has an alpha band only and no image bands.")
    return keep


def _gsd(dataset: rasterio.DatasetReader) -> float | None:
    if dataset.crs is None or dataset.transform.almost_equals(Affine.identity()):
        return None
    try:
        return ground_sample_distance(dataset.transform, dataset.crs, (dataset.height, dataset.width))
    except CRSError:  # an engineering CRS has no place on Earth
        return None
