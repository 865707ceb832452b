"""Ids that several lines of a record file share, found in eight bytes a line."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from hashlib import blake2b

import numpy as np

from earthmind_jax.data.records import Line


class Ids:
    """The ids of the lines seen so far, as hashes of 64 bits: a file may have millions."""

    def __init__(self) -> None:
        self._hashes = array("Q")

    def add(self, name: str) -> None:
        self._hashes.append(_hash(name))

    def repeated(self, most: int) -> tuple[int, frozenset[int]]:
        """How many ids an earlier line has already, and the hashes of the first ``most`` of them."""
        hashes = np.frombuffer(self._hashes, np.uint64)
        later = np.ones(len(hashes), bool)
        later[np.unique(hashes, return_index=True)[1]] = False
        return int(later.sum()), frozenset(hashes[later][:most].tolist())


def tell(lines: Iterable[Line], hashes: frozenset[int], most: int) -> Iterator[str]:
    """A sentence for each of at most ``most`` lines whose id, of one of these hashes, an earlier line has already.

    The lines are those that the hashes come from, read once more: only now are the ids themselves compared.
    """
    first: dict[str, str] = {}
    for line in lines:
        if most == 0:
            return
        if line.record is None or _hash(line.record.id) not in hashes:
            continue
        if line.record.id in first:
            most -= 1
            yield f"{line.where}: the id '{line.record.id}' is that of {first[line.record.id]} already."
        first.setdefault(line.record.id, line.where)


def _hash(name: str) -> int:
    return int.from_bytes(blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
