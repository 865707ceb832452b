"""Band names in a GeoTIFF by ESA's SNAP: they stand in a private tag (its own header, XML) that GDAL does not show.

Layout of the file: TIFF 6.0 and BigTIFF; only the first directory is looked at.
"""

from __future__ import annotations

import struct
from typing import IO

from earthmind_jax.errors import UserError
from earthmind_jax.geo.safe_xml import parse_xml, texts

TAG = 65000
MOST_ENTRIES = 4096
LARGEST = 1 << 22  # bytes of the header


def snap_band_names(path: str) -> list[str]:
    """Names of all bands in their order; none where the file is not SNAP's, or its header cannot be read."""
    try:
        with open(path, "rb") as file:
            data = _tag(file)
        return texts(parse_xml(data, path), "BAND_NAME") if data else []
    except (OSError, struct.error, UserError):
        return []


def _tag(file: IO[bytes]) -> bytes:
    """The bytes of the tag, nothing where it is not there."""
    start = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(start[:2])
    if order is None:
        return b""
    big = struct.unpack(f"{order}H", start[2:4])[0] == 43
    (place,) = struct.unpack(f"{order}{'Q' if big else 'I'}", start[8:16] if big else start[4:8])
    entry = struct.Struct(f"{order}HH{'Q8s' if big else 'I4s'}")
    counter = struct.Struct(f"{order}{'Q' if big else 'H'}")
    file.seek(place)
    (count,) = counter.unpack(file.read(counter.size))
    for _ in range(min(count, MOST_ENTRIES)):
        tag, kind, length, value = entry.unpack(file.read(entry.size))
        if tag == TAG and kind in (1, 2, 7) and len(value) < length <= LARGEST:
            file.seek(struct.unpack(f"{order}{'Q' if big else 'I'}", value)[0])
            return file.read(length).rstrip(b"\0")
    return b""
