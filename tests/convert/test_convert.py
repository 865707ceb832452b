"""Whole conversions of small checkpoints: files and configurations in, configuration and parameters out."""

from __future__ import annotations

import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from checkpoints_convert.convert import absent, convert
from checkpoints_convert.layouts.qwen2 import QWEN2
from checkpoints_convert.plan import source_tree
from checkpoints_convert.source_config import RELEASED, config_from_source, grounding_from_shapes
from earthmind_jax.config import EarthMindConfig, FusionConfig, GroundingConfig, LmConfig, VisionConfig
from earthmind_jax.errors import UserError
from earthmind_jax.models import earthmind, functional
from earthmind_jax.models.decoder import Decoder

HF_LM = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 29, "hidden_size": 24,
    "intermediate_size": 20, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "rope_theta": 5000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip
HF_VISION = {
    "hidden_size": 12, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 16, "image_size": 28,
    "patch_size": 7, "qkv_bias": True, "qk_normalization": False, "norm_type": "layer_norm", "layer_norm_eps": 1e-6,
}  # fmt: skip


def lm_tensors(dtype=np.float32, head=True):
    lm = config_from_source(QWEN2, {"lm_head.weight": ((), None)}, HF_LM)
    shapes = earthmind.shapes(EarthMindConfig(lm=lm, grounding=None))
    tree = {path: (x.shape, dtype) for path, x in shapes.items() if path.startswith("lm/")}
    rng = np.random.default_rng(0)
    sources = source_tree(tree, QWEN2.rules)
    tensors = {name: (0.2 * rng.standard_normal(shape)).astype(dtype) for name, (shape, _) in sources.items()}
    return tensors if head else {name: x for name, x in tensors.items() if name != "lm_head.weight"}


def write(directory, tensors, config):
    directory.mkdir(exist_ok=True)
    save_file(tensors, directory / "model.safetensors")
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_a_language_model_answers_as_in_pytorch(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tensors = lm_tensors()
    write(tmp_path, tensors, HF_LM)
    config, params = convert(tmp_path)
    assert isinstance(config, LmConfig)
    assert (config.heads, config.kv_heads, config.head_dim, config.rope.theta, config.tie) == (6, 2, 4, 5000.0, False)
    model = transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(**{key: value for key, value in HF_LM.items() if key != "architectures"})
    )
    model.load_state_dict({name: torch.from_numpy(x) for name, x in tensors.items()})
    ids = np.random.default_rng(1).integers(0, 29, (2, 11))
    with torch.no_grad():
        theirs = model.eval()(torch.from_numpy(ids)).logits.numpy()
    params = {path: jnp.asarray(x) for path, x in params.items()}
    embeds = functional.apply_module(Decoder(config), params, "lm", ids, method="embed")
    hidden = functional.apply_module(Decoder(config), params, "lm", embeds).hidden
    ours = functional.apply_module(Decoder(config), params, "lm", hidden, method="logits")
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_dtypes_and_placement(tmp_path):
    write(tmp_path, lm_tensors(ml_dtypes.bfloat16), HF_LM)
    _, kept = convert(tmp_path / "model.safetensors")
    assert {x.dtype for x in kept.values()} == {np.dtype(ml_dtypes.bfloat16)}
    _, cast = convert(tmp_path, dtype=np.float32, place=lambda path, x: jnp.asarray(x))
    assert all(isinstance(x, jnp.ndarray) and x.dtype == jnp.float32 for x in cast.values())
    for path, x in cast.items():
        np.testing.assert_array_equal(np.asarray(x), kept[path].astype(np.float32))


def test_a_missing_head_means_a_tied_one(tmp_path):
    config, params = convert(write(tmp_path, lm_tensors(head=False), HF_LM))
    assert config.tie
    assert "lm/head/kernel" not in params
    config, params = convert(write(tmp_path, lm_tensors(), {**HF_LM, "tie_word_embeddings": True}))
    assert config.tie
    assert "lm/head/kernel" not in params


