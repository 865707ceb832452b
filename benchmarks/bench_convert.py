"""What converting a full-size checkpoint costs: memory and time, against copying the same files.

    python benchmarks/bench_convert.py [MANIFEST]

Makes a checkpoint of random numbers with the names and shapes of EarthMind-4B (MANIFEST, by default the one of
../shared/reference/manifests; bfloat16, but float32 for SAM2 and text_hidden_fcs), copies it, converts it, exports it
again, and compares all of it with the source bit for bit. Each step runs in a process of its own. Time is until the
bytes are on disk; memory is the peak of the process less what it had after its imports. Needs 40 GB of free disk below
the temporary directory, and leaves nothing there.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np

MANIFEST = Path(__file__).resolve().parents[2] / "shared/reference/manifests/EarthMind-4B.json.gz"
SHARD = 4 * 2**30
WIDE = ("grounding_encoder.", "text_hidden_fcs.")


def make(manifest: str, directory: str) -> None:
    """A sharded checkpoint of random bits, and its configuration."""
    from checkpoints_convert.safetensors_writer import write_safetensors

    out, rng = Path(directory), np.random.default_rng(0)
    out.mkdir()
    shapes = json.loads(gzip.decompress(Path(manifest).read_bytes()))
    dtypes = {name: np.dtype(np.float32 if name.startswith(WIDE) else ml_dtypes.bfloat16) for name in shapes}
    sizes = {name: math.prod(shape) * dtypes[name].itemsize for name, shape in shapes.items()}
    shards, filled = [[]], 0
    for name in sorted(shapes, key=lambda name: -dtypes[name].itemsize):
        if shards[-1] and filled + sizes[name] > SHARD:
            shards, filled = [*shards, []], 0
        shards[-1].append(name)
        filled += sizes[name]

    def draw(name: str) -> np.ndarray:
        bits = np.frombuffer(rng.bytes(sizes[name]), np.uint8)
        return bits.view(dtypes[name]).reshape(shapes[name])

    where = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        table = {name: (tuple(shapes[name]), dtypes[name]) for name in names}
        write_safetensors(out / file, table, ((name, draw(name)) for name in names))
        where |= dict.fromkeys(names, file)
    (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    shutil.copyfile(manifest.replace(".json.gz", ".config.json"), out / "config.json")


def copy(source: str, target: str) -> None:
    """The same files once more."""
    Path(target).mkdir()
    for file in sorted(Path(source).iterdir()):
        shutil.copyfile(file, Path(target, file.name))
        with open(Path(target, file.name), "rb") as copied:
            os.fsync(copied.fileno())


def convert(source: str, target: str) -> None:
    from checkpoints_convert.streaming import convert_to_checkpoint

    convert_to_checkpoint(source, target)


def export(source: str, target: str) -> None:
    from checkpoints_convert.export import export_checkpoint

    export_checkpoint(source, target, "earthmind")


def compare(one: str, other: str) -> None:
    """Raises at the first tensor that differs."""
    from checkpoints_convert.reader import open_source

    ours, theirs = open_source(one), open_source(other)
    assert ours.tree() == theirs.tree(), "names, shapes or dtypes differ"
    for name in ours.index:
        a, b = (np.ascontiguousarray(x.read(name)).reshape(-1).view(np.uint8) for x in (ours, theirs))
        assert np.array_equal(a, b), f"{name} differs"


STEPS = {step.__name__: step for step in (make, copy, convert, export, compare)}


def in_process(step: str, first: str, second: str) -> None:
    """Run one step here and print what it took."""
    import checkpoints_convert.export
    import checkpoints_convert.streaming  # noqa: F401 - so that the imports are in the memory before

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    STEPS[step](first, second)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"step": step, "seconds": round(seconds, 2), "GB above": round((peak - before) * 1024 / 1e9, 3)}))


def main(manifest: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="bench_convert.") as folder:

        def run(step: str, first: str, second: str) -> dict[str, float]:
            first, second = (str(Path(folder, x)) if not Path(x).is_absolute() else x for x in (first, second))
            command = [sys.executable, __file__, step, first, second]
            made = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            print(made.stdout.splitlines()[-1], flush=True)
            return json.loads(made.stdout.splitlines()[-1])

        run("make", str(manifest), "source")
        size = sum(file.stat().st_size for file in Path(folder, "source").iterdir())
        print(json.dumps({"GB": round(size / 1e9, 3)}), flush=True)
        copies = [run("copy", "source", "copy")]
        shutil.rmtree(Path(folder, "copy"))
        there = run("convert", "source", "checkpoint")
        back = run("export", "checkpoint", "exported")
        run("compare", "source", "exported")
        copies.append(run("copy", "source", "copy"))
        usual = sum(step["seconds"] for step in copies) / len(copies)
        print(json.dumps({f"{step['step']} / copy": round(step["seconds"] / usual, 2) for step in (there, back)}))


if __name__ == "__main__":
    if len(sys.argv) == 4:
        in_process(*sys.argv[1:])
    else:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else MANIFEST)
