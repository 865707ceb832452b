"""InternViT and its projector against the independent PyTorch code in transformers, random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earthmind_jax.config import Precision, VisionConfig
from earthmind_jax.models.functional import apply_module
from earthmind_jax.models.intern_vit import InternViT
from earthmind_jax.models.projector import Projector, TextHiddenFcs

torch = pytest.importorskip("torch")
internvl = pytest.importorskip("transformers.models.internvl.modeling_internvl")

CONFIG = VisionConfig(image_size=56, patch_size=14, width=48, depth=3, heads=4, mlp=80, scan=True)


def _random(model):
    """Weights large enough that every part matters, norms and layer scales included."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
        parameter.data = noise * spread + (parameter.data.mean() if parameter.ndim == 1 else 0.0)
    return model.eval().requires_grad_(False)


def _vision(config):
    published = internvl.InternVLVisionConfig(
        hidden_size=config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        intermediate_size=config.mlp,
        image_size=[config.image_size] * 2,
        patch_size=[config.patch_size] * 2,
        norm_type=config.norm,
        use_qk_norm=config.qk_norm,
        attention_bias=config.qkv_bias,
        layer_norm_eps=config.norm_eps,
        layer_scale_init_value=config.layer_scale_init,
        hidden_act="gelu",
        use_mean_pooling=True,  # no final norm
        attn_implementation="eager",
    )
    return _random(internvl.InternVLVisionModel(published))


def _params(model, config):
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    width, heads, head = config.width, config.heads, config.head_dim
    params = {
        "class_embedding": state["embeddings.cls_token"][0, 0],
        "position_embedding": state["embeddings.position_embeddings"][0],
        "patch_embedding/kernel": state["embeddings.patch_embeddings.projection.weight"].transpose(2, 3, 1, 0),
        "patch_embedding/bias": state["embeddings.patch_embeddings.projection.bias"],
    }
    names = {
        "ls1": "lambda_1",
        "ls2": "lambda_2",
        "norm1/scale": "layernorm_before.weight",
        "norm1/bias": "layernorm_before.bias",
        "norm2/scale": "layernorm_after.weight",
        "norm2/bias": "layernorm_after.bias",
        "attn/q_norm/scale": "attention.q_norm.weight",
        "attn/k_norm/scale": "attention.k_norm.weight",
        "attn/out/bias": "attention.projection_layer.bias",
        "mlp/fc1/bias": "mlp.fc1.bias",
        "mlp/fc2/bias": "mlp.fc2.bias",
    }
    shapes = {
        "attn/out/kernel": ("attention.projection_layer.weight", (heads, head, width)),
        "mlp/fc1/kernel": ("mlp.fc1.weight", (width, config.mlp)),
        "mlp/fc2/kernel": ("mlp.fc2.weight", (config.mlp, width)),
    }
    for letter in "qkv":
        shapes[f"attn/{letter}/kernel"] = (f"attention.{letter}_proj.weight", (width, heads, head))
        shapes[f"attn/{letter}/bias"] = (f"attention.{letter}_proj.bias", (heads, head))
    shapes |= {ours: (theirs, (-1,)) for ours, theirs in names.items()}
    for ours, (theirs, shape) in shapes.items():
        layers = [state.get(f"encoder.layer.{layer}.{theirs}") for layer in range(config.depth)]
        if layers[0] is not None:
            params[f"blocks/{ours}"] = np.stack([layer.T.reshape(shape) for layer in layers])
    return {path: jnp.asarray(value) for path, value in params.items()}


