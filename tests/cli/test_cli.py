"""The command line: answers, exit codes, and one plain sentence for every wrong request."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import downloads
import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from support import refused, run

from configs import tiny
from earthmind_jax import cli


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (["segment", "water", "--point", "1,2", "3,4", "-h"], None),
        (["segment", "--point", "1,2", "--box", "0,0,2,2", "--point", "3,4", "5,6", "--json"],
         ["segment", "--point", "1,2", "3,4", "5,6", "--box", "0,0,2,2", "--json"]),
        (["ask", "--point=-7.5,-3", "What is it?", "--point=-8,-4"],
         ["ask", "--point", " -7.5,-3", " -8,-4", "What is it?"]),
        (["train", "c.py", "--set", "steps=4", "--out", "o", "--set=seed=1"],
         ["train", "c.py", "--set", "steps=4", "seed=1", "--out", "o"]),
        (["info", "a.tif", "--sar_bands", "VV", "--sar-bands", "VH"], ["info", "a.tif", "--sar-bands", "VV", "VH"]),
    ],
)  # fmt: skip
def test_values_of_repeated_options_are_all_taken(given: list[str], taken: list[str] | None) -> None:
    assert cli.gathered(given) == (taken or given)


def test_ask_about_a_pair(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(
        capsys, "ask", "Is there water?", "--checkpoint", work / "model", "--optical", work / "a_s2.tif",
        "--sar", work / "a_s1.tif", "--max-new", 4, "--json",
    )  # fmt: skip
    assert code == 0, err
    answer = json.loads(out)
    assert isinstance(answer["answer"], str)
    assert answer["fusion"]["optical"] + answer["fusion"]["sar"] == pytest.approx(1, abs=1e-3)


def test_products_as_they_are_downloaded(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    safe, radar = downloads.sentinel2(tmp_path)[0], downloads.sentinel1(tmp_path)[0]
    pair = ("--optical", downloads.zipped(safe), "--sar", radar, "--max-new", 4, "--json")
    code, out, err = run(capsys, "ask", "Is there water?", "--checkpoint", work / "model", *pair)
    assert code == 0, err
    notes = " ".join(json.loads(out)["notes"])
    for part in ("_B04_10m.jp2", "_SCL_20m.jp2", "offset -1000: tag BOA_ADD_OFFSET", "-grd-vv-", "calibration table"):
        assert part in notes
    (safe / "MTD_MSIL2A.xml").unlink()
    refused(capsys, "ask", "x", "--checkpoint", work / "model", "--optical", safe, says="no metadata (MTD_MSIL2A.xml")


def test_ask_for_the_reason(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ("--checkpoint", work / "model")
    pair = ("--optical", work / "a_s2.tif", "--sar", work / "a_s1.tif")
    code, out, err = run(
        capsys,
        "ask",
        "Is there <b>water</b>?",
        *model,
        *pair,
        "--max-new",
        4,
        "--explain",
        tmp_path / "r.html",
        "--json",
    )
    assert code == 0, err
    told = json.loads(out)
    assert told["files"] == [str(tmp_path / "r.html")]
    assert set(told["reason"]["alone"]) == {"optical", "sar"}
    page = (tmp_path / "r.html").read_text()
    assert "Is there &lt;b&gt;water&lt;/b&gt;?" in page
    assert f"--sar {work / 'a_s1.tif'} --max-new 4 --explain" in page
    assert page.count("<img ") >= 5
    refused(capsys, "ask", "x", *model, *pair, "--explain", tmp_path / "no" / "r.html", says="does not exist")
    refused(capsys, "ask", "x", *model, *pair, "--explain", tmp_path, says="is a directory")
    held = (work / "a_s2.tif").read_bytes()
    refused(capsys, "ask", "x", *model, *pair, "--explain", work / "a_s2.tif", says="is no page")
    refused(capsys, "segment", "x", *model, *pair, "--explain", "/dev/null", says="is no page")
    assert (work / "a_s2.tif").read_bytes() == held
    refused(capsys, "ask", "x", *model, *pair, "--out", tmp_path / "r.html", says="is a file")
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    refused(capsys, "segment", "x", *model, *pair, "--out", tmp_path / "new", says="is not yours to write to")
    refused(capsys, "ask", "x", *model, *pair, "--explain", tmp_path / "r.html", says="is not yours to write to")
    monkeypatch.undo()
    refused(capsys, "ask", "x", *model, *pair, "--max-new", 0, says="--max-new")
    refused(capsys, "ask", *model, *pair, says="--batch")
    refused(capsys, "ask", "x", *model, *pair, "--steer", says="point at something")
    refused(capsys, "segment", "x", *model, *pair, "--out", tmp_path / "r.html", says="is a file")
    refused(capsys, "segment", "x", *model, *pair, "--explain", tmp_path, says="is a directory")


def test_a_file_of_questions(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    line = {"id": "one", "question": "Is there water?", "optical": str(work / "a_s2.tif")}
    file.write_text(json.dumps(line) + "\n{\n")
    given = ("ask", "--checkpoint", work / "model", "--batch", file, "--out", out, "--max-new", 4)
    refused(capsys, *given, says="line 2 is not json")
    assert not out.exists()
    code, text, err = run(capsys, *given, "--skip-broken", "--json")
    assert code == 0, err
    counts = json.loads(text)
    assert (counts["answers"], counts["broken"], counts["kept"]) == (1, 1, 0)
    assert {json.loads(answer)["line"] for answer in out.read_text().splitlines()} == {1, 2}
    code, text, err = run(capsys, *given, "--skip-broken")
    assert code == 0, err
    assert "0 answers" in text
    assert "2 were there before" in text
    refused(capsys, *given, "--skip-broken", "--max-new", 5, says="max_new: 4 -> 5")
    refused(capsys, *given, "--optical", work / "a_s2.tif", says="leave out 'optical'")
    refused(capsys, *given[:-4], says="--out answers.jsonl")
    refused(capsys, *given, "--batch-size", 0, says="--batch-size")
    refused(capsys, *given, "--batch", tmp_path / "none.jsonl", says="none.jsonl")
    refused(capsys, *given, "--out", tmp_path, says="is a directory")
    refused(capsys, *given, "--out", file / "a.jsonl", says="is a file")
    refused(capsys, *given, "--skip-broken", "--out", work / "a_s2.tif", says="choose another file")
    refused(capsys, *given, "--masks", file, says="is a file")
    refused(capsys, "ask", "x", "--checkpoint", work / "model", "--masks", tmp_path / "m", says="--batch")


def test_a_conversation_from_a_pipe(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("chat", "--checkpoint", work / "model", "--optical", work / "a_s2.tif", "--max-new", 4)

    def says(*lines: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
        return run(capsys, *given)

    code, out, err = says(
        "Is there water?",
        "",
        "/zoom 0 0 24 24",
        "And here?",
        "/out",
        f"/save {tmp_path / 'talk'}",
        "/quit",
        "Not asked.",
    )
    assert code == 0, err
    told = json.loads((tmp_path / "talk" / "conversation.json").read_text())
    assert [turn["question"] for turn in told["turns"]] == ["Is there water?", "And here?"]
    assert [turn["window"] for turn in told["turns"]] == [None, [0, 0, 24, 24]]
    assert (tmp_path / "talk" / "turn_2" / "answer.json").is_file()
    assert out.count("wrote ") >= 5
    code, _, err = says(
        "/zoom 0 0 99 9", "/zoom a b", "/box 1 2 3 4", "/out", "/save", f"/save {work / 'a_s2.tif'}", "/what", "Is it?"
    )
    assert code == 2
    lines = err.strip().splitlines()
    assert len(lines) == 8, err
    assert all(line.startswith("error: ") for line in lines)
    assert lines[-1] == "error: 7 of 8 lines were refused; what was wrong stands above."


def test_info_on_a_pair_and_a_checkpoint(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "info", work / "a_s2.tif", work / "a_s1.tif", "--json")
    first, second, pair = json.loads(out)
    assert code == 0
    assert (first["taken for"], second["taken for"]) == ("s2_l2a", "s1")
    assert pair["overlap"] > 0.9
    code, out, _ = run(capsys, "info", work / "model", "--json")
    assert code == 0
    assert "hca_plus" in json.loads(out)[0]["fusion"]


def test_bad_files(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ("--checkpoint", work / "model")
    refused(capsys, "ask", "x", *model, "--optical", tmp_path / "none.tif", says="none.tif")
    (tmp_path / "torn.tif").write_bytes((work / "a_s2.tif").read_bytes()[:3000])
    refused(capsys, "ask", "x", *model, "--optical", tmp_path / "torn.tif", says="torn.tif")
    refused(
        capsys, "segment", "water", *model, "--optical", work / "a_s2.tif", "--sar", work / "somewhere else_s1.tif",
        "--out", tmp_path / "o", says="s1.tif",
    )  # fmt: skip
    refused(
        capsys, "ask", "x", "--checkpoint", tmp_path / "nothing", "--optical", work / "a_s2.tif", says="does not exist"
    )
    refused(capsys, "ask", "x", "--checkpoint", tmp_path, "--optical", work / "a_s2.tif", says="not a checkpoint")
    assert not (tmp_path / "o").exists()


def test_a_path_that_no_file_can_have(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, model = "x" * 5000 + ".tif", ("--checkpoint", work / "model")
    refused(capsys, "info", path, says="does not exist")
    refused(capsys, "ask", "x", *model, "--optical", path, says="does not exist")
    refused(capsys, "segment", *model, "--optical", work / "a_s2.tif", "--prompts", path, says="too long")


def test_missing_band_and_no_data(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = {
        "driver": "GTiff",
        "width": 32,
        "height": 32,
        "crs": "EPSG:32632",
        "transform": from_origin(5e5, 5e6, 10, 10),
    }
    with rasterio.open(tmp_path / "two.tif", "w", count=2, dtype="uint16", **profile) as file:
        file.write(np.full((2, 32, 32), 900, np.uint16))
        file.descriptions = ("B02", "B03")
    refused(capsys, "ask", "x", "--checkpoint", work / "model", "--optical", tmp_path / "two.tif", says="B04")
    with rasterio.open(tmp_path / "empty.tif", "w", count=12, dtype="uint16", nodata=0, **profile) as file:
        file.write(np.zeros((12, 32, 32), np.uint16))
    refused(capsys, "ask", "x", "--checkpoint", work / "model", "--optical", tmp_path / "empty.tif", says="empty.tif")


def test_a_map_needs_a_georeference(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    colours = np.random.default_rng(0).integers(0, 255, (3, 40, 40), dtype=np.uint8)
    Image.fromarray(np.moveaxis(colours, 0, -1)).save(tmp_path / "p.png")
    with rasterio.open(tmp_path / "p.tif", "w", "GTiff", 40, 40, 3, dtype="uint8") as file:
        file.write(colours)
    for name in ("p.png", "p.tif"):
        for targets in (("water",), ("water", "forest")):
            out = tmp_path / name[2:] / str(len(targets))
            given = ("segment", *targets, "--checkpoint", work / "model", "--optical", tmp_path / name, "--out", out)
            refused(capsys, *given, says="--picture")
            assert not out.exists()
            code, _, err = run(capsys, *given, "--picture")
            assert code == 0, err
            assert len(list(out.glob("mask_*.png"))) == len(targets)
    missing = ("--checkpoint", work / "model", "--optical", tmp_path / "no.png")
    refused(capsys, "segment", "water", "forest", *missing, says="no.png")


def test_unknown_names_come_with_the_nearest(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, "demo", tmp_path / "d", "--modes", "hca_pluss", says="hca_plus")
    refused(capsys, "train", tiny.__file__, "--out", tmp_path / "t", "--set", "model.lm.dept=3", says="depth")
    refused(capsys, "train", tmp_path / "no.py", "--out", tmp_path / "t", says="no.py")
    refused(capsys, "bench", "fission", says="fusion")
    assert not (tmp_path / "t").exists()
    assert not (tmp_path / "d").exists()


def test_every_command_has_help_with_an_example() -> None:
    for command in ("demo", "ask", "chat", "segment", "info", "train", "result", "bench"):
        done = subprocess.run(
            [sys.executable, "-c", f"from earthmind_jax.cli import main; main(['{command}', '--help'])"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0
        assert "Example:" in done.stdout


def test_whoever_reads_what_is_printed_may_stop() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "from earthmind_jax.cli import main; main()", "data", "list"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as command:  # fmt: skip
        assert command.stdout is not None
        assert command.stderr is not None
        command.stdout.close()
        assert command.stderr.read() == ""
        assert command.wait(timeout=120) == 141


def test_all_options_of_several_values_may_be_repeated(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    found: set[str] = set()
    for command in ("", *cli.app._subcommands):
        with pytest.raises(SystemExit):
            cli.main([*([command] if command else []), "--help"])
        text = capsys.readouterr().out
        found |= set(re.findall(r"(--[a-z-]+) \[[A-Z]+ \[", text))
    assert found == cli.SEVERAL