def chat(tmp_path, extra=(), **options):
    """An InternVL checkpoint of random weights (with ``extra`` tensors), and its configuration."""
    from checkpoints_convert.layouts.internvl import INTERNVL

    published = {
        "vision_config": HF_VISION, "llm_config": HF_LM, "template": "internvl2_5", "ps_version": "v2",
        "downsample_ratio": 0.5, "force_image_size": 28, "max_dynamic_patch": 7, "use_thumbnail": False, **options,
    }  # fmt: skip
    config = config_from_source(INTERNVL[0], {"language_model.lm_head.weight": ((), None)}, published)
    rng = np.random.default_rng(0)
    tree = {path: (x.shape, np.float32) for path, x in earthmind.shapes(config).items()}
    tensors = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, (shape, _) in source_tree(tree, INTERNVL[0].rules).items()
    }
    return write(tmp_path, {**tensors, **dict(extra)}, published)


def test_a_chat_model(tmp_path):
    config, params = convert(chat(tmp_path))
    assert isinstance(config, EarthMindConfig)
    assert (config.template, config.sensors.max_tiles, config.sensors.thumbnail) == ("internvl2_5", 7, False)
    assert config.vision.pixel_shuffle_version == "v2"
    assert config.grounding is None
    assert config.fusion == FusionConfig()
    missing = absent(config, params)
    assert missing
    assert all(path.startswith("fusion/") for path in missing)
    concat, params = convert(tmp_path, fusion=FusionConfig(mode="concat"))
    assert absent(concat, params) == []


def test_the_query_of_a_release(tmp_path):
    query = np.random.default_rng(2).standard_normal((2, 24)).astype(np.float32)
    chat(tmp_path, {"local_query": query}, template="phi3-chat")
    config, params = convert(tmp_path)
    assert (config.fusion, config.template) == (RELEASED, "phi3_chat")
    assert "fusion/local_query" not in params
    _, params = convert(tmp_path, fusion=FusionConfig(mode="release_2025_06", grounding="sar"))
    np.testing.assert_array_equal(params["fusion/local_query"], query)


def test_bad_requests(tmp_path):
    bare = write(tmp_path / "bare", lm_tensors(), None)
    with pytest.raises(UserError, match=r"layout 'Qwen2' needs its config\.json"):
        convert(bare)
    (bare / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        convert(bare)
    other = write(tmp_path / "other", {"weight": np.zeros(2, np.float32)}, {})
    with pytest.raises(UserError, match="of no known layout"):
        convert(other)
    wrong = write(tmp_path / "wrong", lm_tensors(), {**HF_LM, "num_hidden_layers": 2, "intermediate_size": 21})
    with pytest.raises(UserError) as caught:
        convert(wrong)
    for part in ("model.layers.2.mlp.down_proj.weight' is one layer too many", "needs (21, 24)"):
        assert part in str(caught.value)
    for changed, message in (
        ({"vision_config": None}, "lacks vision_config"),
        ({"vision_config": {**HF_VISION, "patch_size": None}}, "lacks patch_size"),
        ({"vision_config": {**HF_VISION, "hidden_act": "relu"}}, "relu is not supported"),
        ({"force_image_size": 56}, "must agree"),
    ):
        directory = chat(tmp_path / "chat")
        published = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**published, **changed}))
        with pytest.raises(UserError, match=message):
            convert(directory)


def test_sizes_that_are_read_off_the_weights():
    def shapes(width, blocks, version):
        names = {f"image_encoder.trunk.blocks.{i}.norm1.weight": ((width,), None) for i in range(blocks)}
        names["image_encoder.trunk.pos_embed"] = (1, width, 7, 7), None
        return names | ({"no_obj_embed_spatial": ((1, 64), None)} if version == "2.1" else {})

    assert grounding_from_shapes(shapes(144, 48, "2.0")) == GroundingConfig()
    small = grounding_from_shapes(shapes(96, 16, "2.1"))
    assert (small.version, sum(small.stages)) == ("2.1", 16)
    with pytest.raises(UserError, match="not a published size"):
        grounding_from_shapes(shapes(50, 3, "2.0"))


def test_a_vision_encoder_alone(tmp_path):
    from checkpoints_convert.layouts import INTERN_VIT

    config = config_from_source(INTERN_VIT, {}, HF_VISION)
    assert isinstance(config, VisionConfig)
    tree = {
        path: (x.shape, np.float32)
        for path, x in earthmind.shapes(EarthMindConfig(vision=config, grounding=None)).items()
        if path.startswith("vision/")
    }
    tensors = {name: np.ones(shape, np.float32) for name, (shape, _) in source_tree(tree, INTERN_VIT.rules).items()}
    ours, params = convert(write(tmp_path, tensors, HF_VISION))
    assert ours == config
    assert set(params) == set(tree)