@pytest.mark.parametrize(
    "changes",
    [{}, {"norm": "rms_norm"}, {"qk_norm": True}, {"norm": "rms_norm", "qk_norm": True, "qkv_bias": False}],
    ids=["layer_norm", "rms_norm", "qk_norm", "6B"],
)
def test_hidden_states_at_any_size(changes):
    config = VisionConfig(**{**CONFIG.__dict__, **changes})
    model = _vision(config)
    params, module = _params(model, config), InternViT(config)
    for height, width in [(56, 56), (84, 112), (28, 70)]:  # equal, larger and smaller than the position embedding
        pixels = np.random.default_rng(height).normal(size=(2, height, width, 3)).astype(np.float32)
        expected = model(torch.tensor(pixels).permute(0, 3, 1, 2), output_hidden_states=True)
        out = apply_module(module, params, "", pixels, states=True)
        np.testing.assert_allclose(out.hidden, expected.last_hidden_state.numpy(), atol=2e-4)
        assert out.states.shape[0] == config.depth + 1
        for ours, theirs in zip(out.states, expected.hidden_states, strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-4)
        patches = expected.last_hidden_state[:, 1:].reshape(2, height // 14, width // 14, config.width)
        np.testing.assert_allclose(out.features, patches.numpy(), atol=2e-4)


@pytest.mark.parametrize("changes", [{}, {"norm": "rms_norm", "qk_norm": True, "qkv_bias": False}], ids=["300M", "6B"])
def test_bfloat16_drifts_no_more_than_in_pytorch(changes):
    """Relative error of the features against float32 with the same, rounded, weights."""
    config = VisionConfig(**{**CONFIG.__dict__, **changes})
    model = _vision(config).bfloat16()
    pixels = np.random.default_rng(0).normal(size=(2, 56, 56, 3)).astype(np.float32)
    low = model(torch.tensor(pixels).permute(0, 3, 1, 2).bfloat16()).last_hidden_state.float().numpy()
    high = model.float()(torch.tensor(pixels).permute(0, 3, 1, 2)).last_hidden_state.numpy()

    def ours(dtype):
        params = {path: value.astype(dtype) for path, value in _params(model, config).items()}
        module = InternViT(config, Precision(param=dtype, compute=dtype))
        return np.asarray(apply_module(module, params, "", pixels).hidden, np.float32)

    def drift(low, high):
        return float(np.linalg.norm(low - high) / np.linalg.norm(high))

    exact = ours("float32")
    assert drift(exact, high) < 1e-5
    assert 1e-3 < drift(ours("bfloat16"), exact) < 1.25 * drift(low, high) < 0.02


def test_projector():
    features = np.random.default_rng(0).normal(size=(2, 6, 4, 16)).astype(np.float32)
    published = internvl.InternVLConfig(
        vision_config={"hidden_size": 16},
        text_config={"model_type": "qwen2", "hidden_size": 24},
        downsample_ratio=0.5,
        projector_hidden_act="gelu",
    )
    mlp = _random(internvl.InternVLMultiModalProjector(published))
    state = {name: jnp.asarray(value.numpy().T) for name, value in mlp.state_dict().items()}
    params = {
        "norm/scale": state["layer_norm.weight"],
        "norm/bias": state["layer_norm.bias"],
        "fc1/kernel": state["linear_1.weight"],
        "fc1/bias": state["linear_1.bias"],
        "fc2/kernel": state["linear_2.weight"],
        "fc2/bias": state["linear_2.bias"],
    }
    blocks = torch.tensor(features).reshape(2, 3, 2, 2, 2, 16).permute(0, 1, 3, 2, 4, 5)  # v2: row-major space to depth
    expected = mlp(blocks.reshape(2, 6, 64)).numpy()
    np.testing.assert_allclose(apply_module(Projector(24), params, "", features), expected, atol=1e-5)


def test_text_hidden_fcs():
    model = _random(torch.nn.Sequential(torch.nn.Linear(24, 24), torch.nn.ReLU(), torch.nn.Linear(24, 8)))
    params = {
        f"{ours}/{kind}": jnp.asarray(getattr(model[index], theirs).numpy().T)
        for ours, index in (("fc1", 0), ("fc2", 2))
        for kind, theirs in (("kernel", "weight"), ("bias", "bias"))
    }
    hidden = jax.random.normal(jax.random.key(0), (2, 3, 24))
    expected = model(torch.tensor(np.asarray(hidden))).numpy()
    np.testing.assert_allclose(apply_module(TextHiddenFcs(8), params, "", hidden), expected, atol=1e-5)
