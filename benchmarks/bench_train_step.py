"""One training step beside PyTorch + PEFT at equal shapes and trainables: InternVL2-1B with SAM2 tiny, random weights.

    python benchmarks/bench_train_step.py [--dtype float32] [--tokens 64] [--batch 1] [--remat full] [--memory]

Both sides take one 448-pixel tile, ``--tokens`` words behind its 256 visual tokens (the last half supervised) and one
mask of 256 x 256. They train LoRA factors (r = 128) of the language model's linear layers, projector,
``text_hidden_fcs`` and mask decoder with AdamW, clip by the norm, keep float32 masters, and recompute activations
unless ``--remat none``. Steps run by turns in one process; printed are median times, their ratio, and the MFU of both
(definition: :mod:`earthmind_jax.train.watch`). ``--memory`` measures the peak of each side in a process of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from typing import Any

import bench_torch
import jax
import jax.numpy as jnp
import numpy as np
from bench_torch import TINY, alternate, draw

from earthmind_jax.config import DataConfig, FusionConfig, Group, LoraConfig, LossConfig, OptimConfig, RunConfig
from earthmind_jax.distributed.mesh import make_mesh
from earthmind_jax.distributed.sharding import put_batch
from earthmind_jax.plan.flops import step_flops
from earthmind_jax.plan.hardware import running_on
from earthmind_jax.train.state import create
from earthmind_jax.train.step import compile_step
from earthmind_jax.types import Batch

VISUAL = 256
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TRAINED = "(lora|projector|text_hidden_fcs|grounding/decoder)/"


def run_config(options: argparse.Namespace) -> RunConfig:
    whole = bench_torch.config(options.dtype)
    model = dataclasses.replace(
        whole,
        vision=dataclasses.replace(whole.vision, remat="none"),  # frozen: it has no backward pass
        lm=dataclasses.replace(whole.lm, lora=LoraConfig(rank=128, alpha=256.0), remat=options.remat),
        fusion=FusionConfig(mode="average", grounding="optical"),
        precision=dataclasses.replace(whole.precision, param="float32"),
    )
    groups = (Group(pattern=TRAINED, learning_rate=1.0), Group(pattern=".*"))
    return RunConfig(
        model=model,
        optim=OptimConfig(learning_rate=4e-5, groups=groups),
        loss=LossConfig(points=0, vocab_chunk=1024),
        steps=1000,
    )


def numbers(options: argparse.Namespace) -> dict[str, np.ndarray]:
    """The batch of both sides: words, tile, grounding image and mask."""
    rng = np.random.default_rng(0)
    return {
        "words": rng.integers(0, 1000, (options.batch, options.tokens)).astype(np.int32),
        "tile": draw(options.batch, 448, 448, 3),
        "image": draw(options.batch, 1024, 1024, 3),
        "mask": (rng.random((options.batch, 1, 256, 256)) > 0.5).astype(np.float32),
    }


def ours(options: argparse.Namespace) -> bench_torch.Side:
    run, x = run_config(options), numbers(options)
    count, length = options.batch, VISUAL + options.tokens
    where = np.arange(length)
    rows = lambda values: np.broadcast_to(values, (count, length)).copy()  # noqa: E731
    batch = Batch(
        tokens=np.concatenate([np.zeros((count, VISUAL), np.int32), x["words"]], 1),
        loss_mask=rows(where >= length - options.tokens // 2),
        lengths=np.full(count, length, np.int32),
        question=rows((where >= VISUAL) & (where < length - options.tokens // 2)),
        visual_index=rows(np.where(where < VISUAL, where, -1)).astype(np.int32),
        optical=x["tile"][:, None],
        optical_valid=np.ones((count, 1, VISUAL), bool),
        ground_optical=x["image"],
        ground_optical_valid=np.ones(count, bool),
        seg_index=np.full((count, 1), length - 2, np.int32),
        masks=x["mask"],
        mask_valid=np.ones((count, 1), bool),
    )
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        state, shardings = create(run, mesh)
        trained = sum(leaf.size for leaf in jax.tree.leaves(state.trainable))
        placed = put_batch(batch, mesh)
        # The state is given away to each step and replaced by what it returns.
        step = compile_step(run, mesh, shardings).lower(state, placed).compile()
    held = [state]
    del state

    def once() -> Any:
        new, metrics = step(held.pop(), placed)
        held.append(new)
        return jax.block_until_ready(metrics)

    return once, trained


def torch_side(options: argparse.Namespace) -> bench_torch.Side:
    import peft

    torch, device, kind = bench_torch.torch_place(options.dtype)
    with torch.device(device):
        vit, lm = bench_torch.torch_vit_parts(), bench_torch.torch_qwen()
        sam = bench_torch.torch_sam_model(TINY)
        fcs = torch.nn.Sequential(torch.nn.Linear(896, 896), torch.nn.ReLU(), torch.nn.Linear(896, 256))
    for module in (vit, lm, sam):
        module.requires_grad_(False).to(kind)
    lora = peft.LoraConfig(r=128, lora_alpha=256, target_modules=LINEAR, lora_dropout=0.0, task_type="CAUSAL_LM")
    lm = peft.get_peft_model(lm, lora).to(device)
    lm.enable_input_require_grads()
    if options.remat == "full":
        lm.gradient_checkpointing_enable({"use_reentrant": False})
    learning = torch.nn.ModuleList([vit.mlp, fcs, sam.mask_decoder])
    learning.requires_grad_(True).float()
    masters = [p for m in (learning, lm) for p in m.parameters() if p.requires_grad]
    assert {p.dtype for p in masters} == {torch.float32}
    lm.train()
    adam = torch.optim.AdamW(masters, lr=4e-5, weight_decay=0.0)

    x = {name: torch.from_numpy(value).to(device) for name, value in numbers(options).items()}
    pixels, image = (x[name].permute(0, 3, 1, 2).contiguous().to(kind) for name in ("tile", "image"))
    labels = torch.full((options.batch, VISUAL + options.tokens), -100, device=device)
    labels[:, -options.tokens // 2 :] = x["words"][:, -options.tokens // 2 :]
    positions = sam.get_image_wide_positional_embeddings().to(device)
    f = torch.nn.functional

    def loss() -> Any:
        with torch.no_grad():
            patches = vit.vision(pixels).last_hidden_state[:, 1:].reshape(-1, 32, 32, 1024)
            patches = patches.reshape(-1, 16, 2, 16, 2, 1024).transpose(2, 3).reshape(-1, VISUAL, 4096)
            backbone = sam.vision_encoder(image).fpn_hidden_states
        visual = vit.mlp(patches)
        words = lm.get_input_embeddings()(x["words"])
        out = lm(inputs_embeds=torch.cat([visual.to(words.dtype), words], 1), labels=labels, output_hidden_states=True)
        prompt = fcs(out.hidden_states[-1][:, -2:-1])[:, :, None]
        # The two convolutions of the decoder on the finer levels learn, too.
        levels = [level.to(kind) for level in backbone[:3]]
        features = [sam.mask_decoder.conv_s0(levels[0]), sam.mask_decoder.conv_s1(levels[1])]
        features.append(levels[2] + sam.no_memory_embedding.reshape(1, -1, 1, 1).to(kind))
        dense = sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(options.batch, -1, 64, 64)
        masks, scores, *_ = sam.mask_decoder(
            image_embeddings=features[2], image_positional_embeddings=positions.expand(options.batch, -1, -1, -1),
            sparse_prompt_embeddings=prompt, dense_prompt_embeddings=dense, multimask_output=True,
            high_resolution_features=features[:2],
        )  # fmt: skip
        best = scores.argmax(-1)[:, :, None, None, None].expand(-1, -1, 1, 256, 256)
        drawn = torch.gather(masks, 2, best)[:, :, 0].float()
        likely, target = drawn.sigmoid().flatten(2), x["mask"].flatten(2)
        dice = 1 - (2 * (likely * target).sum(-1) + 1) / (likely.sum(-1) + target.sum(-1) + 1)
        return out.loss + 2.0 * f.binary_cross_entropy_with_logits(drawn, x["mask"]) + 0.5 * dice.mean()

    def once() -> Any:
        with torch.autocast(device.type, dtype=kind, enabled=kind != torch.float32):
            total = loss()
        total.backward()
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        return total.item()

    return once, sum(p.numel() for p in masters)


def model_flops(options: argparse.Namespace) -> float:
    """Operations that a step cannot do without, by :mod:`earthmind_jax.plan.flops`."""
    data = DataConfig(batch_size=options.batch, text_length=VISUAL + options.tokens, masks_per_sample=1)
    found = step_flops(dataclasses.replace(run_config(options), data=data), 1).by_component()
    # The formulas have both sensors, of which there is one here.
    halved = ("vision", "projector")
    return sum((e.forward + e.backward) / (2 if name in halved else 1) for name, e in found.items())


def product_rate(dtype: str, side: int = 4096) -> float:
    """Operations / s of one large matrix product in ``dtype``, by XLA: the peak where no data sheet is at hand."""
    a, b = (jnp.asarray(draw(side, side), dtype) for _ in range(2))
    product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
    product(a, b).block_until_ready()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        product(a, b).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * side**3 / min(times)


def utilisation(options: argparse.Namespace, ours_s: float, torch_s: float) -> dict[str, Any]:
    """MFU of both sides (model FLOPs / (time x peak)) and what was taken for the peak."""
    known = running_on() if options.dtype == "bfloat16" else None
    top = known.flops if known else product_rate(options.dtype)
    work = model_flops(options)
    return {
        "model_tflop": round(work / 1e12, 3), "peak_tflops": round(top / 1e12, 3),
        "peak_from": "data sheet" if known else "a product of 4096 x 4096",
        "ours_mfu": round(work / ours_s / top, 3), "torch_mfu": round(work / torch_s / top, 3),
    }  # fmt: skip


SIDES = {"ours": ours, "torch": torch_side}


def peak(options: argparse.Namespace, side: str) -> float:
    """Peak memory in GiB of one side, in a process of its own."""
    plain = [f"--{name}={getattr(options, name)}" for name in ("dtype", "tokens", "batch", "remat")]
    command = [sys.executable, __file__, *plain, "--side", side]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])["peak"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--remat", default="full", choices=["full", "none"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps({"peak": bench_torch.peak_of(lambda: SIDES[options.side](options)[0], options.side)}))
        return
    # First, while this process holds nothing: both sides at once are too much for some machines.
    peaks = {f"{side}_GiB": round(peak(options, side), 2) for side in SIDES} if options.memory else {}
    (run_ours, count), (run_torch, other) = ours(options), torch_side(options)
    if count != other:
        print(f"ours trains {count:,} parameters, PyTorch {other:,}.", file=sys.stderr)
    first, second = alternate(run_ours, run_torch, options.repeats)
    line = {
        "device": jax.devices()[0].device_kind, "cores": len(os.sched_getaffinity(0)), "dtype": options.dtype,
        "batch": options.batch, "tokens": VISUAL + options.tokens, "remat": options.remat, "trainable": count,
        "ours_s": round(first, 3), "torch_s": round(second, 3), "ratio": round(second / first, 3),
    }  # fmt: skip
    print(json.dumps(line | peaks | utilisation(options, first, second)))


if __name__ == "__main__":
    main()
