"""Every component beside PyTorch's (transformers) at its published size, random weights, alternately in one process.

    python benchmarks/bench_torch.py [--cases vit-1 lm-prefill ...] [--dtypes float32 bfloat16] [--repeats 5] [--memory]

Prints a Markdown table: median milliseconds of both and the ratio (above 1: ours is faster). Both sides hold the same
number of parameters, which is checked; that they compute the same is what ``tests/parity`` shows. On a GPU both run
there. ``--memory`` adds peak memory, each side in a process of its own: on a CPU that of the process above its size
after the imports, on a GPU that of the device.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leave PyTorch its share of a GPU

import jax
import jax.numpy as jnp
import numpy as np

from earthmind_jax.config import EarthMindConfig, FusionConfig, LmConfig, Precision, RopeConfig, VisionConfig
from earthmind_jax.models import api, earthmind
from earthmind_jax.models.sam2_presets import sam2_preset
from earthmind_jax.ops import tokens as token_ops
from earthmind_jax.train.state import RUN_ONCE

Run = Callable[[], Any]
Side = tuple[Run, int]  # what is timed, and the number of parameters behind it

PROMPT, NEW = 1024, 64
TINY, LARGE = "sam2_hiera_tiny", "sam2_hiera_large"
QWEN2 = LmConfig(
    vocab=151_655, width=896, depth=24, heads=14, kv_heads=2, head_dim=64, mlp=4864, qkv_bias=True, tie=False,
    rope=RopeConfig(theta=1e6, max_position=32768), remat="none",
)  # fmt: skip


def config(dtype: str, sam: str = TINY) -> EarthMindConfig:
    """InternVL2-1B with SAM2: InternViT-300M and Qwen2-0.5B; a pair's tokens side by side, as released."""
    return EarthMindConfig(
        vision=VisionConfig(),
        lm=QWEN2,
        grounding=sam2_preset(sam),
        fusion=FusionConfig(mode="concat", grounding="sar"),
        precision=Precision(param=dtype, compute=dtype),
    )


@functools.lru_cache(maxsize=1)
def weights(cfg: EarthMindConfig, *prefixes: str) -> dict[str, jax.Array]:
    """Random parameters below ``prefixes``."""

    def make(key: jax.Array) -> dict[str, jax.Array]:
        every = api.init(cfg, key)
        return {path: value for path, value in every.items() if path.startswith(prefixes)}

    return jax.jit(make, compiler_options=RUN_ONCE)(jax.random.key(0))


def ours(cfg: EarthMindConfig, fn: Callable[..., Any], *inputs: Any, prefixes: tuple[str, ...]) -> Side:
    params = weights(cfg, *prefixes)
    compiled = jax.jit(functools.partial(fn, cfg))
    placed = [jax.device_put(x) for x in inputs]
    # PyTorch counts the Gaussian matrix of SAM2's positions among the buffers.
    count = sum(x.size for path, x in params.items() if not path.endswith("gaussian"))
    return lambda: jax.block_until_ready(compiled(params, *placed)), count


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


# Ours: pure functions over the whole model's parameters.


def ours_vit(dtype: str, tiles: int) -> Side:
    return ours(config(dtype), earthmind.encode, draw(1, tiles, 448, 448, 3), prefixes=("vision/", "projector/"))


def _prefill(cfg: EarthMindConfig, params: Any, tokens: jax.Array) -> Any:
    cache = api.init_cache(cfg.lm, 1, PROMPT + NEW, cfg.precision.compute)
    out = earthmind.language(cfg, params, earthmind.embed(cfg, params, tokens), cache=cache, fresh=True)
    return earthmind.logits(cfg, params, out.hidden[:, -1:]), out


def _decode(cfg: EarthMindConfig, params: Any, cache: Any, token: jax.Array, steps: int) -> Any:
    def feed(_: int, carry: Any) -> Any:
        cache, token, _ = carry
        out = earthmind.language(cfg, params, earthmind.embed(cfg, params, token), cache=cache)
        return out.cache, jnp.argmax(earthmind.logits(cfg, params, out.hidden), -1).astype(token.dtype), out.hidden

    hidden = jnp.zeros((1, 1, cfg.lm.width), cfg.precision.compute)
    return jax.lax.fori_loop(0, steps, feed, (cache, token, hidden))


def ours_prefill(dtype: str) -> Side:
    tokens = np.random.default_rng(0).integers(0, 1000, (1, PROMPT)).astype(np.int32)
    return ours(config(dtype), lambda cfg, p, t: _prefill(cfg, p, t)[0], tokens, prefixes=("lm/",))


