"""Bytes in memory at a time, shared by threads."""

from __future__ import annotations

import threading


class Budget:
    """At most ``size`` bytes are taken at a time; what is larger than all of it is alone."""

    def __init__(self, size: int) -> None:
        self._size, self._taken, self._changed = size, 0, threading.Condition()

    def take(self, count: int) -> None:
        """Wait until there is room for ``count`` bytes."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + count <= self._size)
            self._taken += count

    def give(self, count: int) -> None:
        """These bytes are free again."""
        with self._changed:
            self._taken -= count
            self._changed.notify_all()
