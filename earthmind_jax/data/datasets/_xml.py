"""Annotations in XML, without the parts of XML that can be used to harm (a document type, and with it entities)."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from earthmind_jax.data.regular import require_regular
from earthmind_jax.errors import UserError

LARGEST = 1 << 24  # bytes
DEEPEST = 100


def load(path: Path) -> Element:
    """The root element of a file.

    Raises:
      UserError: it cannot be read, is damaged, has a document type (entities grow without bounds), or is too large.
    """
    builder, parser, depth = TreeBuilder(), expat.ParserCreate(), 0

    def refuse(*_: Any) -> None:
        raise UserError(f"'{path}' is refused: it has a document type, and annotations need none.")

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > DEEPEST:
            raise UserError(f"'{path}' is refused: its elements are more than {DEEPEST} deep.")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    try:
        if require_regular(path).stat().st_size > LARGEST:
            raise UserError(f"'{path}' has more than {LARGEST >> 20} MiB; an annotation of one image has a few KiB.")
        parser.Parse(path.read_bytes(), True)
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror or error}.") from error
    except (expat.ExpatError, LookupError, ValueError) as error:  # an encoding that is unknown is a LookupError
        raise UserError(f"'{path}' is not XML that can be read: {error}.") from error
    return builder.close()


def child_text(element: Element, path: str) -> str:
    """The text of a child element; UserError where there is none."""
    found = (element.findtext(path) or "").strip()
    if not found:
        raise UserError(f"there is no text in <{path.replace('/', '><')}>.")
    return found
