"""The commands convert, export, inspect and verify: what they print, and one plain error for every wrong request."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import published
import pytest
from safetensors.numpy import load_file, save_file
from support import run

from checkpoints_convert.reader import open_source
from earthmind_jax import checkpoint
from earthmind_jax.errors import UserError

CONFIG = published.config(grounding=False)
NORM = "language_model.model.layers.1.input_layernorm.weight"


@pytest.fixture
def source(tmp_path):
    weights = published.tensors("internvl", CONFIG)
    return published.write(tmp_path / "source", "internvl", CONFIG, weights, shards=2)


def change(file, edit):
    """Write the tensors of ``file`` anew after ``edit`` has changed them."""
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)


def shard(source, name):
    index = json.loads((source / "model.safetensors.index.json").read_text())["weight_map"]
    return source / index[name]


def reshape(source):
    change(shard(source, NORM), lambda x: x.update({NORM: np.ones(7, np.float32)}))


def rename(source):
    change(shard(source, NORM), lambda x: x.update({NORM.replace("input_layernorm", "input_layernrom"): x.pop(NORM)}))
    file = source / "model.safetensors.index.json"
    file.write_text(file.read_text().replace(NORM, NORM.replace("input_layernorm", "input_layernrom")))


def truncate(source):
    file = shard(source, NORM)
    os.truncate(file, file.stat().st_size - 10)


def garble(source):
    file = shard(source, NORM)
    file.write_bytes(b"\xff" * 9 + file.read_bytes()[9:])


def duplicate(source):
    (source / "model.safetensors.index.json").unlink()
    change(source / "model-00001-of-00002.safetensors", lambda x: x.update({NORM: np.ones(64, np.float32)}))
    change(source / "model-00002-of-00002.safetensors", lambda x: x.update({NORM: np.ones(64, np.float32)}))


def strange(source):
    for file in source.glob("model*"):
        file.unlink()
    save_file({"weight": np.ones(3, np.float32)}, source / "model.safetensors")


def alone(source):
    kept = {n: open_source(source).read(n) for n in open_source(source).index if n.startswith("language_model.")}
    for file in source.glob("model*"):
        file.unlink()
    save_file({n.removeprefix("language_model."): x for n, x in kept.items()}, source / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config["llm_config"]))


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (truncate, "not a complete safetensors file"),
        (garble, "not a complete safetensors file"),
        (lambda source: shard(source, NORM).unlink(), "fetch the missing shards"),
        (reshape, "has the shape (7,)"),
        (rename, "is unknown to this layout (nearest:"),
        (duplicate, "twice"),
        (strange, "of no known layout"),
        (alone, "a checkpoint directory needs a whole model"),
        (lambda source: (source / "config.json").unlink(), "needs its config.json"),
        (lambda source: (source / "config.json").write_text("{"), "not valid JSON"),
    ],
    ids=["truncated", "garbled", "no shard", "shape", "name", "twice", "unknown", "component", "no config", "config"],
)
def test_bad_sources(source, tmp_path, capsys, break_it, says):
    break_it(source)
    before = published.contents(source)
    code, _, err = run(capsys, "convert", source, tmp_path / "out")
    assert (code, err.startswith("error: ")) == (2, True), err
    assert says in err, err
    assert str(source) in err
    assert published.contents(source) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_bad_requests(source, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for arguments, says in (
        ((source, tmp_path / "full"), "exists already"),
        ((source / "nothing", tmp_path / "out"), "There is no checkpoint"),
        ((source, tmp_path / "out", "--dtype", "float31"), "Did you mean 'float32'"),
        ((source, tmp_path / "out", "--fusion", "concatt"), "Did you mean 'concat'"),
        ((source, tmp_path / "out", "--masks-from", "sar"), "needs --fusion"),
        ((source, tmp_path / "out", "--config", source / "nothing.json"), "cannot be read"),
        ((source, tmp_path / "out", "--tokenizer", source / "nothing"), "no tokenizer directory"),
    ):
        code, _, err = run(capsys, "convert", *arguments)
        assert (code, says in err) == (2, True), err
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["full", "source"]
    assert run(capsys, "verify", tmp_path)[0] == 2
    assert run(capsys, "verify", "--live")[0] == 2
    assert run(capsys, "verify", "--recorded", tmp_path)[0] == 2


def test_there_and_back(source, tmp_path, capsys):
    ours, back = tmp_path / "ours", tmp_path / "back"
    code, out, err = run(capsys, "convert", source, ours, "--fusion", "concat", "--masks-from", "optical")
    assert code == 0, err
    assert str(ours) in out
    assert (checkpoint.read_config(ours).fusion.mode, checkpoint.read_config(ours).fusion.grounding) == (
        "concat",
        "optical",
    )
    assert run(capsys, "verify", ours, "--source", source)[0] == 0
    assert run(capsys, "export", ours, back, "--layout", "internvl")[0] == 0
    one, two = open_source(source), open_source(back)
    assert all(one.read(name).tobytes() == two.read(name).tobytes() for name in one.index)
    change(shard(source, NORM), lambda x: x.update({NORM: x[NORM] + np.float32(1e-3)}))
    code, out, err = run(capsys, "verify", ours, "--source", source)
    assert code == 1, err
    assert f"{NORM}: differs, by 0.001" in out
    assert "not the file that was converted" in out


def test_verify_live(source, tmp_path, capsys):
    pytest.importorskip("torch")
    assert run(capsys, "convert", source, tmp_path / "ours", "--fusion", "concat")[0] == 0
    code, out, err = run(capsys, "verify", tmp_path / "ours", "--live")
    assert code == 0, out + err
    assert out.count("hidden.") == CONFIG.lm.depth + CONFIG.vision.depth + 2
    assert "logits" in out


def test_verify_recorded(goldens, capsys):
    case = goldens / "f_preprocessing"
    code, out, err = run(capsys, "verify", "--recorded", case)
    assert code == 0, err
    assert "max error" in out


def test_inspect(source, capsys):
    code, out, err = run(capsys, "inspect", source)
    assert code == 0, err
    assert "can be converted" in out
    rename(source)
    facts = json.loads(run(capsys, "inspect", source, "--json")[1])
    wrong = NORM.replace("input_layernorm", "input_layernrom")
    assert (facts["missing"], facts["extra"]) == ({NORM: wrong}, {wrong: NORM})
    assert (facts["layout"], facts["family"], facts["dtypes"]) == (
        "InternVL (Qwen2)",
        "qwen2",
        {"float32": facts["tensors"]},
    )
    code, out, _ = run(capsys, "inspect", source)
    assert f"{NORM} (nearest: {wrong})" in out
    assert "cannot be converted" in out
    (source / "config.json").unlink()
    facts = json.loads(run(capsys, "inspect", source, "--json")[1])
    assert "needs its config.json" in facts["problem"]
    assert list(facts["extra"]) == [wrong]


FULL_DISK = """
    import resource, signal, sys
    from earthmind_jax.cli import main

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
    main(sys.argv[2:])
"""


@pytest.mark.parametrize("command", ["convert", "export"])
def test_a_full_disk(source, tmp_path, capsys, command):
    """A limit on the file size stands for a disk that fills up."""
    if command == "export":
        assert run(capsys, "convert", source, tmp_path / "ours")[0] == 0
    arguments = (
        ["convert", source, tmp_path / "out"]
        if command == "convert"
        else ["export", tmp_path / "ours", tmp_path / "out", "--layout", "internvl"]
    )
    code = [sys.executable, "-c", textwrap.dedent(FULL_DISK), "20000"]
    failed = subprocess.run([*code, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)
    assert failed.returncode == 1, failed.stderr
    assert "failed: Could not write" in failed.stderr
    assert "Traceback" not in failed.stderr
    for place in (tmp_path / "out", tmp_path / ".out.partial"):
        with pytest.raises(UserError, match=r"does not exist|not a checkpoint"):
            checkpoint.load(place)
    if command == "export":
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["ours", "source"]
    assert run(capsys, *arguments)[0] == 0
