"""The harness itself: a wrong output, a forgotten one and an unknown kind are all reported."""

from __future__ import annotations

import json

import numpy as np
import pytest

from checkpoints_convert.verify.recorded import NOT_YET, RUNNERS, Case, Report, kind


@pytest.fixture
def case(tmp_path):
    np.savez(tmp_path / "outputs.npz", x=np.array([1.0, 2.0]), y=np.array([3.0]), ids=np.array([4, 5]))
    np.savez(tmp_path / "inputs.npz", z=np.zeros(1))
    (tmp_path / "config.json").write_text(json.dumps({"width": 2}))
    (tmp_path / "README.md").write_text("Max abs error < 2e-4.\n\nTolerance: 1e-3 on masks, 2e-5 on features.\n")
    return Case(tmp_path)


def test_every_output_must_be_compared_or_listed(case):
    report = Report(case)
    report.close("x", [1.0, 2.0 + 1e-6], 1e-5)
    assert report.problems() == ["y was not compared", "ids was not compared"]
    report.not_yet("y", "of the memory")
    report.exact("ids", [4, 6], where=np.array([True, False]))
    assert report.problems() == []
    assert "not yet supported: of the memory" in report.table()


@pytest.mark.parametrize("wrong", [[1.0, 2.1], [1.0, np.nan], [1.0, np.inf], [1.0], [[1.0, 2.0]]])
def test_wrong_outputs_fail(case, wrong):
    report = Report(case)
    report.close("x", wrong, 1e-2)
    assert report.problems()[0].startswith("x: error")
    assert "FAILS" in report.table()


def test_wrong_ids_fail(case):
    report = Report(case)
    report.exact("ids", [4, 6])
    assert not report.rows[0].passes


def test_tolerances_are_never_looser_than_the_readme(case):
    assert case.tolerance(1.0, "{} on features") == 2e-5
    assert case.tolerance(1e-6, "{} on features") == 1e-6
    assert case.tolerance(1.0, "{} on nothing", "error < {}") == 2e-4
    assert case.tolerance(1.0, "{} on nothing") == 1e-3


def test_kinds():
    assert kind("a_internvit_other_seed") == "a_"
    assert kind("e_e2e_phi3_wide") == "e_e2e_"
    assert kind("d_sam2_fb_stability_2") == "d_sam2_fb"
    assert kind("z_new") is None
    assert kind("e_other") is None
    assert not set(RUNNERS) & set(NOT_YET)
