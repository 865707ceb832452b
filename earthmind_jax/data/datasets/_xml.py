"""Annotations in XML (see :mod:`earthmind_jax.geo.safe_xml`)."""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element

from earthmind_jax.data.regular import require_regular
from earthmind_jax.errors import UserError
from earthmind_jax.geo.safe_xml import parse_xml

LARGEST = 1 << 24  # bytes


def load(path: Path) -> Element:
    """The root element of a file.

    Raises:
      UserError: it cannot be read, is damaged, has a document type (entities grow without bounds), or is too large.
    """
    try:
        if require_regular(path).stat().st_size > LARGEST:
            raise UserError(f"'{path}' has more than {LARGEST >> 20} MiB; an annotation of one image has a few KiB.")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror or error}.") from error
    return parse_xml(data, str(path))


def child_text(element: Element, path: str) -> str:
    """The text of a child element; UserError where there is none."""
    found = (element.findtext(path) or "").strip()
    if not found:
        raise UserError(f"there is no text in <{path.replace('/', '><')}>.")
    return found
