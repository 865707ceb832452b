"""The CORINE land cover nomenclature of BigEarthNet: 43 classes of level 3, and the 19 that were made of them.

Source: Sumbul et al. 2021 (BigEarthNet-MM), table of the 19-class nomenclature; codes of CORINE Land Cover 2018.
"""

from __future__ import annotations

_MIXED = "Land principally occupied by agriculture, with significant areas of natural vegetation"

# name of one of 19 classes -> CORINE code -> name of one of 43 classes
NOMENCLATURE: dict[str, dict[int, str]] = {
    "Urban fabric": {111: "Continuous urban fabric", 112: "Discontinuous urban fabric"},
    "Industrial or commercial units": {121: "Industrial or commercial units"},
    "Arable land": {211: "Non-irrigated arable land", 212: "Permanently irrigated land", 213: "Rice fields"},
    "Permanent crops": {
        221: "Vineyards",
        222: "Fruit trees and berry plantations",
        223: "Olive groves",
        241: "Annual crops associated with permanent crops",
    },
    "Pastures": {231: "Pastures"},
    "Complex cultivation patterns": {242: "Complex cultivation patterns"},
    _MIXED: {243: _MIXED},
    "Agro-forestry areas": {244: "Agro-forestry areas"},
    "Broad-leaved forest": {311: "Broad-leaved forest"},
    "Coniferous forest": {312: "Coniferous forest"},
    "Mixed forest": {313: "Mixed forest"},
    "Natural grassland and sparsely vegetated areas": {321: "Natural grassland", 333: "Sparsely vegetated areas"},
    "Moors, heathland and sclerophyllous vegetation": {322: "Moors and heathland", 323: "Sclerophyllous vegetation"},
    "Transitional woodland, shrub": {324: "Transitional woodland/shrub"},
    "Beaches, dunes, sands": {331: "Beaches, dunes, sands"},
    "Inland wetlands": {411: "Inland marshes", 412: "Peatbogs"},
    "Coastal wetlands": {421: "Salt marshes", 422: "Salines"},
    "Inland waters": {511: "Water courses", 512: "Water bodies"},
    "Marine waters": {521: "Coastal lagoons", 522: "Estuaries", 523: "Sea and ocean"},
}
CLASSES = tuple(NOMENCLATURE)
DROPPED = (
    "Road and rail networks and associated land", "Port areas", "Airports", "Mineral extraction sites", "Dump sites",
    "Construction sites", "Green urban areas", "Sport and leisure facilities", "Bare rock", "Burnt areas",
    "Intertidal flats",
)  # fmt: skip
"""Of the 43 classes those that belong to none of the 19."""

OF_43 = {old: new for new, parts in NOMENCLATURE.items() for old in parts.values()}
"""Name among the 43 -> name among the 19."""
