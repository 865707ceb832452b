"""A converted model beside the classes of transformers, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from checkpoints_convert.export import tensors_of
from checkpoints_convert.layouts import INTERN_VIT, LAYOUTS
from checkpoints_convert.published_config import lm_to_hf, vision_to_hf
from checkpoints_convert.stored import stored_params, without_adapters
from checkpoints_convert.verify.result import Result, compare
from checkpoints_convert.verify.transformers_models import language_class, language_model, vision_model
from earthmind_jax.config import LmConfig, VisionConfig
from earthmind_jax.errors import UserError
from earthmind_jax.models import functional
from earthmind_jax.models.decoder import Decoder
from earthmind_jax.models.intern_vit import InternViT

TOKENS = 512


def against_live(directory: str | Path) -> list[Result]:
    """Language model (512 random tokens) and vision encoder (one random tile) of a checkpoint, in float32.

    Adapters are folded in. Both models are in memory at once. A language model that transformers has no class for is
    not compared, and its result says so.

    Raises:
      UserError: not a checkpoint, or PyTorch or transformers is not installed.
    """
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise UserError(f"--live needs {error.name}: install the [convert] extra.") from error
    config, stored = without_adapters(*stored_params(directory))
    with jax.default_matmul_precision("highest"):
        return [_language(config.lm, stored), _vision(config.vision, stored)]


def _below(stored: Mapping[str, Any], prefix: str) -> dict[str, np.ndarray]:
    return {path: np.asarray(x[...], np.float32) for path, x in stored.items() if path.startswith(prefix)}


def _state(layout: Any, params: dict[str, np.ndarray]) -> dict[str, Any]:
    """The published tensors of ``params``, as PyTorch has them."""
    import torch

    return {name: torch.from_numpy(np.array(make())) for name, (_, _, make) in tensors_of(layout, params).items()}


def _language(config: LmConfig, stored: Mapping[str, Any]) -> Result:
    import torch

    published = lm_to_hf(config)
    if language_class(published) is None:
        named = published["architectures"][0]
        text = f"language model: not compared, transformers has no {named}; recorded outputs can check it (--recorded)"
        return Result("language model", True, text)
    params = _below(stored, "lm/")
    layout = next(x for x in LAYOUTS if x.covers == ("lm/*",) and x.family == config.family)
    model = language_model(published, _state(layout, params), tied=config.tie)
    tokens = np.random.default_rng(0).integers(0, config.vocab, (1, TOKENS))
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens), output_hidden_states=True)
    module = Decoder(config)

    @jax.jit
    def run(params: Any, tokens: Any) -> Any:
        embeds = functional.apply_module(module, params, "lm", tokens, method="embed")
        out = functional.apply_module(module, params, "lm", embeds, states=True)
        return out.states, functional.apply_module(module, params, "lm", out.hidden, method="logits")

    states, logits = run({path: jnp.asarray(x) for path, x in params.items()}, tokens.astype(np.int32))
    rows = [(f"hidden.{i}", a, b.numpy()) for i, (a, b) in enumerate(zip(states, theirs.hidden_states, strict=True))]
    return compare("language model", [*rows, ("logits", logits, theirs.logits.numpy())])


def _vision(config: VisionConfig, stored: Mapping[str, Any]) -> Result:
    import torch

    params = _below(stored, "vision/")
    model = vision_model(vision_to_hf(config), _state(INTERN_VIT, params))
    pixels = np.random.default_rng(0).standard_normal((1, config.image_size, config.image_size, 3), np.float32)
    with torch.no_grad():
        theirs = model(torch.from_numpy(pixels).permute(0, 3, 1, 2), output_hidden_states=True)
    ours = jax.jit(
        lambda params, pixels: functional.apply_module(InternViT(config), params, "vision", pixels, states=True)
    )({path: jnp.asarray(x) for path, x in params.items()}, pixels)
    pairs = zip(ours.states, theirs.hidden_states, strict=True)
    return compare("vision encoder", [(f"hidden.{i}", a, b.numpy()) for i, (a, b) in enumerate(pairs)])
