"""A resource for each event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

Resource = TypeVar("Resource")


class PerLoop(Generic[Resource]):
    """A resource for each event loop that asks: a connection belongs to the loop that it was made on."""

    def __init__(self, make: Callable[[], Resource], discard: Callable[[Resource], None]) -> None:
        self._make = make
        self._discard = discard
        self._lock = Lock()
        self._made: dict[asyncio.AbstractEventLoop, Resource] = {}

    def get(self) -> Resource:
        """Return the resource of the running loop, made by the first call."""
        loop = asyncio.get_running_loop()
        found = self._made.get(loop)
        if found is None:
            with self._lock:
                for other in [other for other in self._made if other.is_closed()]:
                    self._discard(self._made.pop(other))
                found = self._made.setdefault(loop, self._make())
        return found

    def pop(self) -> Resource | None:
        """Return the resource of the running loop, which then has none, and discard those of closed loops."""
        with self._lock:
            for other in [other for other in self._made if other.is_closed()]:
                self._discard(self._made.pop(other))
            return self._made.pop(asyncio.get_running_loop(), None)
