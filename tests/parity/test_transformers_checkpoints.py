"""Directories that the transformers library writes, through the converter, against the classes that wrote them."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from checkpoints_convert.convert import convert
from earthmind_jax.config import EarthMindConfig, GroundingConfig, Precision
from earthmind_jax.errors import UserError
from earthmind_jax.models import earthmind, functional
from earthmind_jax.models.decoder import Decoder
from earthmind_jax.models.sam2 import ImageEncoder, MaskHead

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LENGTH = 520


def shake(model, seed=0):
    """Random weights without special values: biases and norms are drawn too, matrices are large enough to matter."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(0.3 * torch.randn(parameter.shape) + ("norm" in name and name.endswith("weight")))
            else:
                fan_in = np.prod(parameter.shape[1:]) if parameter.ndim > 1 else 1
                parameter.copy_(torch.randn(parameter.shape) / max(float(fan_in) ** 0.5, 1.0))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module", params=["tied", "untied_qk_norm"])
def internvl(request, tmp_path_factory):
    plain = request.param == "tied"
    published = transformers.InternVLConfig(
        vision_config={
            "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 24,
            "image_size": [32, 32], "patch_size": [8, 8], "attention_bias": plain, "use_qk_norm": not plain,
            "norm_type": "layer_norm" if plain else "rms_norm",
        },
        text_config={
            "model_type": "qwen2", "vocab_size": 99, "hidden_size": 24, "intermediate_size": 40,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": plain,
            "rope_parameters": {"rope_theta": 5e4, "rope_type": "default"},
        },
        image_token_id=90, tie_word_embeddings=plain, attn_implementation="eager",
    )  # fmt: skip
    model = shake(transformers.InternVLForConditionalGeneration(published))
    path = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(path)
    return model, path


def answer(config, params, tiles, ids):
    """Logits of ``ids`` with the tokens of ``tiles`` [I H W 3] at the image tokens (id 90)."""
    params = {path: jnp.asarray(x) for path, x in params.items()}

    @jax.jit
    def run(params, tiles, ids):
        visual = earthmind.encode(config, params, tiles[None])
        visual = visual.reshape(1, -1, visual.shape[-1])
        index = jnp.where(ids == 90, jnp.cumsum(ids == 90, -1) - 1, -1)
        embeds = earthmind.place(earthmind.embed(config, params, ids), visual, index)
        return earthmind.logits(config, params, earthmind.language(config, params, embeds).hidden)

    return run(params, tiles, ids)


def prompt():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 90, (1, LENGTH))
    ids[0, 7:15] = 90  # two tiles of four tokens
    return rng.standard_normal((2, 3, 32, 32)).astype(np.float32), ids


def test_internvl_answers_as_in_transformers(internvl):
    model, path = internvl
    config, params = convert(path)
    assert isinstance(config, EarthMindConfig)
    assert config.lm.tie is model.config.tie_word_embeddings
    pixels, ids = prompt()
    theirs = model(input_ids=torch.from_numpy(ids), pixel_values=torch.from_numpy(pixels)).logits.numpy()
    ours = answer(config, params, np.moveaxis(pixels, 1, -1), ids)
    np.testing.assert_allclose(ours, theirs, atol=2e-4, rtol=1e-4)
    assert np.abs(theirs).max() > 0.5


def test_internvl_as_its_modules_nest(internvl, tmp_path):
    """A file written from the modules' own names gives the same parameters."""
    model, path = internvl
    state = {name: x.clone().numpy() for name, x in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight")
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((path / "config.json").read_text())
    config, params = convert(path)
    other, same = convert(tmp_path)
    assert other == config
    assert set(same) == set(params)
    for name, value in params.items():
        np.testing.assert_array_equal(same[name], value)


@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        ("vision_config", "use_mean_pooling", False, "use_mean_pooling = False is not supported"),
        ("vision_config", "image_size", [32, 64], "must be square"),
        (None, "vision_feature_select_strategy", "full", "'full' is not supported"),
        (None, "vision_feature_layer", [-1, -2], "is not supported"),
        (None, "text_config", {"model_type": "lama"}, "No language-model family"),
    ],
)
def test_internvl_that_would_be_computed_otherwise(internvl, tmp_path, section, field, value, message):
    _, path = internvl
    config = json.loads((path / "config.json").read_text())
    (config if section is None else config[section])[field] = value
    with pytest.raises(UserError, match=message):
        convert(path, config=config)


SAM2 = GroundingConfig(
    image_size=128, embed_dim=12, heads=2, stages=(1, 2, 3, 2), global_blocks=(4,), windows=(8, 4, 6, 3),
    pos_grid=(6, 5), width=32, decoder_heads=4, decoder_mlp=48, iou_hidden=24, stability=True,
)  # fmt: skip


