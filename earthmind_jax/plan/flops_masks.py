"""Operations of SAM2: the image encoder and the mask decoder (see :mod:`earthmind_jax.plan.flops`)."""

from __future__ import annotations

import math

from earthmind_jax.config import GroundingConfig, RunConfig
from earthmind_jax.models.hiera import block_specs
from earthmind_jax.plan.ledger import Ledger

TRUNK, NECK, DECODER = "grounding/trunk", "grounding/neck", "grounding/decoder"
SPARSE = 3  # tokens of a language prompt: two of "no point", and the prompt


def count(ledger: Ledger, config: RunConfig, speaks: bool) -> None:
    """Add everything from the grounding images and the ``[SEG]`` states to the mask logits."""
    model, data = config.model, config.data
    assert model.grounding is not None
    kinds = int(speaks) + int(config.loss.phrase > 0)
    images = data.batch_size * (2 if model.fusion.grounding == "fused" else 1)
    upstream = ledger.learns("vision/", "projector/", "fusion/", "lm/")
    objects = data.batch_size * data.masks_per_sample * kinds
    ledger.layers("mask decoder", ["text_hidden_fcs/fc1"], objects, active=upstream)
    ledger.layers("mask decoder", ["text_hidden_fcs/fc2"], objects, active=upstream or ledger.learns("text_hidden_fcs"))
    _encoder(ledger, model.grounding, images)
    _pyramid(ledger, model.grounding, images)
    blended = model.fusion.grounding == "fused" and ledger.learns("vision/", "projector/", "fusion/", "lm/embed")
    image = blended or ledger.learns(TRUNK, NECK, "pyramid/", "grounding/no_mem_embed", "grounding/prompt")
    prompts = upstream or ledger.learns("text_hidden_fcs")
    # A mark is as many tokens as a language prompt: two points, and one of "no point".
    objects += data.batch_size * (config.loss.marks or data.masks_per_sample) * (config.loss.mark > 0)
    _decoder(ledger, model.grounding, data.batch_size, objects, image, prompts or ledger.learns(DECODER))


def _encoder(ledger: Ledger, g: GroundingConfig, images: int) -> None:
    """Trunk and neck. Windows are filled up with zeros, which are multiplied like any token."""
    active = ledger.learns(TRUNK)
    side, width = g.image_size // 4, g.embed_dim
    ledger.layers("SAM2", [f"{TRUNK}/patch_embed"], images * side**2, active=False)
    stages = []
    for index, spec in enumerate(block_specs(g)):
        path = f"{TRUNK}/block_{index}"
        window = spec.window or side
        padded, half = -(-side // window) * window, 2 if spec.pool else 1
        windows, keys = (padded // window) ** 2, window**2
        ledger.layers("SAM2", [f"{path}/attn/{name}" for name in "qkv"], images * padded**2, active=active)
        if width != spec.width:
            ledger.layers("SAM2", [f"{path}/proj"], images * side**2, active=active)
        queries = (window // half) ** 2
        ledger.attention("SAM2", images * windows, queries, keys, spec.width, spec.heads, active=active)
        ledger.layers("SAM2", [f"{path}/attn/out"], images * windows * queries, active=active)
        side, width = side // half, spec.width
        ledger.layers("SAM2", [f"{path}/mlp/fc1", f"{path}/mlp/fc2"], images * side**2, active=active)
        if spec.last:
            stages.append(side)
    used = [level for level in range(4) if level < 3 or 2 in g.top_down_levels]  # the coarsest feeds the next alone
    for level in used:
        ledger.layers("SAM2", [f"{NECK}/lateral_{level}"], images * stages[level] ** 2, active=active)
    for level, name in ((0, "conv_s0"), (1, "conv_s1")):
        layer = [f"{DECODER}/{name}"]
        ledger.layers("SAM2", layer, images * stages[level] ** 2, active=ledger.learns(TRUNK, NECK))


def _pyramid(ledger: Ledger, g: GroundingConfig, images: int) -> None:
    """Both sensors' maps run on every image."""
    if "pyramid/embed" not in ledger.shapes:
        return
    below = ledger.learns(TRUNK, NECK)
    for name, stride in (("embed", 16), ("high_0", 4), ("high_1", 8)):
        active = below or (stride != 16 and ledger.learns(f"{DECODER}/conv_s"))
        ledger.weight("SAM2", f"pyramid/{name}", images * (g.image_size // stride) ** 2, active=active)


def _decoder(ledger: Ledger, g: GroundingConfig, batch: int, objects: int, image: bool, active: bool) -> None:
    """The two-way transformer on ``objects`` prompts; the first block's view of the image is shared by its objects."""
    cells, tokens = (g.image_size // 16) ** 2, 3 + g.multimask_outputs + SPARSE
    rows, component, root = objects * tokens, "mask decoder", f"{DECODER}/transformer"

    def layers(path: str, names: str, count: int, wanted: bool) -> None:
        paths = [f"{path}/{'out' if name == 'o' else name}" for name in names]
        ledger.layers(component, paths, count, active=wanted)

    def attention(count: int, queries: int, keys: int, reduce: int = 2) -> None:
        ledger.attention(component, count, queries, keys, g.width // reduce, g.decoder_heads, active=active)

    for index in range(g.decoder_depth):
        path, shared = f"{root}/layer_{index}", index == 0
        seen, wanted = (batch if shared else objects) * cells, image if shared else active
        layers(f"{path}/self_attn", "qkvo", rows, active)
        attention(objects, tokens, tokens, 1)
        layers(f"{path}/token_to_image", "qo", rows, active)
        layers(f"{path}/token_to_image", "kv", seen, wanted)
        attention(objects, tokens, cells)
        ledger.layers(component, [f"{path}/mlp/fc1", f"{path}/mlp/fc2"], rows, active=active)
        layers(f"{path}/image_to_token", "q", seen, wanted)
        layers(f"{path}/image_to_token", "kv", rows, active)
        attention(objects, cells, tokens)
        layers(f"{path}/image_to_token", "o", objects * cells, active)
    layers(f"{root}/final_attn", "qo", rows, active)
    layers(f"{root}/final_attn", "kv", objects * cells, active)
    attention(objects, tokens, cells)
    for name, count in (("upscale1", 1), ("upscale2", 4)):
        ledger.weight(component, f"{DECODER}/{name}/kernel", objects * cells * count, active=active)
    ledger.layers(component, ledger.below(f"{DECODER}/hyper/"), objects, active=active)
    # Only the choice among the masks reads the predicted quality, and no loss the object score.
    for path in ledger.below(f"{DECODER}/iou_head/"):
        ledger.add(component, 2.0 * objects * math.prod(ledger.shapes[f"{path}/kernel"]))
    logits = 2.0 * objects * 16 * cells * (g.width // 8)
    ledger.add(component, logits, 2 * logits if active else 0.0)
