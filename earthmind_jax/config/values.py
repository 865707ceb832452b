"""Configurations as plain values and back: JSON text, and single fields by their dotted path (``--set``)."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import types
import typing
from typing import Any, TypeVar

from earthmind_jax.config.checks import nearest, require
from earthmind_jax.errors import UserError

Config = TypeVar("Config")


def to_dict(config: Any) -> Any:
    """A config as plain JSON values (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def to_json(config: Any) -> str:
    """A config as indented JSON text."""
    return json.dumps(dataclasses.asdict(config), indent=2)


def from_dict(cls: type[Config], values: dict[str, Any], where: str = "") -> Config:
    """Build ``cls`` from plain values; an unknown key is a :class:`UserError` naming the nearest key."""
    require(isinstance(values, dict), f"Configuration '{where.rstrip('.') or cls.__name__}' must be an object.")
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    kwargs = {}
    for key, value in values.items():
        if key not in names:
            raise UserError(f"Unknown configuration key '{where}{key}'.{nearest(key, names)}")
        kwargs[key] = _convert(hints[key], value, f"{where}{key}")
    try:
        return cls(**kwargs)
    except TypeError as error:
        raise UserError(f"Configuration '{where.rstrip('.') or cls.__name__}' is incomplete: {error}.") from error


def from_json(cls: type[Config], text: str) -> Config:
    """Inverse of :func:`to_json`."""
    return from_dict(cls, json.loads(text))


def replace_path(config: Config, path: str, value: Any) -> Config:
    """``config`` with the field at dotted ``path`` set, e.g. ``("model.lm.depth", 2)``; strings may be JSON."""
    head, _, rest = path.partition(".")
    names = [f.name for f in dataclasses.fields(config)]  # type: ignore[arg-type]
    if head not in names:
        raise UserError(f"Unknown configuration key '{head}' in '{path}'.{nearest(head, names)}")
    if rest:
        return dataclasses.replace(config, **{head: replace_path(getattr(config, head), rest, value)})  # type: ignore[type-var]
    if isinstance(value, str):
        with contextlib.suppress(json.JSONDecodeError):
            value = json.loads(value)
    hint = typing.get_type_hints(type(config))[head]
    return dataclasses.replace(config, **{head: _convert(hint, value, path)})  # type: ignore[type-var]


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = [a for a in typing.get_args(hint) if a is not type(None)]
        return None if value is None else _convert(options[0], value, where)
    if dataclasses.is_dataclass(hint):
        require(isinstance(value, dict), f"Configuration key '{where}' must be an object, not {value!r}.")
        return from_dict(hint, value, f"{where}.")  # type: ignore[arg-type]
    if origin is tuple:
        require(isinstance(value, list | tuple), f"Configuration key '{where}' must be a list, not {value!r}.")
        args = typing.get_args(hint)
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        require(len(kinds) == len(value), f"Configuration key '{where}' needs {len(kinds)} values, not {len(value)}.")
        return tuple(_convert(k, v, where) for k, v in zip(kinds, value, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise UserError(f"Configuration key '{where}' must be {hint.__name__}, not {value!r}.")
    return value