@pytest.fixture(scope="module", params=["Sam2Model", "Sam2VideoModel"])
def sam2(request, tmp_path_factory):
    widths = list(SAM2.stage_widths)
    trunk = transformers.Sam2HieraDetConfig(
        hidden_size=SAM2.embed_dim, num_attention_heads=SAM2.heads, image_size=[128, 128],
        window_positional_embedding_background_size=list(SAM2.pos_grid), blocks_per_stage=list(SAM2.stages),
        embed_dim_per_stage=widths, num_attention_heads_per_stage=[2, 4, 8, 16],
        window_size_per_stage=list(SAM2.windows), global_attention_blocks=list(SAM2.global_blocks),
    )  # fmt: skip
    parts = {
        "vision_config": transformers.Sam2VisionConfig(
            backbone_config=trunk, backbone_channel_list=widths[::-1], fpn_hidden_size=SAM2.width,
            backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]], fpn_top_down_levels=list(SAM2.top_down_levels),
        ),
        "prompt_encoder_config": transformers.Sam2PromptEncoderConfig(hidden_size=SAM2.width, image_size=128),
        "mask_decoder_config": transformers.Sam2MaskDecoderConfig(
            hidden_size=SAM2.width, mlp_dim=SAM2.decoder_mlp, num_attention_heads=SAM2.decoder_heads,
            iou_head_hidden_dim=SAM2.iou_hidden,
        ),
    }  # fmt: skip
    torch.set_num_threads(1)
    if request.param == "Sam2Model":
        model = shake(transformers.Sam2Model(transformers.Sam2Config(**parts)))
    else:
        memory = {
            "memory_attention_hidden_size": 32, "memory_attention_feed_forward_hidden_size": 40,
            "memory_encoder_hidden_size": 32, "memory_encoder_output_channels": 8, "memory_fuser_embed_dim": 32,
            "memory_fuser_intermediate_dim": 48, "mask_downsampler_embed_dim": 32,
            "memory_attention_rope_feat_sizes": [8, 8], "memory_attention_num_layers": 1, "image_size": 128,
        }  # fmt: skip
        model = shake(transformers.Sam2VideoModel(transformers.Sam2VideoConfig(**parts, **memory)))
    with torch.no_grad():
        gaussian = torch.randn(model.prompt_encoder.shared_embedding.positional_embedding.shape)
        model.prompt_encoder.shared_embedding.positional_embedding.copy_(gaussian)
        model.shared_image_embedding.positional_embedding.copy_(gaussian)
    path = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(path)
    return request.param, model, path


def test_sam2_segments_as_in_transformers(sam2):
    name, model, path = sam2
    # That library fixes the width of memories at 64, which is more than this model's: with it in test_sam2_video.
    config, params = convert(path, memory=False)
    assert (config.version, config.stages, config.width) == ("2.1" if "Video" in name else "2.0", SAM2.stages, 32)
    memory = ("memory_dim", "memory_layers", "memory_mlp", "version")
    assert config == dataclasses.replace(SAM2, **{field: getattr(config, field) for field in memory})
    params = {path: jnp.asarray(x) for path, x in params.items()}
    image = np.random.default_rng(0).standard_normal((2, 3, 128, 128)).astype(np.float32)
    features = jax.jit(lambda x: functional.apply_module(ImageEncoder(config, Precision()), params, "grounding", x))(
        np.moveaxis(image, 1, -1)
    )
    pyramid = model.get_image_embeddings(torch.from_numpy(image)) if name == "Sam2Model" else None
    if pyramid is None:  # the video model encodes frames without the embedding of absent memory
        levels = model.vision_encoder(torch.from_numpy(image)).fpn_hidden_states
        pyramid = [model.mask_decoder.conv_s0(levels[0]), model.mask_decoder.conv_s1(levels[1])]
        pyramid.append(levels[2] + torch.tensor(np.asarray(params["grounding/no_mem_embed"]))[:, None, None])
    ours = (*features.high, features.embed + params["grounding/no_mem_embed"])
    for mine, other in zip(ours, pyramid, strict=True):
        np.testing.assert_allclose(np.moveaxis(np.asarray(mine), -1, 1), np.asarray(other), atol=2e-4)
    if name != "Sam2Model":
        return
    rng = np.random.default_rng(1)
    points = rng.uniform(0, 127, (2, 3, 2, 2)).astype(np.float32)
    labels = rng.integers(0, 2, (2, 3, 2)).astype(np.int32)
    theirs = model(
        image_embeddings=pyramid, input_points=torch.from_numpy(points), input_labels=torch.from_numpy(labels)
    )
    head = MaskHead(config, Precision())
    masks = jax.jit(
        lambda f: functional.apply_module(head, params, "grounding", f, points=points, labels=labels, method="predict")
    )(features)
    np.testing.assert_allclose(masks.logits, theirs.pred_masks, atol=1e-3)
    np.testing.assert_allclose(masks.iou, theirs.iou_scores, atol=2e-4)
    np.testing.assert_allclose(masks.object_score, theirs.object_score_logits[..., 0], atol=2e-4)


