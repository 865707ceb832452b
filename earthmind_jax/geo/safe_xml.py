"""XML without the parts of it that can be used to harm (a document type, and with it entities)."""

from __future__ import annotations

from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from earthmind_jax.errors import UserError

DEEPEST = 100


def parse_xml(data: bytes, name: str) -> Element:
    """The root element of a document; its elements keep their namespaces' prefixes.

    Raises:
      UserError: naming it, where it is damaged, has a document type (entities grow without bounds), or is too deep.
    """
    builder, parser, depth = TreeBuilder(), expat.ParserCreate(), 0

    def refuse(*_: Any) -> None:
        raise UserError(f"'{name}' is refused: it has a document type, and annotations and metadata need none.")

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > DEEPEST:
            raise UserError(f"'{name}' is refused: its elements are more than {DEEPEST} deep.")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, LookupError, ValueError) as error:  # an encoding that is unknown is a LookupError
        raise UserError(f"'{name}' is not XML that can be read: {error}.") from error
    return builder.close()


def local_name(element: Element) -> str:
    """The tag without the prefix of its namespace."""
    return element.tag.rpartition(":")[2]


def texts(root: Element, *names: str) -> list[str]:
    """The texts of all elements with one of these tags, in the document's order; empty ones are left out."""
    found = ((element.text or "").strip() for element in root.iter() if local_name(element) in names)
    return [text for text in found if text]
