"""LoRA factors beside the kernels that they adapt: rules derived from those of a language model.

``module.lora_A.weight`` [rank, in] and ``module.lora_B.weight`` [out, rank] (the names of the PEFT library, without its
prefixes) become ``lora/PATH/a`` [in..., rank] and ``lora/PATH/b`` [rank, out...] of the kernel at PATH. Where one
published matrix holds several of our kernels (a fused qkv), each gets its share of B and the whole of A.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from checkpoints_convert.rules import Layout, Rule
from checkpoints_convert.transforms import Product, transform

A, B = ".lora_A.weight", ".lora_B.weight"
_RANK = "rank"


def lora_rules(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """For every linear map of the language model among ``rules``, the rules of its two factors."""
    return tuple(factor for rule in rules if adaptable(rule) for factor in _factors(rule))


def with_adapters(layout: Layout) -> Layout:
    """``layout`` and the LoRA factors of its language model."""
    rules = tuple(dict.fromkeys((*layout.rules, *lora_rules(layout.rules))))
    return replace(layout, rules=rules, covers=(*layout.covers, "lora/*"))


def adaptable(rule: Rule) -> bool:
    """Whether ``rule`` makes kernels that can carry factors."""
    return rule.source.endswith(".weight") and all(
        path.startswith("lm/") and path.endswith("/kernel") for path in rule.targets
    )


def _factors(rule: Rule) -> tuple[Rule, Rule]:
    module = rule.source.removesuffix(".weight")
    out_text, in_text = (part.strip() for part in _matrix_axes(rule.how.partition("->")[0]))
    inputs = set(transform(rule.how).sources[0][1])
    a, b = [], []
    for axes in transform(rule.how).targets:
        a.append(_text(axis for axis in axes if inputs >= set(axis)) + f" {_RANK}")
        b.append(f"{_RANK} " + _text(axis for axis in axes if not inputs >= set(axis)))
    return (
        Rule(module + A, _paths(rule, "a"), f"{_RANK} {in_text} -> {' | '.join(a)}"),
        Rule(module + B, _paths(rule, "b"), f"{out_text} {_RANK} -> {' | '.join(b)}"),
    )


def _paths(rule: Rule, factor: str) -> tuple[str, ...]:
    return tuple(f"lora/{path.removesuffix('kernel')}{factor}" for path in rule.targets)


def _matrix_axes(text: str) -> tuple[str, str]:
    """The two axes (out, in) of a published matrix, with their brackets."""
    text, depth = text.strip(), 0
    for position, letter in enumerate(text):
        depth += (letter in "({") - (letter in ")}")
        if letter == " " and not depth:
            return text[:position], text[position + 1 :]
    raise ValueError(f"'{text}' is not a matrix")


def _text(axes: Iterable[Product]) -> str:
    return " ".join(axis[0] if len(axis) == 1 else f"({' '.join(axis)})" for axis in axes)
