"""LoRA adapters of a checkpoint: found, folded into the weights they adapt, or brought to one rank for our model.

A :class:`Factors` is one published pair A [rank, in], B [out, rank] whose map adds ``scale * B A`` to a weight
[out, in] (Hu et al. 2021). Both ways of using them work tensor by tensor: as a file that computes what it is asked to
read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from checkpoints_convert.layouts.lora import A, B, adaptable
from checkpoints_convert.reader import Source, TensorInfo
from checkpoints_convert.rules import Rule, match
from earthmind_jax.config import LoraConfig, nearest
from earthmind_jax.errors import UserError


@dataclass(frozen=True)
class Factors:
    """The pair that adapts one module: where to read it, and its scale (alpha / rank, or as the adapter says)."""

    source: Source
    module: str  # as ``source`` names it
    scale: float

    @property
    def rank(self) -> int:
        return self.source.index[self.module + A].shape[0]

    def read(self, factor: str) -> np.ndarray:
        """A [rank, in] or B [out, rank], in the file's dtype."""
        return self.source.read(self.module + factor)

    def info(self, factor: str) -> TensorInfo:
        return self.source.index[self.module + factor]


def pairs(source: Source) -> list[str]:
    """Modules of ``source`` that have factors; raises a :class:`UserError` for half a pair or a misshapen one."""
    modules = [name.removesuffix(A) for name in source.index if name.endswith(A)]
    halves = {name.removesuffix(B) for name in source.index if name.endswith(B)} ^ set(modules)
    if halves:
        raise UserError(f"'{source.where}' has only one of the two LoRA factors of '{min(halves)}': it is incomplete.")
    for module in modules:
        a, b = source.index[module + A].shape, source.index[module + B].shape
        if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
            raise UserError(f"'{source.where}' has LoRA factors of '{module}' that do not fit together: {a} and {b}.")
    return modules


def without_factors(source: Source) -> Source:
    """``source`` without its adapters."""
    return source.kept(name for name in source.index if not name.endswith((A, B)))


def merged(base: Source, factors: Mapping[str, Factors]) -> Source:
    """``base`` with ``factors`` (by module of ``base``) folded in: ``W + scale * B A``, computed in float32.

    A merged weight has the wider dtype of weight and factors, so that nothing of a float32 adapter is rounded away.
    """
    names = {_weight(base, module): pair for module, pair in factors.items()}
    file = MergedWeights(base, names)
    return base.replaced({name: (file, name) for name in names})


class MergedWeights:
    """The adapted weights, each computed when it is read."""

    def __init__(self, base: Source, factors: Mapping[str, Factors]) -> None:
        self._base, self._factors, self.index = base, factors, {}
        for name, pair in factors.items():
            self.path = pair.source.file_of(pair.module + A).path
            info, (a, b) = base.index[name], (pair.info(A), pair.info(B))
            if info.shape != (b.shape[0], a.shape[1]):
                raise UserError(
                    f"The LoRA factors of '{pair.module}' in '{pair.source.where}' adapt a weight of the shape "
                    f"{(b.shape[0], a.shape[1])}, but '{name}' has {info.shape}: they are of another model."
                )
            self.index[name] = TensorInfo(info.shape, np.promote_types(info.dtype, np.promote_types(a.dtype, b.dtype)))

    def read(self, name: str, region: Any = ...) -> np.ndarray:
        pair = self._factors[name]
        weight = self._base.read(name).astype(np.float32)
        weight += np.float32(pair.scale) * (pair.read(B).astype(np.float32) @ pair.read(A).astype(np.float32))
        return weight.astype(self.index[name].dtype, copy=False)[region]


def kept(base: Source, factors: Mapping[str, Factors], rules: Iterable[Rule]) -> tuple[Source, LoraConfig]:
    """``base`` and its adapters as our model holds them: one rank and one scale everywhere.

    Smaller ranks are filled up with zeros, and a layer without factors gets zeros: neither changes the result, nor is
    it ever trained, since each factor's gradient is a multiple of the other. Differing scales move into B.

    Args:
      factors: by module of ``base``; ``base`` itself may lack the weights (a file of trained tensors alone).
      rules: those of the layout of ``base``.
    """
    rules = [rule for rule in rules if adaptable(rule)]
    made: dict[str, tuple[Rule, dict[str, int]]] = {}
    for module in factors:
        made[module] = next(
            ((rule, index) for rule in rules if (index := match(rule.source, module + ".weight")) is not None),
            (None, None),
        )
        if made[module][0] is None:
            raise UserError(
                f"'{module}' has LoRA factors, but only linear layers of the language model keep theirs apart here: "
                "merge the adapters into the weights."
            )
    used = [rule for rule in rules if any(rule is found for found, _ in made.values())]
    rank = max(pair.rank for pair in factors.values())
    # The commonest scale, so that most factors stay as they are.
    scale = Counter(pair.scale for pair in factors.values()).most_common(1)[0][0] or 1.0
    depth = {index["i"] for _, index in made.values() if "i" in index}
    depth |= {index["i"] for rule in used for name in base.index if (index := match(rule.source, name)) and index}
    wanted: dict[str, Factors | None] = {}
    for rule in used:
        for layer in range(max(depth) + 1) if rule.stacked else (0,):
            module = rule.source.removesuffix(".weight").format(i=layer)
            wanted[module] = factors.get(module)
    alike = {rule.source: next(factors[m] for m, (found, _) in made.items() if found is rule) for rule in used}
    file = PaddedFactors(wanted, {m: alike[_rule_of(m, used).source] for m in wanted}, rank, scale)
    paths = sorted({path.removeprefix("lm/").removesuffix("/kernel") for rule in used for path in rule.targets})
    config = LoraConfig(rank=rank, alpha=scale * rank, targets=f"^({'|'.join(paths)})$")
    return base.replaced({name: (file, name) for name in file.index}), config


class PaddedFactors:
    """Factors of one rank and scale, made when they are read; ``alike``: a pair of the same layer type, for shapes."""

    def __init__(
        self, wanted: Mapping[str, Factors | None], alike: Mapping[str, Factors], rank: int, scale: float
    ) -> None:
        self._wanted, self._scale, self.index = wanted, scale, {}
        for module in wanted:
            a, b = alike[module].info(A), alike[module].info(B)
            self.path = alike[module].source.file_of(alike[module].module + A).path
            self.index[module + A] = TensorInfo((rank, a.shape[1]), a.dtype)
            self.index[module + B] = TensorInfo((b.shape[0], rank), b.dtype)

    def read(self, name: str, region: Any = ...) -> np.ndarray:
        info, factor = self.index[name], A if name.endswith(A) else B
        pair = self._wanted[name.removesuffix(factor)]
        out = np.zeros(info.shape, info.dtype)
        if pair is not None and factor == A:
            out[: pair.rank] = pair.read(A)
        elif pair is not None:
            values = pair.read(B)
            share = pair.scale / self._scale
            out[:, : pair.rank] = values if share == 1 else values.astype(np.float32) * np.float32(share)
        return out[region]


def _rule_of(module: str, rules: list[Rule]) -> Rule:
    return next(rule for rule in rules if match(rule.source, module + ".weight") is not None)


def _weight(base: Source, module: str) -> str:
    name = module + ".weight"
    if name not in base.index:
        raise UserError(
            f"There are LoRA factors for '{module}', but '{base.where}' has no '{name}': give the checkpoint that the "
            f"adapters were trained on, or keep them apart.{nearest(name, base.index)}"
        )
    return name
