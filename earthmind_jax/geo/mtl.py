"""The metadata file (MTL) of a Landsat scene: text, JSON or XML."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from earthmind_jax.errors import UserError
from earthmind_jax.geo.safe_xml import local_name, parse_xml

Pairs = Iterator[tuple[str, str, Any]]
"""Group, key and value of each line."""


def read_mtl(path: str | os.PathLike[str]) -> dict[str, float]:
    """The numbers of a Landsat MTL file (``.txt``, ``.json`` or ``.xml``) by key; see :func:`mtl_numbers`.

    Raises:
      UserError: it cannot be read, or holds no coefficients.
    """
    file = Path(path)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read as a Landsat MTL file ({error}).") from error
    return mtl_numbers(mtl_pairs(data, str(file)), str(file))


def mtl_numbers(pairs: list[tuple[str, str, Any]], name: str) -> dict[str, float]:
    """The numbers by key. A Level-2 file repeats keys for its own products; those of Level-1 are kept.

    Raises:
      UserError: there are no coefficients; ``name`` is what it calls the file.
    """
    facts: dict[str, float] = {}
    for group, key, value in pairs:
        for known, number in numbers([(key, value)]):
            if known not in facts or group.startswith("LEVEL1"):
                facts[known] = number
    if "SUN_ELEVATION" not in facts:
        raise UserError(f"{name} is no Landsat MTL file: it does not tell SUN_ELEVATION.")
    return facts


def mtl_pairs(data: bytes, name: str) -> list[tuple[str, str, Any]]:
    """(group, key, value) of each line of a file, by its name's ending; UserError where it cannot be read."""
    lower = name.lower()
    try:
        if lower.endswith(".xml"):
            return list(_xml_pairs(parse_xml(data, name)))
        text = data.decode("utf-8")
        return list(_json_pairs(json.loads(text)) if lower.endswith(".json") else _text_pairs(text))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} cannot be read as a Landsat MTL file ({error}).") from error


def numbers(pairs: Any) -> Iterator[tuple[str, float]]:
    """Those of (key, value) pairs that are numbers."""
    for key, value in pairs:
        try:
            yield str(key).upper(), float(str(value).strip().strip('"'))
        except ValueError:
            continue


def _text_pairs(text: str) -> Pairs:
    group = ""
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition("="))
        if key == "GROUP":
            group = value
        elif value:
            yield group, key, value.strip('"')


def _json_pairs(node: Any, group: str = "") -> Pairs:
    for key, value in node.items() if isinstance(node, dict) else ():
        if isinstance(value, dict):
            yield from _json_pairs(value, key)
        else:
            yield group, key, value


def _xml_pairs(root: Element) -> Pairs:
    for group in root:
        for element in group:
            yield local_name(group), local_name(element), (element.text or "").strip()
