"""What the caller knows about files that do not say it themselves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earthmind_jax.errors import UserError

_OPTICAL = ("sensor", "offset", "bands", "scl", "mtl")
_SAR = ("sar_sensor", "sar_scale", "calibration", "sar_bands")


@dataclass(frozen=True, kw_only=True)
class Told:
    """Facts about an optical and a SAR file that win over what would be detected."""

    sensor: str | None = None
    """of the optical file: s2_l2a, s2_l1c, landsat_l2, landsat_l1, reflectance (any other), vhr, infrared or rgb8."""
    sar_sensor: str | None = None
    """of the SAR file: s1, sar_l, sar_x or gf3."""
    sar_scale: str | None = None
    """of the SAR file: dB, linear (power), amplitude or dn."""
    calibration: float | None = None
    """SAR amplitude (DN) of 0 dB."""
    offset: float | None = None
    """number to add to Sentinel-2 digital numbers: -1000 or 0."""
    bands: tuple[str, ...] = ()
    """names of the optical file's bands, in its order (B04, red, swir16, 665nm; any other word: not to be used)."""
    sar_bands: tuple[str, ...] = ()
    """names of the SAR file's bands, in its order."""
    scl: Path | None = None
    """scene classification (SCL), QA_PIXEL or Fmask file of the optical image: cloud is invalid."""
    mtl: Path | None = None
    """metadata file of a Landsat Level-1 scene."""
    height: float | None = None
    """metres above the ellipsoid of the ground that images placed by RPCs show."""
    dem: Path | None = None
    """elevation model (a raster of such heights) for images placed by RPCs."""

    def about(self, kind: str) -> list[str]:
        """Names of the facts about the ``optical`` or the ``sar`` file."""
        mine = _SAR if kind == "sar" else _OPTICAL
        return [name for name in mine if getattr(self, name) not in (None, ())]

    def sensor_of(self, kind: str) -> str | None:
        """What is told to have made the ``optical`` or the ``sar`` image."""
        return self.sar_sensor if kind == "sar" else self.sensor

    def names_of(self, kind: str) -> tuple[str, ...]:
        """The names told of its bands."""
        return self.sar_bands if kind == "sar" else self.bands

    def is_picture(self, kind: str) -> bool:
        """Whether nothing told speaks against an 8-bit file being a picture as it is."""
        if kind == "optical":
            return self.sensor in (None, "rgb8") and not self.bands
        return not self.about("sar")

    def require_sensors(self) -> None:
        """UserError where a sensor is told that there is not, or that makes no images of this kind."""
        from earthmind_jax.geo.bands import known_sensor
        from earthmind_jax.geo.radiometry import SENSORS

        for kind, option in (("optical", "--sensor"), ("sar", "--sar-sensor")):
            name = self.sensor_of(kind)
            if name is None or SENSORS[known_sensor(name)].kind == kind:
                continue
            fitting = ", ".join(key for key, entry in SENSORS.items() if entry.kind == kind)
            what = "a SAR" if kind == "optical" else "an optical"
            raise UserError(f"{option} {name}: {SENSORS[name].title} is {what} sensor; {option} takes {fitting}.")

    def require_files(self, given: Iterable[str]) -> None:
        """UserError where something is told about an image that is not among the ``given``, or cannot be of it."""
        self.require_sensors()
        for kind in {"optical", "sar"} - set(given):
            if self.about(kind):
                name = "SAR" if kind == "sar" else kind
                raise UserError(f"'{self.about(kind)[0]}' speaks of the {name} image, but there is none; leave it out.")

    def ground(self) -> dict[str, Any]:
        """The keyword arguments of :func:`earthmind_jax.geo.control.place_of`; of whichever image RPCs place."""
        return {"height": self.height, "dem": self.dem}

    def pair_options(self) -> dict[str, Any]:
        """The keyword arguments of :func:`earthmind_jax.geo.align.load_pair`."""
        return {
            "optical_sensor": self.sensor,
            "sar_sensor": self.sar_sensor,
            "sar_scale": self.sar_scale,
            "calibration": self.calibration,
            "offset": self.offset,
            "optical_names": self.bands or None,
            "sar_names": self.sar_bands or None,
            "scl": self.scl,
            "mtl": self.mtl,
            **self.ground(),
        }

    def image_options(self, kind: str) -> dict[str, Any]:
        """The keyword arguments of :func:`earthmind_jax.geo.align.load_onto`."""
        if kind == "sar":
            told = {"scale": self.sar_scale, "calibration": self.calibration}
            return {"sensor": self.sar_sensor, "names": self.sar_bands or None, **told} | self.ground()
        return {"sensor": self.sensor, "names": self.bands or None, "offset": self.offset} | self.ground()


NOTHING = Told()
