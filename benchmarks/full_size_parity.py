"""A whole InternVL at full size beside PyTorch: the same picture and text through both, in float32 on the CPU.

    python benchmarks/full_size_parity.py [MANIFEST]

Makes a bfloat16 checkpoint of random numbers with the names and shapes of InternVL2-1B (MANIFEST, by default the one of
../shared/reference/manifests), converts it to float32, and compares image tokens, every layer of the language model,
all logits, and greedy decoding. PyTorch is the classes of transformers for InternViT and the language model, built from
the published config.json and the published names; pixel shuffle and ``mlp1`` are written out here. Each step runs in a
process of its own, so that one model is in memory at a time. Needs 8 GB of free disk below the temporary directory, and
leaves nothing there. Exits with 1 where something differs by more than the tolerance.
"""

from __future__ import annotations

import gzip
import json
import math
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from checkpoints_convert.verify.result import TOLERANCE, Result, compare
from earthmind_jax.config import require
from earthmind_jax.errors import UserError

MANIFEST = Path(__file__).resolve().parents[2] / "shared/reference/manifests/InternVL2-1B.json.gz"
TILES, TEXT, NEW = 2, 512, 16
BEFORE = 20  # tokens of the text that come before the picture


def make(manifest: Path, folder: Path) -> None:
    """A checkpoint of random numbers that keep activations near one, and its configuration."""
    from checkpoints_convert.safetensors_writer import write_safetensors

    rng, dtype = np.random.default_rng(0), np.dtype(ml_dtypes.bfloat16)
    shapes = {name: tuple(x) for name, x in json.loads(gzip.decompress(manifest.read_bytes())).items()}

    def draw(name: str) -> np.ndarray:
        numbers = rng.standard_normal(shapes[name], np.float32)
        kind = name.rpartition(".")[2]
        if kind in ("ls1", "ls2"):
            return (0.1 + 0.02 * numbers).astype(dtype)
        if kind == "weight" and numbers.ndim == 1:  # of a norm
            return (1 + 0.1 * numbers).astype(dtype)
        if numbers.ndim == 1 or kind.endswith("_embedding"):
            return (0.1 * numbers).astype(dtype)
        # Matrices keep the size of what they are given, so that queries and keys are unlike enough to be told apart.
        return (numbers * np.float32(1 / math.sqrt(math.prod(numbers.shape[1:])))).astype(dtype)

    source = folder / "source"
    source.mkdir()
    table = {name: (shape, dtype) for name, shape in shapes.items()}
    write_safetensors(source / "model.safetensors", table, ((name, draw(name)) for name in shapes))
    shutil.copyfile(str(manifest).replace(".json.gz", ".config.json"), source / "config.json")


