"""The time of acquisition from the tags and names that products really have."""

from __future__ import annotations

import numpy as np
import pytest

from earthmind_jax.geo.acquired import acquisition_time, day_in_name, days_between


@pytest.mark.parametrize(
    ("tags", "path", "expected"),
    [
        ({"datetime": "2023-06-10T07:46:21Z"}, "", "2023-06-10T07:46:21"),
        ({"ACQUIRED": "2023-06-10 07:46:21.024"}, "", "2023-06-10T07:46:21"),
        ({"datetime": "2023-06-10T09:46:21+02:00"}, "", "2023-06-10T07:46:21"),
        ({"datetime": "soon"}, "S2A_MSIL2A_20230610T074621_N0509_R135.tif", "2023-06-10T07:46:21"),
        ({}, "x/S1A_IW_GRDH_1SDV_20230613T074622_20230613T074647_049.tif", "2023-06-13T07:46:22"),
        ({}, "scene_20231399T999999.tif", None),
        ({}, "scene.tif", None),
        ({"acquired": "2023-06-10T02:16:21-0530"}, "", "2023-06-10T07:46:21"),
        ({"acquired": "20230610T074621.024Z"}, "", "2023-06-10T07:46:21"),
        ({"DATE_ACQUIRED": "2023-06-10"}, "", "2023-06-10"),
        ({"s2:datetime": "2023-06-10T07:46:21Z"}, "", "2023-06-10T07:46:21"),
        ({"s2": "datetime=2023-06-10T07:46:21Z"}, "", "2023-06-10T07:46:21"),
        ({"acquired": "2023-13-40", "datetime": "0001-01-01T00:00:00+05:00"}, "", None),
        (
            {"PRODUCT_URI": "S2B_MSIL2A_20230610T074619_N0509_R135_T36SYC_20230610T102012.SAFE"},
            "x.tif",
            "2023-06-10T07:46:19",
        ),
        ({}, "LC08_L2SP_037034_20230610_20230614_02_T1_SR_B4.TIF", "2023-06-10"),
        ({}, "lc09_l1tp_193028_20230610_20230614_02_t1_b10.tif", "2023-06-10"),
        ({}, "T36SYC_20230610T074619_B04_10m.jp2", "2023-06-10T07:46:19"),
        ({}, "HLS.L30.T32TQM.2023161T101601.v2.0.B05.tif", "2023-06-10T10:16:01"),
        ({}, "HLS.L30.T32TQM.2023461T991601.v2.0.B05.tif", None),
        ({}, "20230610_101601_12_2456_3B_AnalyticMS_SR.tif", "2023-06-10T10:16:01"),
        ({}, "xLC08_L2SP_037034_20230610_20230614.tif", None),
    ],
)
def test_acquisition_time(tags, path, expected):
    assert acquisition_time(tags, path) == (None if expected is None else np.datetime64(expected, "s"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("20230101/s2_20240611.tif", "2024-06-11"),
        ("2024-06-11_s2.tif", "2024-06-11"),
        ("x_2024_06_11.tif", "2024-06-11"),
        ("tile_20240631_20240611.tif", "2024-06-11"),
        ("2019_2024-06-11.tif", "2024-06-11"),
        ("2024_2024_05_01.tif", "2024-05-01"),
        ("tile_202406112.tif", None),
        ("20240611/s2.tif", None),
    ],
)
def test_day_in_name(name, expected):
    assert day_in_name(name) == (None if expected is None else np.datetime64(expected))


def test_days_between():
    first, second = np.datetime64("2023-06-10T12:00:00", "s"), np.datetime64("2023-06-12T00:00:00", "s")
    assert days_between(first, second) == days_between(second, first) == 1.5
    assert days_between(first, None) is None
