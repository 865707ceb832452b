"""Simulated land cover, the two sensors' images of it, and how long they take."""

from __future__ import annotations

import time

import numpy as np
import pytest

from earthmind_jax.data.simulate import Cover, make_layout, make_questions, make_scene
from earthmind_jax.data.simulate.layout import boxes
from earthmind_jax.data.simulate.materials import BACKSCATTER, BANDS, COVER, REFLECTANCE
from earthmind_jax.data.simulate.noise import (
    blur_matrix,
    components,
    dilate,
    fractal_noise,
    product,
    shift,
    smooth_noise,
)
from earthmind_jax.data.simulate.optical import make_sky
from earthmind_jax.data.simulate.radar import from_db, speckle, to_db
from earthmind_jax.errors import UserError

B04, B08, B11 = (BANDS.index(name) for name in ("B04", "B08", "B11"))


@pytest.fixture(scope="module")
def clear():
    return [make_scene(seed, cloud="clear", nodata=0.0) for seed in range(60)]


def test_same_seed_same_scene():
    for cloud in ("clear", "partly", "cloudy", None):
        a, b, c = make_scene(7, cloud=cloud), make_scene(7, cloud=cloud), make_scene(8, cloud=cloud)
        for name in ("optical", "sar_db", "sar_mean", "optical_valid", "sar_valid", "class_map", "cloud", "shadow"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert a.gsd == b.gsd != c.gsd
        assert not np.array_equal(a.sar_db, c.sar_db)


def test_shapes_types_and_odd_sizes():
    for size in (16, 64, (48, 96), (131, 77)):
        scene = make_scene(3, size=size, cloud="cloudy")
        shape = (size, size) if isinstance(size, int) else size
        assert scene.optical.shape == (12, *shape)
        assert scene.sar_db.shape == (2, *shape)
        assert scene.optical.dtype == scene.sar_db.dtype == scene.sar_mean.dtype == np.float32
        assert scene.class_map.dtype == np.uint8
        assert 1 <= scene.class_map.min() <= scene.class_map.max() <= 10
        assert (scene.sar_mean > 0).all()


def test_bad_requests():
    with pytest.raises(UserError, match="16 x 16"):
        make_scene(0, size=8)
    with pytest.raises(UserError, match="cloudy"):
        make_scene(0, cloud="clowdy")
    with pytest.raises(UserError, match="farmland"):
        make_scene(0, theme="farmlands")
    with pytest.raises(UserError, match="looks"):
        speckle(np.random.default_rng(0), (4, 4), looks=0.0)


def test_optical_statistics(clear):
    """Water is dark in the infrared, vegetation bright there and dark in the red, bare ground rises to the SWIR."""
    pixels = {c: np.concatenate([s.optical[:, s.mask(c)] for s in clear], 1) for c in Cover}
    middle = {c: np.median(p, axis=1) for c, p in pixels.items()}
    assert middle[Cover.WATER][B08] < 0.06
    assert middle[Cover.WATER][B11] < 0.04
    assert 0.12 < middle[Cover.FOREST][B08] < 0.40
    assert middle[Cover.FOREST][B08] > 3 * middle[Cover.FOREST][B04]
    assert middle[Cover.BARE][B11] > middle[Cover.BARE][B08] > middle[Cover.BARE][B04] > 0.12
    # water is wide: from nearly black to turbid and glinting
    low, high = np.quantile(pixels[Cover.WATER][B04], (0.05, 0.95))
    assert low < 0.03
    assert high > 0.12


def test_radar_levels(clear):
    """Forest is bright in VH, water and asphalt dark in both, roofs and ships brightest in VV; as power means in dB."""
    level = {
        c: to_db(np.concatenate([from_db(s.sar_db[:, s.mask(c)]) for s in clear], 1).mean(1)) for c in Cover
    }  # fmt: skip
    assert -9.0 < level[Cover.FOREST][0] < -6.0
    assert -15.0 < level[Cover.FOREST][1] < -12.0
    assert level[Cover.WATER][0] < -13.0
    assert level[Cover.ASPHALT][0] < -15.0
    assert level[Cover.BUILDING][0] > level[Cover.FOREST][0]
    assert level[Cover.SHIP][0] > 0.0
    for c in Cover:
        assert level[c][0] > level[c][1]  # co-polarised is the stronger


def test_each_sensor_has_look_alikes():
    """What SAR cannot tell apart, optical can, and the other way round (distances of the nearest materials)."""

    def nearest(a: Cover, b: Cover, table: np.ndarray, scale: float) -> float:
        return min(float(np.abs(x - y).max()) for x in table[a == COVER] for y in table[b == COVER]) / scale

    sar, optical = BACKSCATTER, np.log(REFLECTANCE[:, 1:])
    for a, b in ((Cover.WATER, Cover.BARE), (Cover.FOREST, Cover.FIELD), (Cover.GRASSLAND, Cover.FIELD)):
        assert nearest(a, b, sar, 1.2) < 1.5
        assert nearest(a, b, optical, 0.12) > 1.5
    assert nearest(Cover.BUILDING, Cover.BARE, sar, 1.2) > 3.0
    assert nearest(Cover.BUILDING, Cover.BARE, optical, 0.2) < 2.0


@pytest.mark.parametrize("looks", [1.0, 4.5, 9.0])
def test_speckle_is_gamma(looks):
    """Mean 1, variance 1 / L, third central moment 2 / L^2, and the correlation asked for."""
    draw = speckle(np.random.default_rng(1), (700, 700), looks=looks, correlation=0.3).astype(np.float64)
    np.testing.assert_allclose(draw.mean((1, 2)), 1.0, atol=0.01)
    np.testing.assert_allclose(draw.var((1, 2)) * looks, 1.0, atol=0.02)
    np.testing.assert_allclose(((draw - 1) ** 3).mean((1, 2)) * looks**2 / 2, 1.0, atol=0.1)
    assert np.corrcoef(draw[0].ravel(), draw[1].ravel())[0, 1] == pytest.approx(0.3, abs=0.01)


def test_speckle_multiplies_the_power():
    """In linear power, the image over its speckle-free mean has mean 1 and variance 1 / L."""
    ratio = []
    for seed in range(20):
        scene = make_scene(seed, looks=6.0, nodata=0.0)
        ratio.append(from_db(scene.sar_db) / scene.sar_mean)
    ratio = np.stack(ratio).astype(np.float64)
    assert ratio.mean() == pytest.approx(1.0, abs=0.01)
    assert ratio.var() * 6.0 == pytest.approx(1.0, abs=0.03)


def test_clouds():
    rng = np.random.default_rng(0)
    cloudy = [make_sky(rng, (64, 64), "cloudy", 10.0) for _ in range(100)]
    cover = np.array([sky.cloud.mean() for sky in cloudy])
    assert 0.17 < cover.min() < 0.25
    assert 0.40 < cover.max() < 0.48
    # large banks: few components of notable size
    sizes = [np.unique(components(sky.cloud.astype(np.uint8)), return_counts=True)[1] for sky in cloudy]
    assert np.mean([(s > 40).sum() for s in sizes]) < 8
    assert not make_sky(rng, (64, 64), "clear", 10.0).cloud.any()
    assert np.mean([sky.in_shadow.any() for sky in cloudy]) > 0.5


def test_clouds_hide_the_ground_from_the_optical_sensor_only():
    """The same ground under the thick of a cloud: optical says nothing about it, SAR as much as outside."""
    scenes = [make_scene(seed, cloud="cloudy", nodata=0.0) for seed in range(60)]
    thick = [s.sky.alpha > 0.99 for s in scenes]

    open_sky = [s.sky.alpha < 0.05 for s in scenes]

    def middle(name: str, cover: Cover, where: list[np.ndarray]) -> np.ndarray:
        found = [getattr(s, name)[:, s.mask(cover) & w] for s, w in zip(scenes, where, strict=True)]
        return np.median(np.concatenate(found, axis=1), axis=1)

    for where, hidden in ((thick, True), (open_sky, False)):
        forest, water = (middle("optical", cover, where)[B08] for cover in (Cover.FOREST, Cover.WATER))
        assert abs(forest - water) < 0.08 if hidden else forest - water > 0.1
        forest, water = (middle("sar_db", cover, where)[1] for cover in (Cover.FOREST, Cover.WATER))
        assert forest - water > 6.0


def test_nodata_wedges():
    scenes = [make_scene(seed, nodata=1.0) for seed in range(30)]
    for scene in scenes:
        assert (scene.optical_valid | scene.sar_valid).all()
        assert scene.optical_valid.all() != scene.sar_valid.all()
        np.testing.assert_array_equal(np.isnan(scene.optical[0]), ~scene.optical_valid)
        np.testing.assert_array_equal(np.isnan(scene.sar_db[0]), ~scene.sar_valid)
    assert 5 < sum(scene.optical_valid.all() for scene in scenes) < 25


def test_ships_float_and_bridges_span():
    found = {Cover.SHIP: 0, Cover.BRIDGE: 0}
    for seed in range(150):
        layout = make_layout(np.random.default_rng(seed), (64, 64))
        for thing in layout.things:
            if thing.cover not in found:
                continue
            found[thing.cover] += 1
            # two steps for a bridge: its ends may touch the banks at a corner
            around = layout.class_map[dilate(thing.mask, 1 + (thing.cover == Cover.BRIDGE)) & ~thing.mask]
            assert (around == Cover.WATER).any()
            if thing.cover == Cover.SHIP:
                assert np.isin(around, (Cover.WATER, Cover.BRIDGE)).all()
            else:
                assert (around != Cover.WATER).any()
    assert min(found.values()) > 10


def test_instances_agree_with_the_class_map(clear):
    for scene in clear[:30]:
        covered = np.zeros(scene.shape, bool)
        for thing in scene.instances:
            mask = thing.mask
            left, top, right, bottom = thing.bbox
            assert (scene.class_map[mask] == thing.cover).all()
            assert mask.sum() == thing.area == mask[top:bottom, left:right].sum()
            assert mask[top].any() & mask[bottom - 1].any() & mask[:, left].any() & mask[:, right - 1].any()
            assert not (covered & mask).any()
            covered |= mask
        assert covered.all()
        for cover, count in scene.layout.counts.items():
            assert count == sum(thing.cover == cover for thing in scene.instances)


def test_buildings_are_separate_components(clear):
    """So that counting them means what it looks like."""
    for scene in clear:
        count = scene.layout.counts[Cover.BUILDING]
        labels = components(scene.mask(Cover.BUILDING).astype(np.uint8))
        assert len(np.unique(labels[scene.mask(Cover.BUILDING)])) >= count


def test_asked_areas_are_frequent(clear):
    share = np.stack([scene.fractions for scene in clear])
    for cover in (Cover.WATER, Cover.FOREST, Cover.FIELD, Cover.GRASSLAND, Cover.BARE):
        assert (share[:, cover] >= 0.02).mean() > 0.4
    for cover in (Cover.ASPHALT, Cover.BUILDING):
        assert (share[:, cover] >= 0.02).mean() > 0.15


def test_parts_of_large_scenes_may_show_one_thing_alone():
    """No scene of its own is nearly all water; a part of a large one is, and what lies in it is as large as there."""
    alone = [make_scene(seed, theme="coast", gsd=10.0) for seed in range(24)]
    parts = [make_scene(seed, theme="coast", gsd=10.0, whole=256) for seed in range(24)]
    water = [[s.fractions[Cover.WATER] for s in scenes] for scenes in (alone, parts)]
    assert max(water[0]) < 0.9
    assert sum(share > 0.99 for share in water[1]) > 2
    kinds = [np.mean([len(np.unique(s.class_map)) for s in scenes]) for scenes in (alone, parts)]
    assert kinds[1] < kinds[0] - 1
    for scene in parts:
        assert scene.shape == scene.layout.objects.shape == (64, 64)
        assert all((scene.class_map[thing.mask] == thing.cover).all() for thing in scene.layout.things)
    whole = make_scene(3, whole=64)
    np.testing.assert_array_equal(whole.sar_db, make_scene(3).sar_db)  # all of it is a part, too
    with pytest.raises(UserError, match="48 x 48 pixels has no part of 64 x 64"):
        make_scene(3, whole=48)


def test_components_and_boxes():
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (5, 7), (40, 33)):
        image = (rng.random(shape) < 0.55).astype(np.uint8)
        labels = components(image)
        # flood fill, pixel by pixel
        expected = np.full(shape, -1)
        for start in range(image.size):
            if expected.flat[start] >= 0:
                continue
            stack = [np.unravel_index(start, shape)]
            while stack:
                y, x = stack.pop()
                if expected[y, x] >= 0 or image[y, x] != image.flat[start]:
                    continue
                expected[y, x] = start
                for dy, dx in ((1, 0), (-1, 0), (0, 1), (0, -1)):
                    if 0 <= y + dy < shape[0] and 0 <= x + dx < shape[1]:
                        stack.append((y + dy, x + dx))
        np.testing.assert_array_equal(labels, expected)
    labels = np.zeros((6, 8), int)
    labels[1:3, 2:7] = 2
    assert boxes(labels) == {2: ((2, 1, 7, 3), 10)}
    assert boxes(np.zeros((3, 3), int)) == {}


