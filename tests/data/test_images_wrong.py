"""Descriptions of images that are wrong, in the record or by the files they name."""

from __future__ import annotations

import pytest
from described import CFG, ROW, SAR_ROW, raster, record

from earthmind_jax.data.check import file_problems
from earthmind_jax.data.read import load_record
from earthmind_jax.data.records import problems
from earthmind_jax.errors import UserError

FORMS = (
    ({"optical": {}}, "field 'optical' needs 'file', 'array' or 'bands'"),
    ({"optical": {"file": ""}}, "field 'optical.file' must be text"),
    ({"optical": {"file": "x.tif", "band": ["B04"]}}, "unknown field 'band' beside 'file'. Did you mean 'bands'"),
    ({"optical": {"file": "x.tif", "bands": ["B04", "B04"]}}, "field 'optical.bands' must name at least one channel"),
    ({"optical": {"file": "x.tif", "bands": [None]}}, "field 'optical.bands' must name at least one channel"),
    ({"optical": {"file": "x.tif", "bands": "B04"}}, "field 'optical.bands' must be a list of names"),
    ({"optical": {"bands": {}}}, "field 'optical.bands' must be an object"),
    ({"optical": {"bands": {"B04": 3}}}, "field 'optical.bands' must be an object"),
    ({"sar": {"file": "x.tif", "sensor": "s9"}}, "field 'sar.sensor' is unknown: 's9'. Did you mean"),
    ({"sar": {"file": "x.tif", "sensor": "s2_l2a"}}, "'sar.sensor' is Sentinel-2 Level-2A, which is no sar sensor"),
    ({"optical": ["a.tif", {"file": "x.tif", "sensor": "s1"}]}, "field 'optical[1].sensor' is Sentinel-1, which is no"),
    ({"sar": {"file": "x.tif", "sensor": ["s1"]}}, "field 'sar.sensor' is unknown"),
    ({"sar": {"file": "x.tif", "sensor": "s1", "offset": -1000}}, "field 'sar.offset' means nothing for Sentinel-1"),
    ({"sar": {"file": "x.tif", "offset": "a"}}, "field 'sar.offset' must be a number"),
    ({"sar": {"file": "x.tif", "nodata": float("nan")}}, "field 'sar.nodata' must be a number"),
    ({"sar": {"file": "x.tif", "stretch": [3, 1]}}, "field 'sar.stretch' must be [low, high]"),
    ({"sar": {"file": "x.tif", "stretch": [0, 1], "sensor": "s1"}}, "both 'stretch' and 'sensor'"),
    ({"sar": {"file": "x.tif", "stretch": [0, 1], "bands": list("abcd")}}, "more than the three channels"),
    ({"sar": SAR_ROW | {"row": -1}}, "field 'sar.row' must be a whole number"),
    ({"sar": SAR_ROW | {"row": True}}, "field 'sar.row' must be a whole number"),
    ({"sar": SAR_ROW | {"unit": "power"}}, "field 'sar.unit' must be one of"),
    ({"sar": SAR_ROW | {"stretch": [0, 1]}}, "field 'sar' needs 'unit'"),
    ({"sar": SAR_ROW | {"axes": "WHC"}}, "field 'sar.axes' must be one of"),
    ({"sar": SAR_ROW | {"dataset": 3}}, "field 'sar.dataset' must be text"),
    ({"sar": {k: v for k, v in SAR_ROW.items() if k != "bands"}}, "field 'sar.bands' must be a list"),
    ({"sar": {"file": "\ud800.tif"}}, "field 'sar.file' must be text"),
    ({"sar": ["a.tif", {"file": 3}]}, "field 'sar[1].file' must be text"),
    ({"sar": [["a.tif"]]}, "field 'sar[0]' must be text (a path), an object"),
)


@pytest.mark.parametrize(("images", "message"), FORMS)
def test_wrong_forms(images, message):
    (found, *more) = problems({"id": 1, "turns": [{"question": "a"}], **images})
    assert message in found
    assert more == []


def test_wrong_files(tmp_path, counts, hdf5):
    raster(tmp_path / "o.tif", counts)
    raster(tmp_path / "two.tif", counts[:2])
    raster(tmp_path / "other.tif", counts[:1], None)
    (tmp_path / "torn.h5").write_bytes((tmp_path / "t.h5").read_bytes()[:900])
    (tmp_path / "text.h5").write_text("no array")
    optical = {"file": "o.tif", "bands": ["B02", "B03", "B04"], "sensor": "s2_l2a"}
    wrong = {
        "has 4 channels but 'bands' names 3": optical,
        "has no band 'B04'": optical | {"bands": ["B02", "B03", "B05", None]},
        "o9.tif": optical | {"file": "o9.tif"},
        "two.tif has 2 channels": {"bands": {"B02": "two.tif", "B03": "x.tif", "B04": "x.tif"}},
        "without a georeference": {"bands": {"B02": "other.tif", "B03": "x.tif", "B04": "x.tif"}, "sensor": "s2_l2a"},
        "there is no row 5": ROW | {"row": 5},
        "no array 'sen3'; those there: chw, label, sen1, sen2": ROW | {"dataset": "sen3"},
        "must be numbers [N, H, W, C], not float64 [5, 5]": ROW | {"dataset": "label"},
        "has 4 channels but 'bands' names 2": ROW | {"bands": ["B02", "B03"]},
        "there is no file": ROW | {"array": "u.h5"},
        "torn.h5' cannot be opened as HDF5": ROW | {"array": "torn.h5"},
        "text.h5' cannot be opened as HDF5": ROW | {"array": "text.h5"},
    }
    raster(tmp_path / "x.tif", counts[:1, :9])
    for message, image in wrong.items():
        given = record(tmp_path, optical=image)
        with pytest.raises(UserError) as error:
            load_record(given, CFG.sensors)
        assert message in str(error.value), (message, str(error.value))
        found = list(file_problems(given, CFG.sensors))
        if "georeference" not in message:  # which shows when the files are read
            assert [message in problem for problem in found] == [True], (message, found)
