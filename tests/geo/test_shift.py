"""The residual shift of a pair: right to a fraction of a pixel where it is told, and not told of noise."""

from __future__ import annotations

import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS
from rasterio.transform import from_origin

from earthmind_jax.data.simulate import make_scene
from earthmind_jax.geo.align import load_pair
from earthmind_jax.geo.grid import Grid
from earthmind_jax.geo.resample import continuous
from earthmind_jax.geo.shift import residual_shift

HERE = from_origin(500000, 5000000, 10, 10)
UTM = CRS.from_epsg(32632)


def displaced_pair(seed, rows, columns, side=224, cloud="clear"):
    """A simulated optical image, and its SAR image with the content moved by so many pixels, in dB."""
    scene = make_scene(np.random.default_rng(seed), size=side, gsd=10.0, cloud=cloud)
    grid = Grid(HERE, UTM, side, side)
    moved = Grid(HERE @ Affine.translation(columns, rows), UTM, side, side)
    power, valid = continuous(10 ** (np.nan_to_num(scene.sar_db) / 10), scene.sar_valid, moved, grid)
    db = 10 * np.log10(np.maximum(power, 1e-6))
    return np.nan_to_num(scene.optical), scene.optical_valid, db, valid


@pytest.mark.parametrize(
    ("rows", "columns"), [(0, 0), (1.3, -2.6), (-5.5, 4.25), (0.5, 0.5), (-8.2, -0.4), (11.7, 9.1)]
)
def test_known_shifts(rows, columns):
    """Optical against SAR, three scenes each: never more than 0.6 pixels off, 0.35 in the mean."""
    errors = []
    for seed in (1, 3, 5):
        shift = residual_shift(*displaced_pair(seed, rows, columns))
        assert shift is not None
        errors.append(np.hypot(shift.rows - rows, shift.columns - columns))
    assert max(errors) < 0.6
    assert np.mean(errors) < 0.35


def test_one_image_against_itself():
    """Without speckle between them, to a twentieth of a pixel; the sign says where the second lies."""
    optical, valid, _, _ = displaced_pair(2, 0, 0)
    grid, moved = (Grid(HERE @ Affine.translation(c, r), UTM, 224, 224) for r, c in ((0, 0), (2.35, -4.7)))
    other, there = continuous(optical[3:4], valid, moved, grid)
    shift = residual_shift(optical[3:4], valid, other, there)
    assert shift.rows == pytest.approx(2.35, abs=0.1)
    assert shift.columns == pytest.approx(-4.7, abs=0.1)
    assert shift.confidence > 0.7
    assert shift.length == pytest.approx(np.hypot(2.35, 4.7), abs=0.1)


def test_swapped_images_shift_the_other_way():
    one = displaced_pair(7, 3.2, -1.4)
    there, back = residual_shift(*one), residual_shift(*one[2:], *one[:2])
    assert (there.rows, there.columns) == pytest.approx((-back.rows, -back.columns), abs=0.11)


def test_clouds_and_holes_take_no_part():
    optical, valid, db, seen = displaced_pair(3, 2.0, -3.0)
    hole = np.zeros_like(valid)
    hole[60:130, 20:90] = True
    optical = np.where(hole, 9.0, optical)
    shift = residual_shift(optical, valid & ~hole, np.where(hole, np.nan, db), seen & ~hole)
    assert np.hypot(shift.rows - 2, shift.columns + 3) < 0.6


def test_noise_is_not_told():
    rng = np.random.default_rng(0)
    for side in (48, 64, 128, 200):
        for kind in range(12):
            optical = rng.random((3, side, side), np.float32)
            db = (10 * np.log10(rng.gamma(4, 0.25, (2, side, side)))).astype(np.float32)
            valid = np.ones((side, side), bool)
            if kind % 3 == 1:  # the same nodata wedge in both is no match of the ground
                valid[: side // 3, : side // 3] = False
            if kind % 3 == 2:  # a smooth field
                optical, db = np.cumsum(optical - 0.5, 1), np.cumsum(db - db.mean(), 2)
            assert residual_shift(optical, valid, db, valid) is None


def test_unrelated_scenes_are_not_told():
    pairs = [displaced_pair(seed, 0, 0, 160) for seed in range(8)]
    told = [
        residual_shift(*one[:2], *other[2:]) for i, one in enumerate(pairs) for j, other in enumerate(pairs) if i != j
    ]
    assert not any(told)


@pytest.mark.parametrize("case", ["small", "flat", "nothing_valid", "too_far"])
def test_what_cannot_be_told(case):
    optical, valid, db, seen = displaced_pair(1, 40 if case == "too_far" else 0, 0)
    if case == "small":
        optical, valid, db, seen = (x[..., :40, :40] for x in (optical, valid, db, seen))
    if case == "flat":
        db = np.full_like(db, -10)
    if case == "nothing_valid":
        seen = np.zeros_like(seen)
    assert residual_shift(optical, valid, db, seen) is None


def test_large_scenes_cost_no_more():
    """Nine windows of a scene of 1600 x 1300, made of one tile: the same shift as in the tile."""
    optical, valid, db, seen = displaced_pair(5, -2.0, 3.0, 256)
    whole = [np.tile(x, (*(1,) * (x.ndim - 2), 6, 5)) for x in (optical, valid, db, seen)]
    shift = residual_shift(*whole)
    assert np.hypot(shift.rows + 2, shift.columns - 3) < 0.6


def test_pair_tells_and_moves_nothing(make_tif):
    optical, _, db, _ = displaced_pair(1, 3.0, -2.0)
    numbers = np.round(np.clip(optical, 0.001, 1) * 10000).astype("uint16")
    s2, s1 = make_tif("s2.tif", numbers, transform=HERE), make_tif("s1.tif", db[:2].astype("float32"), transform=HERE)
    pair = load_pair(s2, s1)
    note = next(note for note in pair.notes if note.startswith("residual shift"))
    assert "not corrected" in note
    rows, columns = float(note.split()[6]), float(note.split()[9])
    assert np.hypot(rows - 3, columns + 2) < 0.6
    np.testing.assert_allclose(pair.sar.data[0][pair.sar.valid], db[0][pair.sar.valid], atol=1e-4)
    assert not any("residual" in note for note in load_pair(s2, s1, report_shift=False).notes)


def test_real_pairs(sentinel):
    """Mostly water tells nothing; in the mountains of the second pair the quarters lie up to 4 pixels apart, so no one
    shift is told; in the third they agree (mutual information of the values, another method, says the same)."""
    for scene in ("282D_485L_3_3", "637U_59R_1_3", "38D_378R_2_3"):
        pair = load_pair(sentinel / "S2L2A" / f"{scene}.tif", sentinel / "S1RTC" / f"{scene}.tif", report_shift=False)
        for names in (("B02", "B03", "B04"), ("B02", "B03", "B04", "B08"), pair.optical.bands):
            bands = [pair.optical.bands.index(name) for name in names]
            told = residual_shift(pair.optical.data[bands], pair.optical.valid, pair.sar.data, pair.sar.valid)
            if scene == "38D_378R_2_3":
                assert np.hypot(told.rows + 1.4, told.columns + 0.3) < 0.3
            else:
                assert told is None


def test_parts_that_moved_differently_are_not_told():
    """Half of the scene displaced by 3 pixels more: as relief does, no one shift is right."""
    optical, valid, db, seen = displaced_pair(5, 1.0, 0.0)
    _, _, other, there = displaced_pair(5, 4.0, 0.0)
    db[:, :, 112:], seen[:, 112:] = other[:, :, 112:], there[:, 112:]
    assert residual_shift(optical, valid, db, seen) is None
