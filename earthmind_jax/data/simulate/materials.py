"""The surfaces of a simulated scene: land cover classes, and the materials each class is made of.

A material has a mean surface reflectance in the 12 bands of Sentinel-2 L2A and a mean gamma0 backscatter of Sentinel-1
(VV, VH in dB). Two sources:

* ``[chip]``: rounded from quantiles per land cover class of three real Sentinel-1/2 chips (a subtropical coast in
  July, a temperate farmland in October, a semi-arid savanna in June).
* ``[lit]``: typical of published spectral libraries (pavements, roofs, turbid water, dry vegetation).

The marks speak of the reflectance. Backscatter of forest, sand and ploughed or green crops is near the chips' medians
(listed in ``radar``); calm water and asphalt are darker than the chips' water, over which there was wind; grass is
0.5 - 3 dB below the chips' shrubby rangeland, as short grass is; roofs, ships and bridges are at published levels.

A land cover product is not taken at its word: of the chip pixels labelled *water* on the coast, 41 % have an
MNDWI (B03, B11) below zero and a SWIR reflectance of 0.04 - 0.5, which no water has; they are sand bars and tidal flats
that were dry at the time. They inform the bare materials here (``tidal_flat``), and only the rest informs water.

What is easy and what is hard follows from the table. SAR alone confuses calm water, smooth sand and asphalt (all dark),
forest and tall crops (all bright in VH), grass, low crops and rough soil; optical alone confuses roofs with bright soil
and pavement, ships with foam, and is blind under cloud.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
WAVELENGTHS = np.array(
    [0.443, 0.493, 0.560, 0.665, 0.704, 0.741, 0.783, 0.833, 0.865, 0.945, 1.614, 2.202], np.float32
)  # micrometres
POLARISATIONS = ("VV", "VH")


class Cover(IntEnum):
    """Land cover classes of a class map; 0 is kept for nodata in label files."""

    WATER = 1
    FOREST = 2
    FIELD = 3
    GRASSLAND = 4
    BARE = 5
    ASPHALT = 6
    ROAD = 7
    BUILDING = 8
    SHIP = 9
    BRIDGE = 10


CLASS_NAMES = ("unlabelled", *(cover.name.lower() for cover in Cover))
STUFF = (Cover.WATER, Cover.FOREST, Cover.FIELD, Cover.GRASSLAND, Cover.BARE, Cover.ASPHALT)  # areas
OBJECTS = (Cover.BUILDING, Cover.SHIP, Cover.BRIDGE)  # things that can be counted


@dataclass(frozen=True)
class Material:
    """One surface.

    Attributes:
      cover: its class.
      reflectance: 12 mean surface reflectances (0..1), in the order of ``BANDS``.
      vv, vh: mean gamma0 in dB.
      share: how often the class is made of it (relative).
      spread: standard deviation of the log brightness between regions.
      texture: standard deviation of the log brightness between pixels of one region.
      sar_spread: standard deviation of the backscatter between regions, dB.
      sar_texture: standard deviation of the noise-free backscatter between pixels of one region, dB.
      words: how a person would call it.
    """

    cover: Cover
    words: str
    reflectance: tuple[float, ...]
    vv: float
    vh: float
    share: float = 1.0
    spread: float = 0.15
    texture: float = 0.06
    sar_spread: float = 1.2
    sar_texture: float = 0.4


def _m(cover: Cover, words: str, optical: str, vv: float, vh: float, **options: float) -> Material:
    return Material(cover, words, tuple(float(value) for value in optical.split()), vv, vh, **options)


W, F, C, G, B, A = STUFF
MATERIALS: dict[str, Material] = {
    # water: wide on purpose (clear, dark, turbid, sediment-rich, over sand); glint and foam are added by the renderer
    "clear_water": _m(W, "clear water", ".041 .050 .058 .022 .014 .005 .006 .005 .004 .004 .003 .002", -19.4, -24.4,
                      spread=0.30, sar_spread=1.2),  # [chip] median of open water
    "dark_water": _m(W, "dark water", ".014 .012 .018 .013 .011 .006 .007 .007 .007 .014 .010 .008", -19.6, -24.6,
                     spread=0.35, sar_spread=1.2),  # [chip] lagoon, lower quartile
    "turbid_water": _m(W, "turbid water", ".070 .080 .100 .080 .065 .030 .032 .028 .022 .020 .010 .007", -18.8, -23.8,
                       spread=0.30, sar_spread=1.3),  # [lit], within the 75-95 % quantiles of the chip
    "muddy_water": _m(W, "muddy water", ".095 .120 .155 .165 .155 .100 .105 .095 .080 .055 .022 .013", -18.4, -23.4,
                      share=0.7, spread=0.25, sar_spread=1.3),  # [lit] [chip] 95 % quantile
    "windy_water": _m(W, "rough water", ".050 .058 .065 .032 .024 .014 .015 .014 .012 .011 .010 .008", -14.2, -22.2,
                      spread=0.35, sar_spread=1.2),  # [chip] optical as clear water with glint, SAR 75-95 %
    # forest
    "broadleaf": _m(F, "dense forest", ".018 .018 .034 .019 .064 .198 .240 .256 .267 .267 .112 .046", -7.5, -13.6,
                    share=1.2, spread=0.12, texture=0.10, sar_spread=1.0, sar_texture=0.7),  # [chip] coast
    "autumn_wood": _m(F, "woodland", ".007 .006 .027 .028 .063 .115 .137 .158 .170 .175 .125 .074", -8.8, -14.4,
                      spread=0.12, texture=0.1, sar_spread=1.2, sar_texture=0.8),  # [chip] farmland
    "summer_wood": _m(F, "green forest", ".018 .022 .042 .026 .074 .225 .275 .292 .305 .302 .140 .058", -7.6, -13.4,
                      spread=0.12, texture=0.1, sar_spread=1.0, sar_texture=0.7),  # [lit]
    # crops: from ploughed to tall
    "green_crop": _m(C, "a green crop field", ".012 .014 .052 .034 .100 .290 .345 .370 .380 .375 .195 .102",
                     -10.4, -16.6, share=1.5, spread=0.10, texture=0.05, sar_spread=1.2),  # [chip] upper quartile
    "tall_crop": _m(C, "a field of tall crops", ".024 .030 .068 .044 .122 .330 .405 .425 .440 .425 .225 .110",
                    -7.7, -13.7, share=3.0, spread=0.10, texture=0.05, sar_spread=0.9),  # [lit]
    "low_crop": _m(C, "a field of young crops", ".013 .015 .053 .034 .104 .235 .268 .292 .302 .304 .172 .090",
                   -11.4, -17.4, share=0.8, spread=0.10, texture=0.05, sar_spread=1.2),  # [chip] above the median
    "stubble": _m(C, "a harvested field", ".067 .078 .112 .156 .197 .236 .259 .265 .292 .292 .366 .281",
                  -11.8, -17.6, share=0.6, spread=0.10, texture=0.05, sar_spread=1.2),  # [chip] savanna crops, median
    "ploughed": _m(C, "a ploughed field", ".050 .062 .088 .118 .138 .150 .160 .168 .178 .182 .232 .196",
                   -10.6, -17.4, share=0.8, spread=0.12, texture=0.05, sar_spread=1.3),  # [lit] dark, humus-rich soil
    # grassland and rangeland
    "rangeland": _m(G, "rangeland", ".029 .030 .047 .052 .093 .155 .178 .194 .210 .216 .186 .111", -12.8, -19.0,
                    spread=0.12, texture=0.10, sar_spread=0.9),  # [chip] coast
    "meadow": _m(G, "a meadow", ".028 .034 .066 .066 .118 .205 .238 .255 .266 .270 .250 .150", -13.6, -20.2,
                 spread=0.10, texture=0.06, sar_spread=1.0),  # [lit] autumn pasture
    "dry_grass": _m(G, "dry grassland", ".045 .054 .082 .100 .135 .185 .205 .220 .238 .245 .275 .175", -14.4, -20.8,
                    spread=0.10, texture=0.08, sar_spread=1.0),  # [lit], darker than the savanna of the chips
    # bare ground
    "sand": _m(B, "bright sand", ".178 .231 .282 .315 .344 .345 .354 .368 .372 .319 .458 .421", -17.2, -22.2,
               share=1.6, spread=0.16, texture=0.07, sar_spread=1.3),  # [chip] median of bare (SAR -16.8, -21.7)
    "tidal_flat": _m(B, "a wet sand flat", ".105 .105 .137 .150 .176 .182 .190 .196 .202 .190 .230 .165",
                     -18.0, -23.0, share=0.8, spread=0.22, texture=0.08, sar_spread=1.3),  # [chip] dry "water"
    "dry_soil": _m(B, "dry soil", ".103 .135 .184 .249 .288 .310 .325 .334 .350 .340 .470 .400", -15.8, -21.4,
                   share=1.2, spread=0.14, texture=0.07, sar_spread=1.3),  # [chip] savanna, 95 %
    "stony_ground": _m(B, "stony ground", ".090 .110 .145 .185 .208 .225 .238 .250 .258 .256 .345 .310", -12.6, -19.0,
                       share=0.4, spread=0.13, texture=0.08, sar_spread=1.2, sar_texture=0.7),  # [lit]
    # pavement
    "asphalt": _m(A, "an asphalt area", ".070 .076 .086 .096 .102 .108 .113 .118 .123 .124 .142 .132", -20.6, -25.8,
                  share=2.0, spread=0.15, texture=0.05, sar_spread=1.2),  # [lit]
    "worn_asphalt": _m(A, "a paved area", ".105 .118 .134 .148 .156 .163 .169 .176 .181 .182 .205 .192", -19.0, -24.5,
                       share=0.5, spread=0.12, texture=0.06, sar_spread=1.5),  # [lit]
    "road": _m(Cover.ROAD, "a road", ".105 .120 .140 .156 .164 .170 .177 .183 .188 .190 .215 .200", -14.0, -20.0,
               spread=0.18, texture=0.08),  # [lit] gravel and worn asphalt with its verges
    # roofs: bright metal, red tiles (as soil), grey
    "metal_roof": _m(Cover.BUILDING, "a bright roof", ".300 .325 .340 .348 .350 .352 .354 .356 .356 .340 .330 .285",
                     -5.5, -12.5, spread=0.2, texture=0.10),  # [lit], chip built-up 95 %
    "tile_roof": _m(Cover.BUILDING, "a tiled roof", ".075 .092 .125 .190 .220 .240 .255 .265 .275 .275 .340 .290",
                    -5.5, -12.5, spread=0.18, texture=0.12),  # [lit]
    "grey_roof": _m(Cover.BUILDING, "a grey roof", ".150 .160 .172 .180 .184 .187 .190 .193 .195 .193 .190 .172",
                    -5.5, -12.5, spread=0.15, texture=0.12),  # [lit]
    "ship": _m(Cover.SHIP, "a ship", ".130 .150 .165 .175 .180 .185 .185 .190 .190 .180 .185 .165", 3.0, -6.0,
               spread=0.35, texture=0.15, sar_spread=2.5, sar_texture=1.5),  # [lit]
    "bridge": _m(Cover.BRIDGE, "a bridge", ".135 .150 .170 .185 .195 .200 .205 .210 .212 .208 .225 .205", 0.5, -9.0,
                 spread=0.15, texture=0.06, sar_spread=1.5, sar_texture=1.0),  # [lit]
}  # fmt: skip
NAMES = tuple(MATERIALS)
INDEX = {name: index for index, name in enumerate(NAMES)}

COVER = np.array([material.cover for material in MATERIALS.values()], np.uint8)
REFLECTANCE = np.array([material.reflectance for material in MATERIALS.values()], np.float32)  # [material 12]
SPREAD = np.array([material.spread for material in MATERIALS.values()], np.float32)
TEXTURE = np.array([material.texture for material in MATERIALS.values()], np.float32)
BACKSCATTER = np.array([(material.vv, material.vh) for material in MATERIALS.values()], np.float32)  # [material 2]
SAR_SPREAD = np.array([material.sar_spread for material in MATERIALS.values()], np.float32)
SAR_TEXTURE = np.array([material.sar_texture for material in MATERIALS.values()], np.float32)


def _shares(cover: Cover) -> tuple[np.ndarray, np.ndarray]:
    index = np.flatnonzero(np.equal(COVER, cover))
    share = np.array([MATERIALS[NAMES[i]].share for i in index])
    return index, np.cumsum(share / share.sum())


_CHOICES = {cover: _shares(cover) for cover in Cover}


def draw_materials(rng: np.random.Generator, cover: Cover, count: int) -> np.ndarray:
    """``count`` random material indices of one class, by their shares."""
    index, cumulative = _CHOICES[cover]
    return index[np.minimum(np.searchsorted(cumulative, rng.random(count)), len(index) - 1)]
