"""The language-model families. A new one is a file beside this and a line in :data:`FAMILIES`."""

from __future__ import annotations

from earthmind_jax.config import LmConfig, nearest
from earthmind_jax.errors import UserError
from earthmind_jax.models.families import internlm2, phi3, qwen2
from earthmind_jax.models.families.family import Family, HfConfig

FAMILIES: dict[str, Family] = {family.name: family for family in (qwen2.FAMILY, internlm2.FAMILY, phi3.FAMILY)}


def find(config: HfConfig) -> Family:
    """The family of a published ``config.json`` of a language model, by ``architectures``, then ``model_type``.

    Raises:
      UserError: no family has that name.
    """
    names = [*(config.get("architectures") or ()), *([config["model_type"]] if config.get("model_type") else [])]
    for name in names:
        for family in FAMILIES.values():
            if name in family.architectures or name in family.model_types:
                return family
    known = [name for family in FAMILIES.values() for name in family.architectures]
    named = f"'{names[0]}'" if names else "without 'architectures' and 'model_type'"
    hint = nearest(names[0], known) if names else ""
    raise UserError(f"No language-model family for a configuration {named}.{hint} Known: {', '.join(known)}.")


def from_hf(config: HfConfig) -> LmConfig:
    """A published language-model ``config.json`` as :class:`LmConfig`."""
    return find(config).from_hf(config)


__all__ = ["FAMILIES", "Family", "find", "from_hf"]