def test_products_in_pieces():
    rng = np.random.default_rng(0)
    for shape in ((3, 64, 64), (3, 128, 128), (131, 66), (9, 200), (2, 300, 300)):
        a, b = rng.standard_normal(shape, np.float32), rng.standard_normal((shape[-1], shape[-2]), np.float32)
        np.testing.assert_allclose(product(a, b), a @ b, rtol=0, atol=2e-4)


def test_noise_has_unit_variance_everywhere():
    rng = np.random.default_rng(0)
    for make in (lambda: smooth_noise(rng, (20, 30), 6.0), lambda: fractal_noise(rng, (20, 30), 8.0)):
        fields = np.stack([make() for _ in range(4000)])
        np.testing.assert_allclose(fields.mean(0), 0.0, atol=0.09)
        np.testing.assert_allclose(fields.var(0), 1.0, atol=0.15)
    np.testing.assert_allclose(blur_matrix(17, 2.5).sum(1), 1.0, atol=1e-6)
    moved = shift(np.arange(6).reshape(2, 3), 1, -1, fill=9)
    np.testing.assert_array_equal(moved, [[9, 9, 9], [1, 2, 9]])


def test_real_ground_is_recognised(sentinel):
    """Nearest neighbours among simulated pixels, by spectrum alone, name real water and trees.

    The land cover of the coast calls sand bars water; only what is water by its MNDWI too is held against us.
    """
    rasterio = pytest.importorskip("rasterio")
    real, cover = (rasterio.open(sentinel / folder / "282D_485L_3_3.tif").read() for folder in ("S2L2A", "LULC"))
    real = np.clip(real / 1e4, 1e-3, 1.0)
    wet = (cover[0] == 1) & (real[2] > real[10])
    rng = np.random.default_rng(0)
    scenes = [make_scene(seed, cloud="clear", nodata=0.0) for seed in range(200)]
    drawn = [rng.choice(4096, 40, replace=False) for _ in scenes]
    known = np.concatenate([s.optical.reshape(12, -1)[:, d] for s, d in zip(scenes, drawn, strict=True)], 1)
    names = np.concatenate([s.class_map.ravel()[d] for s, d in zip(scenes, drawn, strict=True)])
    known, asked = np.sqrt(np.clip(known, 1e-3, 1.0)), np.sqrt(real[:, ::5, ::5].reshape(12, -1))
    nearest = ((known**2).sum(0) - 2.0 * asked.T @ known).argmin(1)
    for truth, label, least in ((wet, Cover.WATER, 0.75), (cover[0] == 2, Cover.FOREST, 0.7)):
        there, said = truth[::5, ::5].ravel(), names[nearest] == label
        assert (there & said).sum() / (there | said).sum() > least


def test_speed_is_reported(record_property):
    make_scene(0)
    start = time.process_time()
    for seed in range(60):
        scene = make_scene(seed)
        make_questions(scene, np.random.default_rng(seed))
    milliseconds = (time.process_time() - start) / 60 * 1e3
    record_property("milliseconds_per_scene", milliseconds)
    print(f"a 64 x 64 scene with its questions: {milliseconds:.1f} ms")
