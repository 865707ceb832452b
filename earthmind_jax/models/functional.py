"""Flax modules as pure functions: parameters are one flat dict, and nobody outside sees a module.

A path is the module path with '/', e.g. ``vision/blocks/attn/q/kernel``. LoRA factors (the Flax collection ``lora``)
live under ``lora/`` + the path of their layer, e.g. ``lora/lm/blocks/attn/q/a``.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
from flax.core import meta
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from earthmind_jax.config import LoraConfig
from earthmind_jax.nn.linear import merge_factors
from earthmind_jax.types import Params

LORA = "lora/"


def flatten(variables: dict[str, Any]) -> dict[str, Any]:
    """Flax variables ``{"params": tree, "lora": tree}`` as one flat dict; boxed leaves are kept as they are."""
    trees = {**variables.get("params", {}), **({"lora": variables["lora"]} if variables.get("lora") else {})}
    return flatten_dict(trees, sep="/")


def unflatten(params: Params, prefix: str = "") -> dict[str, Any]:
    """Flax variables of the component at ``prefix``: the inverse of :func:`flatten` for that sub-tree."""
    under = f"{prefix}/" if prefix else ""
    own, lora = {}, {}
    for path, value in params.items():
        if path.startswith(LORA + under):
            lora[path.removeprefix(LORA + under)] = value
        elif path.startswith(under) and not path.startswith(LORA):
            own[path.removeprefix(under)] = value
    variables = {"params": unflatten_dict(own, sep="/")}
    return {**variables, "lora": unflatten_dict(lora, sep="/")} if lora else variables


def add_prefix(params: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Paths of a component moved below ``prefix`` (LoRA paths below ``lora/prefix``); works for axes tables too."""

    def move(path: str) -> str:
        return f"{LORA}{prefix}/{path.removeprefix(LORA)}" if path.startswith(LORA) else f"{prefix}/{path}"

    return {move(path): value for path, value in params.items()}


def _init_method(module: nn.Module) -> Any:
    # A module with several entry points names the one that touches every parameter ``init_all``.
    return getattr(module, "init_all", None)


def init_module(module: nn.Module, key: Array, *dummy: Any, method: Any = None) -> Params:
    """New parameters of ``module``, flat and unboxed.

    ``dummy``: arguments of ``method`` (default: the module's ``init_all`` if it has one, else its call), whose values
    do not matter. Wrap in ``jax.jit`` with output shardings to create them in place, in ``jax.eval_shape`` for shapes.
    """
    variables = module.init({"params": key}, *dummy, method=method or _init_method(module))
    return flatten(meta.unbox(variables))


def module_axes(module: nn.Module, *dummy: Any, method: Any = None) -> dict[str, tuple[str | None, ...]]:
    """Logical axis names of every parameter of ``module``, by path; computes shapes only."""

    def init(key: Array) -> Any:
        return module.init({"params": key}, *dummy, method=method or _init_method(module))

    boxed = flatten(jax.eval_shape(init, jax.random.key(0)))
    return {path: tuple(leaf.names) for path, leaf in boxed.items()}


def apply_module(
    module: nn.Module,
    params: Params,
    prefix: str,
    *args: Any,
    rngs: dict[str, Array] | None = None,
    method: Any = None,
    **kwargs: Any,
) -> Any:
    """Run ``module`` on the parameters below ``prefix``: ``apply_module(InternViT(...), params, "vision", pixels)``.

    ``method``: name of another method of the module. ``rngs``: e.g. ``{"dropout": key}`` while training.
    """
    return module.apply(unflatten(params, prefix), *args, rngs=rngs, method=method, **kwargs)


def merge_lora(params: Params, lora: LoraConfig) -> Params:
    """``params`` with every adapter folded into its kernel and the ``lora/`` paths removed."""
    merged = {path: value for path, value in params.items() if not path.startswith(LORA)}
    for path, a in params.items():
        if path.startswith(LORA) and path.endswith("/a"):
            layer = path.removeprefix(LORA).removesuffix("/a")
            b = params[f"{LORA}{layer}/b"]
            merged[f"{layer}/kernel"] = merge_factors(merged[f"{layer}/kernel"], a, b, lora.alpha / lora.rank)
    return merged


def combine(frozen: Params, trainable: Params) -> Params:
    """All parameters of a training: what is trained replaces what is frozen.

    Where of a vocabulary the last rows alone are trained, both have the path: those rows, in the dtype of the rest.
    """
    params = {**frozen, **trainable}
    for path in frozen.keys() & trainable.keys():
        whole, rows = frozen[path], trainable[path]
        axis = next(i for i, (a, b) in enumerate(zip(whole.shape, rows.shape, strict=True)) if a != b)
        start = whole.shape[axis] - rows.shape[axis]
        params[path] = jax.lax.dynamic_update_slice_in_dim(whole, rows.astype(whole.dtype), start, axis)
    return params
