"""A directory of the PEFT library: ``adapter_config.json`` and ``adapter_model.safetensors`` (or ``.bin``)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints_convert.adapters import Factors, pairs, without_factors
from checkpoints_convert.layouts.lora import A, B
from checkpoints_convert.layouts.training import published_names
from checkpoints_convert.reader import Source, open_source
from earthmind_jax.config import nearest, require
from earthmind_jax.errors import UserError

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

# Options that change what an adapter computes, and the values that keep it plain LoRA.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "fan_in_fan_out": (False, None),
    "lora_bias": (False, None),
    "megatron_config": (None,),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []),
    # Others (pissa, olora, loftq, corda) subtract the adapter's first value from the weights that they adapt.
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}

# Module paths inside different wrappers of one language model; the first one below which the base has the weight.
_NESTINGS = (
    (r"^", ""),
    (r"^", "language_model."),
    (r"^language_model\.", ""),
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head$", "language_model.lm_head"),
    (r"^language_model\.model\.", "model.language_model."),
    (r"^language_model\.lm_head$", "lm_head"),
)


@dataclass(frozen=True)
class Peft:
    """An open adapter directory: its factors by module, and the tensors that it holds in full (``modules_to_save``)."""

    path: Path
    factors: Mapping[str, Factors]
    whole: Source


def is_peft(path: Path) -> bool:
    """Whether ``path`` looks like a directory of PEFT."""
    return path.is_dir() and ((path / CONFIG).is_file() or any((path / name).is_file() for name in WEIGHTS))


def open_peft(path: str | Path) -> Peft:
    """Read an adapter directory.

    Raises:
      UserError: if a file is missing or broken, or the adapter is more than plain LoRA.
    """
    path = Path(path)
    config = _config(path)
    files = [path / name for name in WEIGHTS if (path / name).is_file()]
    if not files:
        raise UserError(f"'{path}' has an {CONFIG} but no {' or '.join(WEIGHTS)}: copy the weights there.")
    source = open_source(files[0])
    source = source.renamed(published_names(source.index))
    odd = [name for name in source.index if ".lora_" in name and not name.endswith((A, B))]
    if odd:
        raise UserError(
            f"'{files[0]}' holds '{odd[0]}', which is more than plain LoRA: merge that adapter in PEFT first."
        )
    modules = pairs(source)
    if not modules:
        raise UserError(f"'{files[0]}' holds no LoRA factors: is it the adapter of another method?")
    factors = {module: Factors(source, module, scale(config, module)) for module in modules}
    for module, pair in factors.items():
        rank = _pattern(config.get("rank_pattern"), module, config["r"])
        require(
            pair.rank == rank,
            f"'{files[0]}' has factors of rank {pair.rank} for '{module}', but {CONFIG} says {rank}: the two files are "
            "of different adapters.",
        )
    return Peft(path, factors, without_factors(source))


def scale(config: Mapping[str, Any], module: str) -> float:
    """What multiplies ``B A`` of ``module``: alpha / rank, or alpha / sqrt(rank) with ``use_rslora``."""
    rank = _pattern(config.get("rank_pattern"), module, config["r"])
    alpha = _pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def place(modules: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    """Module of an adapter -> the same module among the tensor ``names`` of its base, whatever wraps either.

    Raises:
      UserError: for a module whose weight the base has not.
    """
    names, found = set(names), {}
    for module in modules:
        inside = (
            re.sub(pattern, prefix, module, count=1) for pattern, prefix in _NESTINGS if re.search(pattern, module)
        )
        name = next((name for name in inside if name + ".weight" in names), None)
        if name is None:
            raise UserError(
                f"The adapter is for '{module}', of which the base has no weight: it was trained on another model."
                + nearest(module + ".weight", names)
            )
        found[module] = name
    return found


def _config(path: Path) -> dict[str, Any]:
    file = path / CONFIG
    if not file.is_file():
        raise UserError(
            f"'{path}' lacks {CONFIG}, which says the rank and scale of its adapters: copy it beside the weights."
        )
    try:
        config = dict(json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"'{file}' is not valid JSON ({error}): copy it again.") from error
    missing = [name for name in ("r", "lora_alpha") if not isinstance(config.get(name), int | float)]
    require(not missing, f"'{file}' does not say {' and '.join(missing)}: is it the configuration of a LoRA adapter?")
    for name, plain in _PLAIN.items():
        require(
            name not in config or config[name] in plain,
            f"'{file}' has {name} = {config.get(name)!r}, which is more than plain LoRA; merge the adapter in PEFT.",
        )
    return config


def _pattern(patterns: Mapping[str, float] | None, module: str, default: float) -> float:
    """The value of the first of ``patterns`` that is the end of ``module``, from a dot on (as PEFT reads them)."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