def test_sam2_that_would_be_computed_otherwise(sam2, tmp_path):
    _, _, path = sam2
    published = json.loads((path / "config.json").read_text())
    published["mask_decoder_config"]["attention_downsample_rate"] = 4
    with pytest.raises(UserError, match="attention_downsample_rate' is 4; only 2 is supported"):
        convert(path, config=published)
    save_file(load_file(path / "model.safetensors"), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"needs its config\.json"):
        convert(tmp_path)


LM = {
    "vocab_size": 97, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rope_theta": 5e4, "tie_word_embeddings": False,
}  # fmt: skip
ADAPTER = {
    "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "o_proj", "down_proj", "lm_head"],
    "rank_pattern": {"layers.1.self_attn.q_proj": 2, "down_proj": 3}, "alpha_pattern": {"down_proj": 5},
}  # fmt: skip


def write_adapter(directory, model, config, skip=()):
    """Random adapters of ``model`` in a directory of PEFT; its weights with them folded in, W + scale B A."""
    rng, tensors, state = np.random.default_rng(5), {}, {k: v.clone() for k, v in model.state_dict().items()}
    for name, module in model.named_modules():
        leaf = name.rpartition(".")[2]
        if leaf not in config["target_modules"] or name in skip:
            continue
        rank = {"q_proj": 2 if "layers.1." in name else 4, "down_proj": 3}.get(leaf, 4)
        alpha = 5 if leaf == "down_proj" else 8
        out, inputs = module.weight.shape
        a, b = (rng.standard_normal(s).astype(np.float32) * 0.3 for s in ((rank, inputs), (out, rank)))
        tensors |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
        scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
        state[name + ".weight"] += scale * torch.from_numpy(b) @ torch.from_numpy(a)
    directory.mkdir()
    save_file(tensors, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return state


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("merge", [False, True])
def test_adapters_of_peft(tmp_path, rslora, merge):
    """Ranks and scales that differ, a layer without factors, and the head; 520 tokens."""
    model = shake(transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**LM, attn_implementation="eager")))
    model.save_pretrained(tmp_path / "base")
    state = write_adapter(
        tmp_path / "adapter", model, {**ADAPTER, "use_rslora": rslora}, skip=("model.layers.2.mlp.down_proj",)
    )
    config, params = convert(tmp_path / "base", adapters=tmp_path / "adapter", merge=merge)
    factors = {path for path in params if path.startswith("lora/")}
    layers = ("blocks/attn/q", "blocks/attn/o", "blocks/mlp/down", "head")
    assert factors == (set() if merge else {f"lora/lm/{layer}/{x}" for layer in layers for x in "ab"})
    assert (config.lora is None) is merge
    model.load_state_dict(state)
    ids = np.random.default_rng(1).integers(0, 97, (1, LENGTH))
    theirs = model(torch.from_numpy(ids)).logits.numpy()
    decoder = Decoder(config)
    params = {path: jnp.asarray(x) for path, x in params.items()}

    @jax.jit
    def run(params, ids):
        embeds = functional.apply_module(decoder, params, "lm", ids, method="embed")
        hidden = functional.apply_module(decoder, params, "lm", embeds).hidden
        return functional.apply_module(decoder, params, "lm", hidden, method="logits")

    np.testing.assert_allclose(run(params, ids), theirs, atol=2e-4, rtol=1e-4)


def test_the_library_itself_agrees(tmp_path):
    """The adapted model as PEFT loads it, where that is installed."""
    peft = pytest.importorskip("peft")
    model = shake(transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**LM, attn_implementation="eager")))
    model.save_pretrained(tmp_path / "base")
    options = {name: value for name, value in ADAPTER.items() if name != "peft_type"}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**options, use_rslora=True, task_type="CAUSAL_LM"))
    shake(adapted, 3)
    adapted.save_pretrained(tmp_path / "adapter")
    state = {name: x.clone().numpy() for name, x in adapted.state_dict().items() if ".lora_" not in name}
    base = {name.replace("base_model.model.", "").replace("base_layer.", ""): x for name, x in state.items()}
    save_file(
        {name: np.ascontiguousarray(x) for name, x in base.items()},
        tmp_path / "base" / "model.safetensors",
    )
    config, params = convert(tmp_path / "base", adapters=tmp_path / "adapter")
    ids = np.random.default_rng(1).integers(0, 97, (1, LENGTH))
    theirs = adapted(torch.from_numpy(ids)).logits.numpy()
    decoder = Decoder(config)
    embeds = functional.apply_module(decoder, params, "lm", ids, method="embed")
    hidden = functional.apply_module(decoder, params, "lm", embeds).hidden
    ours = functional.apply_module(decoder, params, "lm", hidden, method="logits")
    np.testing.assert_allclose(ours, theirs, atol=2e-4, rtol=1e-4)
