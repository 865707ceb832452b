"""LoRA adapters of the language model as PEFT stores them (``adapter_model.safetensors``).

PEFT gives the linear layer ``X`` the factors ``base_model.model.X.lora_A.weight`` [rank in] and ``lora_B.weight``
[out rank]. The names and the order of the axes follow from the layout of the language model itself. Where a published
layer joins several of ours (a fused qkv), it gets one pair: its A is the common A of ours, or, where they have become
different in training, all of them one after the other, each beside its own share of B.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from checkpoints_convert.layouts import LAYOUTS
from checkpoints_convert.layouts.lora import lora_rules
from checkpoints_convert.rules import Layout, Rule, under
from earthmind_jax.config import EarthMindConfig
from earthmind_jax.errors import UserError
from earthmind_jax.models.functional import LORA

PREFIX = "base_model.model."


@dataclass(frozen=True)
class Adapters:
    """What is to be written: the layout, factors that fit it by path, and ``adapter_config.json``."""

    layout: Layout
    params: Mapping[str, Any]
    settings: dict[str, Any]


def adapters(config: EarthMindConfig, params: Mapping[str, Any], base: str) -> Adapters:
    """The adapters of ``config.lm`` among ``params``; ``base`` is the name of the model that they belong to.

    Raises:
      UserError: it has none.
    """
    lora = config.lm.lora
    if lora is None:
        raise UserError("This model has no adapters (lm.lora): there is nothing to export in the layout 'peft'.")
    language = next(x for x in LAYOUTS if x.covers == ("lm/*",) and x.family == config.lm.family)
    held = {path: x for path, x in params.items() if path.startswith(LORA)}
    used: list[Rule] = []
    ranks: dict[str, int] = {}
    for rule in language.rules:
        adapted = [target for target in rule.targets if _adapted(target, config)]
        if not adapted:
            continue
        used.append(rule)
        if len(rule.targets) > 1:
            joined = _joined(rule, adapted, params)
            held |= joined
            ranks[_module(rule)] = joined[_factor(adapted[0], "a")].shape[-1]
    wider = {module: rank for module, rank in ranks.items() if rank != lora.rank}
    layout = Layout(
        f"PEFT ({language.name})",
        under(PREFIX, lora_rules(used)),
        has=(),
        covers=("lora/lm/*",),
        family=language.family,
    )
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "rank_pattern": wider,
        "alpha_pattern": {module: lora.alpha * rank / lora.rank for module, rank in wider.items()},  # one scale
        "lora_dropout": lora.dropout,
        "target_modules": sorted({_module(rule) for rule in used}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "use_rslora": False,
    }
    return Adapters(layout, held, settings)


def _joined(rule: Rule, adapted: Sequence[str], params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Factors of all kernels of ``rule`` with one A in common, whose product with each B is that of its own pair."""
    a = [np.asarray(params[_factor(target, "a")][...]) for target in adapted]
    b = [np.asarray(params[_factor(target, "b")][...]) for target in adapted]
    rank, axis = a[0].shape[-1], len(rule.stacked)  # of the rank in b
    alike = all(np.array_equal(a[0], other) for other in a[1:])
    common = a[0] if alike else np.concatenate(a, -1)
    made = {}
    for target in rule.targets:
        kernel = params[target].shape
        share = np.zeros((*kernel[:axis], common.shape[-1], *kernel[common.ndim - 1 :]), b[0].dtype)
        if target in adapted:
            number = adapted.index(target)
            start = 0 if alike else number * rank
            share[(slice(None),) * axis + (slice(start, start + rank),)] = b[number]
        made |= {_factor(target, "a"): common, _factor(target, "b"): share}
    return made


def _factor(target: str, factor: str) -> str:
    return f"{LORA}{target.removesuffix('kernel')}{factor}"


def _module(rule: Rule) -> str:
    return rule.source.split(".")[-2]


def _adapted(target: str, config: EarthMindConfig) -> bool:
    layer = target.removeprefix("lm/").removesuffix("/kernel")
    return target.endswith("/kernel") and re.search(config.lm.lora.targets, layer) is not None
