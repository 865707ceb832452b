"""A whole InternVL against transformers with random weights: tiles, projector, placeholders and language model."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from checkpoints_convert.convert import convert
from earthmind_jax.config import FusionConfig
from earthmind_jax.models import earthmind

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

SIDE, PATCH, TILES, CONTEXT = 112, 14, 3, 100
VISION = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
LANGUAGE = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 101,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 1024,
}
NAMES = (  # pattern in transformers -> the name that InternVL published first
    (r"model\.language_model\.", "language_model.model."),
    (r"lm_head\.", "language_model.lm_head."),
    (r"model\.multi_modal_projector\.layer_norm", "mlp1.0"),
    (r"model\.multi_modal_projector\.linear_1", "mlp1.1"),
    (r"model\.multi_modal_projector\.linear_2", "mlp1.3"),
    (r"model\.vision_tower\.embeddings\.cls_token", "vision_model.embeddings.class_embedding"),
    (r"model\.vision_tower\.embeddings\.position_embeddings", "vision_model.embeddings.position_embedding"),
    (r"model\.vision_tower\.embeddings\.patch_embeddings\.projection", "vision_model.embeddings.patch_embedding"),
    (r"model\.vision_tower\.encoder\.layer\.", "vision_model.encoder.layers."),
    (r"\.lambda_", ".ls"),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.projection_layer\.", ".attn.proj."),
    (r"\.attention\.([qkv])_(proj|norm)\.", r".attn.\1_\2."),
)


def published(norm, qk_norm):
    """A PyTorch model with random weights; its configuration and its tensors as InternVL published them."""
    vision = {"norm_type": norm, "attention_bias": not qk_norm, "layer_norm_eps": 1e-6, "hidden_act": "gelu"}
    vision |= {"image_size": [SIDE] * 2, "patch_size": [PATCH] * 2, "use_qk_norm": qk_norm, "use_mean_pooling": True}
    config = transformers.InternVLConfig(
        vision_config={**VISION, **vision},
        text_config={**LANGUAGE, "tie_word_embeddings": False},
        image_token_id=CONTEXT,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    model = transformers.InternVLForConditionalGeneration(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter += 0.3 * torch.randn(parameter.shape)
        elif "embed" not in name:
            parameter *= 5.0  # the default draw leaves attention nearly uniform
    tensors = {}
    for name, tensor in model.state_dict().items():
        for pattern, ours in NAMES:
            name = re.sub(pattern, ours, name)
        tensors[name] = tensor.clone()
    for name in [name for name in tensors if ".attn.q_proj." in name]:
        parts = [tensors.pop(name.replace("q_proj", f"{x}_proj")) for x in "qkv"]
        tensors[name.replace("q_proj", "qkv")] = torch.cat(parts)
    plain = {"image_size": SIDE, "patch_size": PATCH, "qkv_bias": not qk_norm, "qk_normalization": qk_norm}
    plain |= {"norm_type": norm, "layer_norm_eps": 1e-6, "hidden_act": "gelu"}
    chat = {"vision_config": {**VISION, **plain}, "llm_config": LANGUAGE, "ps_version": "v2", "downsample_ratio": 0.5}
    return model, {**chat, "template": "internvl2_5", "force_image_size": SIDE}, tensors


@pytest.mark.parametrize(("norm", "qk_norm"), [("layer_norm", False), ("rms_norm", True)], ids=["300M", "6B"])
def test_logits_of_a_padded_batch_with_images(norm, qk_norm, tmp_path):
    model, chat, tensors = published(norm, qk_norm)
    safetensors_torch.save_file(tensors, tmp_path / "model.safetensors")
    place = {"place": lambda path, array: jnp.asarray(array)}
    config, params = convert(tmp_path, config=chat, fusion=FusionConfig(mode="concat"), **place)
    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((2, TILES, SIDE, SIDE, 3)).astype(np.float32)
    rows = TILES * config.vision.tokens
    lengths, length = np.array([560, 400]), 560
    tokens = rng.integers(0, CONTEXT, (2, length))
    index = np.full((2, length), -1, np.int32)
    for row, start in enumerate((7, 90)):
        tokens[row, start : start + rows] = CONTEXT
        index[row, start : start + rows] = np.arange(rows)
    used = np.arange(length) < lengths[:, None]
    expected = model(
        input_ids=torch.tensor(tokens),
        pixel_values=torch.tensor(pixels.reshape(-1, SIDE, SIDE, 3)).permute(0, 3, 1, 2),
        attention_mask=torch.tensor(used.astype(np.int64)),
        output_hidden_states=True,
    )

    @jax.jit
    def run(params, tokens, pixels):
        visual = earthmind.encode(config, params, pixels).reshape(2, rows, -1)
        embeds = earthmind.place(earthmind.embed(config, params, tokens), visual, index)
        out = earthmind.language(config, params, embeds, jnp.asarray(lengths), states=True)
        return visual, out.states, earthmind.logits(config, params, out.hidden)

    visual, states, logits = run(params, tokens, pixels)
    theirs = expected.image_hidden_states.reshape(visual.shape).numpy()
    np.testing.assert_allclose(visual, theirs, atol=2e-4, rtol=1e-4)
    for ours, layer in zip(states, expected.hidden_states, strict=True):
        np.testing.assert_allclose(ours[used], layer.numpy()[used], atol=2e-4, rtol=1e-4)
    np.testing.assert_allclose(logits[used], expected.logits.numpy()[used], atol=2e-4, rtol=1e-4)