def prompt(published: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tiles [I H W 3] of noise, tokens [1 T] and, for each of them, its image token or -1."""
    vision, rng = published["vision_config"], np.random.default_rng(1)
    side = vision["image_size"]
    rows = TILES * round(side / vision["patch_size"] * published["downsample_ratio"]) ** 2
    pixels = rng.standard_normal((TILES, side, side, 3), np.float32)
    tokens = rng.integers(0, published["llm_config"]["vocab_size"], (1, TEXT + rows))
    index = np.full(tokens.shape, -1)
    index[0, BEFORE : BEFORE + rows] = np.arange(rows)
    return pixels, tokens.astype(np.int32), index.astype(np.int32)


def theirs(folder: Path) -> dict[str, float]:
    """PyTorch: writes its image tokens, hidden states, logits, and greedy decoding."""
    import torch

    from checkpoints_convert.verify import transformers_models as models

    published = json.loads((folder / "source" / "config.json").read_text())
    pixels, tokens, index = prompt(published)
    start = time.perf_counter()
    with torch.no_grad():
        model = models.vision_model(published["vision_config"], _tensors(folder, "vision_model."))
        states = model(torch.from_numpy(pixels).permute(0, 3, 1, 2), output_hidden_states=True).hidden_states
        visual = _projected(states[published["select_layer"]][:, 1:], published, _tensors(folder, "mlp1."))
        del model, states
        state = _tensors(folder, "language_model.")
        embeds = state["model.embed_tokens.weight"][torch.from_numpy(tokens.astype(np.int64))]
        embeds[torch.from_numpy(index >= 0)] = visual.flatten(0, 1)
        model = models.language_model(published["llm_config"], state, tied="lm_head.weight" not in state)
        out = model(inputs_embeds=embeds, use_cache=True, output_hidden_states=True)
        cache, steps = out.past_key_values, [out.logits[0, -1]]
        while len(steps) < NEW:
            steps.append(model(steps[-1].argmax()[None, None], past_key_values=cache, use_cache=True).logits[0, -1])
    seconds = time.perf_counter() - start
    np.save(folder / "visual.npy", visual.numpy())
    np.save(folder / "states.npy", torch.stack(out.hidden_states).numpy())
    np.save(folder / "logits.npy", out.logits.numpy())
    np.save(folder / "steps.npy", torch.stack(steps).numpy())
    return {"reading and running": seconds}


def _tensors(folder: Path, prefix: str) -> dict[str, Any]:
    """The published tensors below ``prefix``, without it, in float32."""
    from safetensors import safe_open

    with safe_open(folder / "source" / "model.safetensors", "pt") as file:
        return {n.removeprefix(prefix): file.get_tensor(n).float() for n in file.keys() if n.startswith(prefix)}  # noqa: SIM118


def _projected(patches: Any, published: dict[str, Any], mlp: dict[str, Any]) -> Any:
    """Pixel shuffle (``ps_version`` v2: rows stay rows) and ``mlp1``: patches [I P C] -> image tokens [I N D]."""
    from torch.nn import functional

    require(published["ps_version"] == "v2", f"The pixel shuffle of {published['ps_version']} is not written out here.")
    count, _, channels = patches.shape
    factor = round(1 / published["downsample_ratio"])
    side = math.isqrt(patches.shape[1]) // factor
    x = patches.reshape(count, side, factor, side, factor, channels).permute(0, 1, 3, 2, 4, 5)
    x = x.reshape(count, side * side, factor * factor * channels)
    x = functional.layer_norm(x, x.shape[-1:], mlp["0.weight"], mlp["0.bias"], 1e-5)
    x = functional.gelu(functional.linear(x, mlp["1.weight"], mlp["1.bias"]))
    return functional.linear(x, mlp["3.weight"], mlp["3.bias"])


def convert(folder: Path) -> None:
    from checkpoints_convert.streaming import convert_to_checkpoint
    from earthmind_jax.config import FusionConfig

    convert_to_checkpoint(folder / "source", folder / "ours", fusion=FusionConfig(mode="concat"), dtype=np.float32)


def ours(folder: Path) -> tuple[dict[str, float], Result]:
    """This code on the converted checkpoint: its figures, and what the comparison with :func:`theirs` gave."""
    import jax

    from earthmind_jax import checkpoint
    from earthmind_jax.models import earthmind
    from earthmind_jax.models.decoder import init_cache

    start = time.perf_counter()
    config, params = checkpoint.load(folder / "ours")
    loading = time.perf_counter() - start
    pixels, tokens, index = prompt(json.loads((folder / "source" / "config.json").read_text()))

    def forward(params: Any, tokens: Any, pixels: Any) -> Any:
        visual = earthmind.encode(config, params, pixels[None])
        rows = visual.reshape(1, -1, visual.shape[-1])
        embeds = earthmind.place(earthmind.embed(config, params, tokens), rows, index)
        cache = init_cache(config.lm, 1, tokens.shape[1] + NEW)
        out = earthmind.language(config, params, embeds, cache=cache, fresh=True, states=True)
        return visual[0], out.states, earthmind.logits(config, params, out.hidden), out.cache

    def step(params: Any, token: Any, cache: Any) -> Any:
        out = earthmind.language(config, params, earthmind.embed(config, params, token), cache=cache)
        return earthmind.logits(config, params, out.hidden)[0, -1], out.cache

    with jax.default_matmul_precision("highest"):
        start = time.perf_counter()
        compiled = jax.jit(forward).lower(params, tokens, pixels).compile()
        compiling = time.perf_counter() - start
        start = time.perf_counter()
        visual, states, logits, cache = jax.block_until_ready(compiled(params, tokens, pixels))
        running = time.perf_counter() - start
        expected, steps, decode = np.load(folder / "steps.npy"), [logits[0, -1]], jax.jit(step, donate_argnums=2)
        for chosen in expected.argmax(-1)[:-1]:  # their tokens, so that one near tie does not end the comparison
            scores, cache = decode(params, np.full((1, 1), chosen, np.int32), cache)
            steps.append(scores)
    del params, cache
    layers = [(f"hidden.{i}", *pair) for i, pair in enumerate(zip(states, _load(folder, "states"), strict=True))]
    rows = [("image tokens", visual, _load(folder, "visual")), *layers, ("logits", logits, _load(folder, "logits"))]
    found = compare("whole model", [*rows, ("decoded", np.stack(steps), expected)])
    wrong, line = _greedy(np.stack(steps), expected)
    error = np.abs(logits - _load(folder, "logits")).max() / np.abs(_load(folder, "logits")).max()
    text = f"{found.text}\nlogits: max relative error {error:.1e}, allowed {TOLERANCE:.0e}\n{line}"
    figures = {"loading": loading, "compiling": compiling, "forward": running}
    return figures, Result(found.name, found.passed and not wrong, text)


def _load(folder: Path, name: str) -> np.ndarray:
    return np.load(folder / f"{name}.npy", mmap_mode="r")


def _greedy(scores: np.ndarray, expected: np.ndarray) -> tuple[int, str]:
    """How many tokens differ though the two best scores of theirs [N V] are farther apart than two errors; a line."""
    second, first = np.partition(expected, -2, axis=-1)[:, -2:].T
    clear = first - second > 2 * TOLERANCE * np.abs(expected).max()
    equal = scores.argmax(-1) == expected.argmax(-1)
    line = (
        f"greedy tokens: {equal.sum()} of {len(equal)} equal, the two best at least {(first - second).min():.1e} apart"
    )
    return int((clear & ~equal).sum()), line + ("" if equal[clear].all() else "  <- FAILS")


def in_process(name: str, manifest: Path, folder: Path) -> int:
    """Run one step here and print what it took; 1 if it found a difference."""
    start, figures, result = time.perf_counter(), {}, None
    if name == "make":
        make(manifest, folder)
    elif name == "theirs":
        figures = theirs(folder)
    elif name == "convert":
        convert(folder)
    else:
        figures, result = ours(folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    seconds = {"seconds": time.perf_counter() - start, **figures}
    print(json.dumps({"step": name, **{k: round(v, 2) for k, v in seconds.items()}, "GB peak": round(peak, 2)}))
    if result is not None:
        print(result.text)
    return int(result is not None and not result.passed)


def main(manifest: Path) -> int:
    config = Path(str(manifest).replace(".json.gz", ".config.json"))
    missing = [str(file) for file in (manifest, config) if not file.is_file()]
    require(not missing, f"There is no {' and no '.join(missing)}: name a manifest (.json.gz) beside its .config.json.")
    with tempfile.TemporaryDirectory(prefix="full_size_parity.") as folder:
        for name in ("make", "theirs", "convert", "ours"):
            command = [sys.executable, __file__, name, str(manifest), folder]
            code = subprocess.run(command, check=False).returncode
            if code:
                return code
    return 0


if __name__ == "__main__":
    try:
        if len(sys.argv) == 4:
            sys.exit(in_process(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
        sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else MANIFEST))
    except UserError as error:
        sys.exit(f"error: {error}")