def ours_decode(dtype: str) -> Side:
    cfg = config(dtype)
    params = weights(cfg, "lm/")
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 1000, (1, PROMPT)), jnp.int32)
    cache = jax.jit(functools.partial(_prefill, cfg))(params, tokens)[1].cache
    run = ours(cfg, lambda cfg, p, c, t: _decode(cfg, p, c, t, NEW)[1], cache, tokens[:, :1], prefixes=("lm/",))
    return run


ENCODER = ("grounding/trunk/", "grounding/neck/", "grounding/decoder/conv_s")
HEAD = ("grounding/prompt/", "grounding/decoder/", "grounding/no_mem_embed")


def _features(cfg: EarthMindConfig, params: Any, image: jax.Array) -> Any:
    return earthmind.image_features(cfg, params, None, image, None, None, None)


def ours_sam(dtype: str, size: str) -> Side:
    cfg = config(dtype, size)
    return ours(cfg, _features, draw(1, 1024, 1024, 3), prefixes=ENCODER)


def ours_head(dtype: str) -> Side:
    cfg = config(dtype)
    features = jax.eval_shape(
        functools.partial(_features, cfg), weights(cfg, "grounding/"), jnp.zeros((1, 1024, 1024, 3))
    )
    features = jax.tree.map(lambda leaf: jnp.asarray(draw(*leaf.shape), leaf.dtype), features)
    prompt = jnp.asarray(draw(1, 1, 256), dtype)
    return ours(cfg, lambda *a: earthmind.ground(*a).logits, features, prompt, prefixes=HEAD)


def ours_ask(dtype: str) -> Side:
    """A pair of tiles (512 visual tokens), 64 words of question, 32 of answer, one mask."""

    def ask(cfg: EarthMindConfig, params: Any, tiles: jax.Array, image: jax.Array, tokens: jax.Array) -> Any:
        visual = earthmind.encode(cfg, params, tiles).reshape(1, -1, cfg.lm.width)
        text = earthmind.embed(cfg, params, tokens)
        embeds = token_ops.place_visual(text, visual.astype(text.dtype), _index(tokens.shape[1]))
        cache = api.init_cache(cfg.lm, 1, tokens.shape[1] + 32, cfg.precision.compute)
        out = earthmind.language(cfg, params, embeds, cache=cache, fresh=True)
        first = jnp.argmax(earthmind.logits(cfg, params, out.hidden[:, -1:]), -1).astype(tokens.dtype)
        _, token, hidden = _decode(cfg, params, out.cache, first, 32)
        prompt = earthmind.seg_prompt(cfg, params, hidden)
        return token, earthmind.ground(cfg, params, _features(cfg, params, image), prompt).logits

    tokens = np.random.default_rng(0).integers(0, 1000, (1, 512 + 64)).astype(np.int32)
    return ours(
        config(dtype), ask, draw(1, 2, 448, 448, 3), draw(1, 1024, 1024, 3), tokens,
        prefixes=("vision/", "projector/", "lm/", "text_hidden_fcs/", "grounding/"),
    )  # fmt: skip


def _index(length: int) -> jax.Array:
    return jnp.where(jnp.arange(length) < 512, jnp.arange(length), -1)[None].astype(jnp.int32)


# PyTorch: the classes of transformers.


def torch_place(dtype: str) -> tuple[Any, Any, Any]:
    import torch

    # The cores that this process may use, as XLA counts them.
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return torch, torch.device("cuda" if torch.cuda.is_available() else "cpu"), getattr(torch, dtype)


def theirs(module: Any, fn: Callable[[], Any], also: int = 0) -> Side:
    import torch

    def run() -> Any:
        with torch.inference_mode():
            out = fn()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            return out

    return run, sum(p.numel() for p in module.parameters()) + also


def build(make: Callable[[], Any], dtype: str) -> tuple[Any, Any]:
    """(the module, a function that puts an array beside it)."""
    torch, device, kind = torch_place(dtype)
    with torch.device(device):
        module = make().eval().to(kind)

    def put(array: np.ndarray) -> Any:
        tensor = torch.from_numpy(array).to(device)
        return tensor.to(kind) if tensor.is_floating_point() else tensor

    return module, put


