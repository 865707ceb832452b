"""LoRA adapters of the language model as PEFT stores them (``adapter_model.safetensors``).

PEFT gives the linear layer ``X`` the factors ``base_model.model.X.lora_A.weight`` [rank in] and ``lora_B.weight``
[out rank]. The names and the order of the axes follow from the layout of the language model itself.
"""

from __future__ import annotations

import re
from typing import Any

from checkpoints_convert.layouts import LAYOUTS
from checkpoints_convert.layouts.lora import lora_rules
from checkpoints_convert.rules import Layout, Rule, under
from earthmind_jax.config import EarthMindConfig
from earthmind_jax.errors import UserError

PREFIX = "base_model.model."


def layout(config: EarthMindConfig) -> Layout:
    """The adapters of ``config.lm``.

    Raises:
      UserError: it has none, or its published form joins layers that have adapters of their own here.
    """
    if config.lm.lora is None:
        raise UserError("This model has no adapters (lm.lora): there is nothing to export in the layout 'peft'.")
    base = next(x for x in LAYOUTS if x.covers == ("lm/*",) and x.family == config.lm.family)
    rules: list[Rule] = []
    for rule in base.rules:
        if not any(_adapted(target, config) for target in rule.targets):
            continue
        if len(rule.targets) > 1:
            raise UserError(
                f"The published {base.name} joins {', '.join(rule.targets)} in one layer, each of which has an adapter "
                "of its own here; merge the adapters and export the whole model instead."
            )
        rules += under(PREFIX, lora_rules((rule,)))
    return Layout(f"PEFT ({base.name})", tuple(rules), has=(), covers=("lora/lm/*",), family=base.family)


def settings(config: EarthMindConfig, base: str) -> dict[str, Any]:
    """``adapter_config.json``; ``base`` is the name of the model that the adapters belong to."""
    lora = config.lm.lora
    modules = {rule.source.split(".")[-3] for rule in layout(config).rules}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": sorted(modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "use_rslora": False,
    }


def _adapted(target: str, config: EarthMindConfig) -> bool:
    layer = target.removeprefix("lm/").removesuffix("/kernel")
    return target.endswith("/kernel") and re.search(config.lm.lora.targets, layer) is not None
