"""The command line: answers, exit codes, and one plain sentence for every wrong request."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.transform import from_origin
from support import run
from swaths import LATITUDE, LEAN, LONGITUDE, METRES, flat_at, leaning, written

from configs import tiny
from earthmind_jax import checkpoint, cli
from earthmind_jax.cli_truth import Truth
from earthmind_jax.data import read
from earthmind_jax.data.collate import with_tokens
from earthmind_jax.data.simulate import make_scene, write_scene
from earthmind_jax.data.tokenizer import train_bpe
from earthmind_jax.errors import UserError
from earthmind_jax.geo.align import load_pair
from earthmind_jax.infer import view
from earthmind_jax.infer.result import Mask
from earthmind_jax.models import api

CONFIG = Path(tiny.__file__)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tiny random checkpoint and a simulated pair."""
    root = tmp_path_factory.mktemp("cli")
    tokenizer = train_bpe(["Is there water in the image? Please segment the water."] * 3, 300)
    config = with_tokens(tiny.model(), tokenizer)
    params = jax.jit(lambda: api.init(config, jax.random.key(0)))()
    checkpoint.save(root / "model", config, params, tokenizer, {"made": "for tests"})
    write_scene(make_scene(3, size=48, gsd=10.0, nodata=0.0), root, "a")
    write_scene(make_scene(4, size=48, gsd=10.0, nodata=0.0), root, "somewhere else")
    return root


def wrong(capsys: pytest.CaptureFixture[str], *arguments: object, says: str) -> None:
    code, _, err = run(capsys, *arguments)
    assert code == 2, err
    assert err.startswith("error: ")
    assert len(err.strip().splitlines()) == 1, err
    assert says.lower() in err.lower(), err