def torch_vit_parts() -> Any:
    import torch
    from transformers.models.internvl.configuration_internvl import InternVLVisionConfig
    from transformers.models.internvl.modeling_internvl import InternVLVisionModel

    class Vit(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # The published InternViT has biases on query, key and value, and no norm behind the last block.
            self.vision = InternVLVisionModel(InternVLVisionConfig(attention_bias=True, use_mean_pooling=True))
            self.mlp = torch.nn.Sequential(
                torch.nn.LayerNorm(4096), torch.nn.Linear(4096, 896), torch.nn.GELU(), torch.nn.Linear(896, 896)
            )

        def forward(self, pixels: Any) -> Any:
            x = self.vision(pixels).last_hidden_state[:, 1:].reshape(len(pixels), 32, 32, 1024)
            x = x.reshape(len(pixels), 16, 2, 16, 2, 1024).transpose(2, 3).reshape(len(pixels), 256, 4096)
            return self.mlp(x)

    return Vit()


def torch_vit(dtype: str, tiles: int) -> Side:
    model, put = build(torch_vit_parts, dtype)
    pixels = put(draw(tiles, 3, 448, 448))
    return theirs(model, lambda: model(pixels))


def torch_qwen() -> Any:
    import transformers

    c = QWEN2
    return transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
            vocab_size=c.vocab,
            hidden_size=c.width,
            intermediate_size=c.mlp,
            num_hidden_layers=c.depth,
            num_attention_heads=c.heads,
            num_key_value_heads=c.kv_heads,
            max_position_embeddings=32768,
            tie_word_embeddings=False,
            attn_implementation="sdpa",
        )
    )


def torch_prefill(dtype: str) -> Side:
    model, put = build(torch_qwen, dtype)
    tokens = put(np.random.default_rng(0).integers(0, 1000, (1, PROMPT)))
    return theirs(model, lambda: model(tokens, use_cache=True, logits_to_keep=1).logits)


def _torch_decode(model: Any, cache: Any, token: Any, steps: int) -> Any:
    hidden = None
    for _ in range(steps):
        out = model(token, past_key_values=cache, use_cache=True, output_hidden_states=True)
        token, hidden = out.logits.argmax(-1), out.hidden_states[-1]
    return token, hidden


def torch_decode(dtype: str) -> Side:
    model, put = build(torch_qwen, dtype)
    torch = torch_place(dtype)[0]
    tokens = put(np.random.default_rng(0).integers(0, 1000, (1, PROMPT)))
    with torch.inference_mode():
        cache = model(tokens, use_cache=True, logits_to_keep=1).past_key_values

    def run() -> Any:
        if (more := cache.get_seq_length() - PROMPT) > 0:  # what the last run added
            cache.crop(-more)
        return _torch_decode(model, cache, tokens[:, :1], NEW)

    return theirs(model, run)


def torch_sam_model(size: str) -> Any:
    import transformers

    c = sam2_preset(size)
    backbone = {
        "hidden_size": c.embed_dim, "num_attention_heads": c.heads, "blocks_per_stage": list(c.stages),
        "global_attention_blocks": list(c.global_blocks), "window_size_per_stage": list(c.windows),
        "window_positional_embedding_background_size": list(c.pos_grid),
        "embed_dim_per_stage": [c.embed_dim * 2**i for i in range(4)],
        "num_attention_heads_per_stage": [c.heads * 2**i for i in range(4)], "model_type": "sam2_hiera_det_model",
    }  # fmt: skip
    vision = transformers.Sam2VisionConfig(
        backbone_config=backbone, backbone_channel_list=[c.embed_dim * 2**i for i in (3, 2, 1, 0)]
    )
    return transformers.Sam2Model(transformers.Sam2Config(vision_config=vision))


def torch_sam(dtype: str, size: str) -> Side:
    model, put = build(lambda: torch_sam_model(size), dtype)
    image = put(draw(1, 3, 1024, 1024))
    decoder = model.mask_decoder
    extra = sum(p.numel() for m in (decoder.conv_s0, decoder.conv_s1) for p in m.parameters())
    return theirs(model.vision_encoder, lambda: model.get_image_embeddings(image), also=extra)


def _torch_mask(model: Any, features: Any, positions: Any, prompt: Any) -> Any:
    dense = model.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(1, -1, 64, 64)
    return model.mask_decoder(
        image_embeddings=features[-1], image_positional_embeddings=positions, sparse_prompt_embeddings=prompt,
        dense_prompt_embeddings=dense, multimask_output=True, high_resolution_features=list(features[:-1]),
    )[0]  # fmt: skip


def torch_head(dtype: str) -> Side:
    model, put = build(lambda: torch_sam_model(TINY), dtype)
    features = [put(draw(1, 32, 256, 256)), put(draw(1, 64, 128, 128)), put(draw(1, 256, 64, 64))]
    prompt = put(draw(1, 1, 1, 256))
    torch = torch_place(dtype)[0]
    with torch.inference_mode():
        positions = model.get_image_wide_positional_embeddings()
    module = torch.nn.ModuleList([model.mask_decoder, model.prompt_encoder])
    # The mean of the image without memory belongs to the whole model, the Gaussian matrix is a buffer.
    return theirs(
        module, lambda: _torch_mask(model, features, positions, prompt), also=model.no_memory_embedding.numel()
    )