def test_ask_about_a_pair(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(
        capsys, "ask", "Is there water?", "--checkpoint", work / "model", "--optical", work / "a_s2.tif",
        "--sar", work / "a_s1.tif", "--max-new", 4, "--json",
    )  # fmt: skip
    assert code == 0, err
    answer = json.loads(out)
    assert isinstance(answer["answer"], str)
    assert answer["fusion"]["optical"] + answer["fusion"]["sar"] == pytest.approx(1, abs=1e-3)


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
    wrong(capsys, "ask", "x", *model, *pair, "--explain", tmp_path / "no" / "r.html", says="does not exist")
    wrong(capsys, "ask", "x", *model, *pair, "--explain", tmp_path, says="is a directory")
    wrong(capsys, "ask", "x", *model, *pair, "--out", tmp_path / "r.html", says="is a file")
    wrong(capsys, "ask", "x", *model, *pair, "--max-new", 0, says="--max-new")
    wrong(capsys, "ask", *model, *pair, says="--batch")
    wrong(capsys, "ask", "x", *model, *pair, "--steer", says="point at something")
    wrong(capsys, "segment", "x", *model, *pair, "--out", tmp_path / "r.html", says="is a file")
    wrong(capsys, "segment", "x", *model, *pair, "--explain", tmp_path, says="is a directory")


def test_a_file_of_questions(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    line = {"id": "one", "question": "Is there water?", "optical": str(work / "a_s2.tif")}
    file.write_text(json.dumps(line) + "\n{\n")
    given = ("ask", "--checkpoint", work / "model", "--batch", file, "--out", out, "--max-new", 4)
    wrong(capsys, *given, says="line 2 is not json")
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
    wrong(capsys, *given, "--skip-broken", "--max-new", 5, says="max_new: 4 -> 5")
    wrong(capsys, *given, "--optical", work / "a_s2.tif", says="leave out 'optical'")
    wrong(capsys, *given[:-4], says="--out answers.jsonl")
    wrong(capsys, *given, "--batch-size", 0, says="--batch-size")
    wrong(capsys, *given, "--batch", tmp_path / "none.jsonl", says="none.jsonl")
    wrong(capsys, *given, "--out", tmp_path, says="is a directory")
    wrong(capsys, *given, "--out", file / "a.jsonl", says="is a file")
    wrong(capsys, *given, "--skip-broken", "--out", work / "a_s2.tif", says="choose another file")
    wrong(capsys, *given, "--masks", file, says="is a file")
    wrong(capsys, "ask", "x", "--checkpoint", work / "model", "--masks", tmp_path / "m", says="--batch")


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


def test_segment_writes_maps_that_land_on_the_input(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "maps"
    code, text, err = run(
        capsys, "segment", "water", "--checkpoint", work / "model", "--optical", work / "a_s2.tif",
        "--sar", work / "a_s1.tif", "--out", out, "--truth", work / "a_label.tif", "--json",
    )  # fmt: skip
    assert code == 0, err
    assert 0 <= json.loads(text)["iou"] <= 1
    with rasterio.open(out / "mask_1.tif") as mask, rasterio.open(work / "a_s2.tif") as optical:
        assert mask.transform == optical.transform
        assert mask.crs == optical.crs
        assert mask.shape == optical.shape
        assert mask.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    assert json.loads((out / "mask_1.geojson").read_text())["type"] == "FeatureCollection"
    assert (out / "panel.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(p.name for p in out.iterdir()) == [
        "answer.json", "item.json", "mask_1.geojson", "mask_1.tif", "mask_1_probability.tif", "masks.gpkg", "panel.png",
    ]  # fmt: skip


def test_several_dates_and_a_large_image_with_the_reason(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mask for each date; of a large image the maps are drawn at full resolution, whatever is explained."""
    later, out = tmp_path / "s2_20240611.tif", tmp_path / "maps"
    later.write_bytes((work / "a_s2.tif").read_bytes())
    dates = ("segment", "--checkpoint", work / "model", "--optical", work / "a_s2.tif", later)
    given = ("--out", out, "--truth", work / "a_label.tif", "--crop", "2,4,32,32")
    code, text, err = run(capsys, *dates, "water", *given)
    assert code == 0, err
    assert re.search(r"^iou: mask 1 date 1 [\d.]+, mask 1 2024-06-11 [\d.]+$", text, re.MULTILINE)
    assert len(list(out.glob("mask_1_*_probability.tif"))) == 2
    wrong(capsys, *dates, "water", "--weights", says="there are 2; draw date by date")
    wrong(capsys, *dates, later, "water", "--sar", later, later, says="2 sar images but 3")
    monkeypatch.setattr(read, "MOST_PIXELS", 4000)
    wrong(capsys, *dates, "water", says="too many to hold 2 dates in memory")
    monkeypatch.setattr(view, "WHOLE", 2000)
    page = tmp_path / "reason.html"
    one = ("--checkpoint", work / "model", "--optical", work / "a_s2.tif", "--explain", page)
    code, text, err = run(capsys, "segment", "water", *one, "--out", tmp_path / "scene")
    assert code == 0, err
    assert "a look at the whole" in err
    assert f"wrote {page}" in text
    with rasterio.open(tmp_path / "scene" / "mask_1.tif") as file:
        assert file.shape == (48, 48)
    assert (tmp_path / "scene" / "item.json").exists()
    assert "What the model saw" in page.read_text()


def test_masks_beside_labels(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One value for each mask; labels on another grid are brought onto the image's."""
    given = ("segment", "--checkpoint", work / "model", "--optical", work / "a_s2.tif", "--out", tmp_path / "out")
    with rasterio.open(work / "a_label.tif") as file:
        labels, profile = file.read(), file.profile
    double = {"height": 96, "width": 96, "transform": profile["transform"] @ Affine.scale(0.5)}
    with rasterio.open(tmp_path / "fine.tif", "w", **{**profile, **double}) as file:
        file.write(labels.repeat(2, 1).repeat(2, 2))
    with rasterio.open(tmp_path / "rgb.tif", "w", **{**profile, "count": 3}) as file:
        file.write(labels.repeat(3, 0))
    away = {"transform": profile["transform"] @ Affine.translation(500, 0)}
    with rasterio.open(tmp_path / "away.tif", "w", **{**profile, **away}) as file:
        file.write(labels)
    marks = ("--box", "2,2,20,20", "--point", "40,40")
    with rasterio.open(work / "a_s2.tif") as file:
        assert file.shape == labels.shape[1:] == (48, 48)

    def iou(*more: object) -> Any:
        code, out, err = run(capsys, *given, *more, "--json")
        assert code == 0, err
        return json.loads(out)["iou"]

    found = iou(*marks, "--crop", "2,0,44,44", "--truth", tmp_path / "fine.tif", "--truth-value", 1, 2)
    assert list(found) == ["region1", "region2"]
    for number, name in enumerate(found, 1):
        with rasterio.open(tmp_path / "out" / f"mask_{number}.tif") as file:
            drawn, grid = file.read(1) == 1, (file.transform, file.crs)
        target = labels[0, 2:46, :44] == number
        expected = (drawn & target).sum() / (drawn | target).sum() if (drawn | target).any() else 1.0
        assert found[name] == pytest.approx(expected, abs=1e-4)
    masks = [Mask(drawn.astype(np.float32), np.ones(drawn.shape, bool), *grid)] * 2
    plain = [dataclasses.replace(mask, crs=None, offset=(2, 0)) for mask in masks]
    truth = Truth.of(work / "a_label.tif", (2, 3), ())
    assert truth.compare(masks, None) == truth.compare(plain, (48, 48))
    for bad, size, says in ((masks[:1], None, "for 1 masks"), (plain, (49, 48), "pixels .rows, columns. but")):
        with pytest.raises(UserError, match=says):
            truth.compare(bad, size)
    with pytest.raises(UserError, match="do not overlap"):
        Truth.of(tmp_path / "away.tif", (2, 3), ()).compare(masks, None)
    two = iou("water", "forest", "--truth", work / "a_label.tif", "--truth-value", 1, 2, "--out", tmp_path / "scene")
    assert set(two) == {"water", "forest"}
    truth = ("--truth", work / "a_label.tif")
    wrong(capsys, *given, "water", "forest", *truth, says="1 value(s) for 2 masks (water, forest)")
    wrong(capsys, *given, "water", "--truth-value", 1, says="--truth")
    wrong(capsys, *given, "water", "--truth", tmp_path / "rgb.tif", says="has 3 bands")
    wrong(capsys, *given, "water", "--truth", tmp_path / "none.tif", says="none.tif")


def test_segment_what_is_pointed_at_with_the_reason(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("segment", "--checkpoint", work / "model", "--optical", work / "a_s2.tif", "--sar", work / "a_s1.tif")
    page = tmp_path / "reason.html"
    code, out, err = run(capsys, *given, "--box", "2,2,20,20", "--explain", page, "--out", tmp_path / "out")
    assert code == 0, err
    assert f"wrote {page}" in out
    assert "SAR alone" in page.read_text()
    assert "What is pointed at" in page.read_text()
    wrong(capsys, *given, "water", "forest", "--explain", page, says="one target")


@pytest.mark.parametrize("sensor", ["optical", "sar"])
def test_segment_with_one_sensor(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], sensor: str) -> None:
    name = "a_s2.tif" if sensor == "optical" else "a_s1.tif"
    code, _, err = run(
        capsys,
        "segment",
        "water",
        "--checkpoint",
        work / "model",
        f"--{sensor}",
        work / name,
        "--out",
        tmp_path / "out",
    )
    assert code == 0, err


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
    wrong(capsys, "ask", "x", *model, "--optical", tmp_path / "none.tif", says="none.tif")
    (tmp_path / "torn.tif").write_bytes((work / "a_s2.tif").read_bytes()[:3000])
    wrong(capsys, "ask", "x", *model, "--optical", tmp_path / "torn.tif", says="torn.tif")
    wrong(
        capsys, "segment", "water", *model, "--optical", work / "a_s2.tif", "--sar", work / "somewhere else_s1.tif",
        "--out", tmp_path / "o", says="s1.tif",
    )  # fmt: skip
    wrong(
        capsys, "ask", "x", "--checkpoint", tmp_path / "nothing", "--optical", work / "a_s2.tif", says="does not exist"
    )
    wrong(capsys, "ask", "x", "--checkpoint", tmp_path, "--optical", work / "a_s2.tif", says="not a checkpoint")
    assert not (tmp_path / "o").exists()


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
    wrong(capsys, "ask", "x", "--checkpoint", work / "model", "--optical", tmp_path / "two.tif", says="B04")
    with rasterio.open(tmp_path / "empty.tif", "w", count=12, dtype="uint16", nodata=0, **profile) as file:
        file.write(np.zeros((12, 32, 32), np.uint16))
    wrong(capsys, "ask", "x", "--checkpoint", work / "model", "--optical", tmp_path / "empty.tif", says="empty.tif")


def test_a_map_needs_a_georeference(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(tmp_path / "p.png")
    given = (
        "segment",
        "water",
        "--checkpoint",
        work / "model",
        "--optical",
        tmp_path / "p.png",
        "--out",
        tmp_path / "o",
    )
    wrong(capsys, *given, says="georeference")
    assert not (tmp_path / "o" / "mask_1.tif").exists()
    code, _, err = run(capsys, *given, "--picture")
    assert code == 0, err
    assert (tmp_path / "o" / "mask_1.png").is_file()


def test_unknown_names_come_with_the_nearest(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong(capsys, "demo", tmp_path / "d", "--modes", "hca_pluss", says="hca_plus")
    wrong(capsys, "train", CONFIG, "--out", tmp_path / "t", "--set", "model.lm.dept=3", says="depth")
    wrong(capsys, "train", tmp_path / "no.py", "--out", tmp_path / "t", says="no.py")
    wrong(capsys, "bench", "fission", says="fusion")
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


def test_train_and_resume(one_device: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Words alone and little that learns: it is the road that is shown, and compiling gradients takes the time.
    groups = '[{"pattern": "lm/(norm|head)/", "learning_rate": 1.0}, {"pattern": ".*"}]'
    given = (
        "train", CONFIG, "--out", tmp_path / "run", "--scenes", 64, "--set", "steps=4", "checkpoint_every=2",
        "model.grounding=null", f"optim.groups={groups}",
    )  # fmt: skip
    code, _, err = run(capsys, *given, "--until", 2)
    assert code == 0, err
    code, out, err = run(capsys, *given, "--save", "adapters")
    assert code == 0, err
    assert "Resumed after step 2" in err
    assert f"wrote {tmp_path / 'run' / 'result'}, " in out
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 4]
    assert run(capsys, "info", tmp_path / "run", "--json")[0] == 0
    # The result at the end, and the same again from the run: both are the run's weights.
    code, out, err = run(capsys, "result", tmp_path / "run", tmp_path / "whole")
    assert (code, out.split(",")[0]) == (0, f"wrote {tmp_path / 'whole'}"), err
    weights = [
        checkpoint.load(place)[1] for place in (tmp_path / "run", tmp_path / "run" / "result", tmp_path / "whole")
    ]
    for path, x in weights[0].items():
        assert all((other[path] == x).all() for other in weights[1:]), path
    wrong(capsys, "result", tmp_path / "run", tmp_path / "new", "--form", "merged", says="no LoRA adapters")
    wrong(capsys, "result", tmp_path / "run", tmp_path / "whole", says="exists already")
    wrong(capsys, *given, "--save", "merge", says="merged")
    wrong(capsys, *given, "seed=7", says="another configuration (seed: 0 -> 7)")
    assert not (tmp_path / "new").exists()


def test_training_asks_for_huge_pages_once(monkeypatch):
    started = []
    monkeypatch.setattr(os, "execve", lambda path, arguments, env: started.append((arguments, env["GLIBC_TUNABLES"])))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "earthmind", "demo", "out"])
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    cli._restart_with_huge_pages(["ask", "demo"])
    assert started == []
    cli._restart_with_huge_pages(["demo", "out"])
    assert started == [([sys.executable, "-m", "earthmind", "demo", "out"], cli.TUNABLES)]
    monkeypatch.setenv("GLIBC_TUNABLES", "mine")
    cli._restart_with_huge_pages(["demo", "out"])
    monkeypatch.delenv("GLIBC_TUNABLES")
    monkeypatch.setattr(sys, "platform", "darwin")
    cli._restart_with_huge_pages(["demo", "out"])
    assert len(started) == 1


def test_the_height_of_the_ground(work, tmp_path, capsys):
    """An image that RPCs place is asked about, segmented and described on the map that the told height gives."""
    path = written(tmp_path / "vhr.tif", rpcs=leaning(), centres=flat_at(260))
    elevation = tmp_path / "dem.tif"
    with rasterio.open(
        elevation, "w", driver="GTiff", count=1, height=300, width=300, dtype="float32", crs="EPSG:4326",
        transform=from_origin(LONGITUDE - 0.15, LATITUDE + 0.15, 1e-3, 1e-3),
    ) as dataset:  # fmt: skip
        dataset.write(np.full((1, 300, 300), 260, np.float32))
    tops = {}
    for name, ground in {"middle": (), "told": ("--height", 260), "model": ("--dem", elevation)}.items():
        code, out, err = run(capsys, "info", path, "--sar-sensor", "s1", *ground, "--json")
        assert code == 0, err
        (fact,) = json.loads(out)
        assert fact["crs"] == "EPSG:32632"
        assert any("placed by its RPCs" in warning for warning in fact["warnings"])
        assert not any("no map" in warning for warning in fact["warnings"])
        tops[name] = float(re.search(r"latitude \S+ to (\S+)", fact["extent"])[1])
    degrees = 10 * LEAN * 60 / METRES
    assert tops["told"] - tops["middle"] == pytest.approx(degrees, abs=1.5e-4)
    assert tops["model"] == pytest.approx(tops["told"], abs=1.1e-4)
    given = ("--checkpoint", work / "model", "--sar", path, "--sar-sensor", "s1")
    code, _, err = run(capsys, "segment", "water", *given, "--height", 260, "--out", tmp_path / "maps")
    assert code == 0, err
    maps = sorted((tmp_path / "maps").glob("*.tif"))
    assert maps
    there = load_pair(sar_path=path, sar_sensor="s1", height=260).transform
    for each in maps:
        with rasterio.open(each) as dataset:
            assert dataset.transform.f == pytest.approx(there.f)
    ask = ("ask", "x", *given)
    wrong(capsys, *ask, "--height", "nan", says="must be -1000 to 10000 metres")
    wrong(capsys, *ask, "--dem", tmp_path / "none.tif", says="none.tif does not exist")
    plain = ("--sar", work / "a_s1.tif", "--height", 100)
    wrong(capsys, "ask", "x", "--checkpoint", work / "model", *plain, says="is not placed by them; leave it out")
    wrong(capsys, "info", *plain[1:], says="is not placed by them; leave it out")