def torch_ask(dtype: str) -> Side:
    torch = torch_place(dtype)[0]
    vit, put = build(torch_vit_parts, dtype)
    lm, _ = build(torch_qwen, dtype)
    sam, _ = build(lambda: torch_sam_model(TINY), dtype)
    fcs, _ = build(
        lambda: torch.nn.Sequential(torch.nn.Linear(896, 896), torch.nn.ReLU(), torch.nn.Linear(896, 256)), dtype
    )
    tiles, image = put(draw(2, 3, 448, 448)), put(draw(1, 3, 1024, 1024))
    tokens = put(np.random.default_rng(0).integers(0, 1000, (1, 64)))

    def run() -> Any:
        visual = vit(tiles).reshape(1, -1, 896)
        embeds = torch.cat([visual, lm.get_input_embeddings()(tokens)], 1)
        out = lm(inputs_embeds=embeds, use_cache=True, logits_to_keep=1)
        _, hidden = _torch_decode(lm, out.past_key_values, out.logits.argmax(-1), 32)
        features = sam.get_image_embeddings(image)
        return _torch_mask(sam, features, sam.get_image_wide_positional_embeddings(), fcs(hidden)[:, None])

    return theirs(torch.nn.ModuleList([vit, lm, sam, fcs]), run)


CASES: dict[str, tuple[str, Callable[[str], Side], Callable[[str], Side]]] = {
    "vit-1": ("InternViT-300M + projector, 1 tile", lambda d: ours_vit(d, 1), lambda d: torch_vit(d, 1)),
    "vit-5": ("InternViT-300M + projector, 5 tiles", lambda d: ours_vit(d, 5), lambda d: torch_vit(d, 5)),
    "lm-prefill": (f"Qwen2-0.5B, prefill {PROMPT}", ours_prefill, torch_prefill),
    "lm-decode": (f"Qwen2-0.5B, decode {NEW} after {PROMPT}", ours_decode, torch_decode),
    "sam-tiny": ("SAM2 tiny image encoder", lambda d: ours_sam(d, TINY), lambda d: torch_sam(d, TINY)),
    "sam-large": ("SAM2 large image encoder", lambda d: ours_sam(d, LARGE), lambda d: torch_sam(d, LARGE)),
    "mask": ("SAM2 mask decoder, 1 prompt", ours_head, torch_head),
    "ask": ("whole ask: pair, 64 + 32 tokens, 1 mask (InternVL2-1B + SAM2 tiny)", ours_ask, torch_ask),
}  # fmt: skip


def alternate(first: Run, second: Run, repeats: int) -> tuple[float, float]:
    """Median seconds of both, run by turns after one warm-up each."""
    times: tuple[list[float], list[float]] = ([], [])
    for run in (first, second):
        run()
    for _ in range(repeats):
        for run, kept in zip((first, second), times, strict=True):
            start = time.perf_counter()
            run()
            kept.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def peak(case: str, side: str, dtype: str) -> float:
    """Peak memory in GiB of one side, in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--cases", case, "--dtypes", dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])["peak"]


def measure_side(case: str, side: str, dtype: str) -> None:
    """The child's part of :func:`peak`."""
    print(json.dumps({"peak": peak_of(lambda: CASES[case][1 if side == "ours" else 2](dtype)[0], side)}))


def peak_of(make: Callable[[], Run], side: str) -> float:
    """GiB that making and running one side takes at most, above what the process has before."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run = make()
    run()
    run()
    if jax.default_backend() != "gpu":
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    if side == "ours":
        return jax.devices()[0].memory_stats()["peak_bytes_in_use"] / 2**30
    import torch

    return torch.cuda.max_memory_allocated() / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--side", choices=["ours", "torch"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        measure_side(options.cases[0], options.side, options.dtypes[0])
        return
    head = ["component", "precision", "ours, ms", "PyTorch, ms", "PyTorch / ours"]
    head += ["ours, GiB", "PyTorch, GiB"] if options.memory else []
    device = jax.devices()[0].device_kind
    print(f"{device}, {len(os.sched_getaffinity(0))} cores, jax {jax.__version__}\n")
    print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}", flush=True)
    for case in options.cases:
        name, make_ours, make_torch = CASES[case]
        for dtype in options.dtypes:
            (run_ours, count), (run_torch, other) = make_ours(dtype), make_torch(dtype)
            if count != other:
                print(f"{case}: ours has {count:,} parameters, PyTorch {other:,}.", file=sys.stderr)
            first, second = alternate(run_ours, run_torch, options.repeats)
            row = [name, dtype, f"{1e3 * first:.1f}", f"{1e3 * second:.1f}", f"{second / first:.2f}"]
            del run_ours, run_torch
            weights.cache_clear()
            if options.memory:
                row += [f"{peak(case, side, dtype):.2f}" for side in ("ours", "torch")]
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
