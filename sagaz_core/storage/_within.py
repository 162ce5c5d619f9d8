"""Time limits for what is done thousands of times a second and hardly ever too late."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sagaz_core.storage._per_loop import PerLoop

if TYPE_CHECKING:
    from types import TracebackType


class Within:
    """Do `asyncio.timeout`'s work: cancel the block after so many seconds, and raise `TimeoutError` in its place.

    That one sets a timer each time and cancels it, which takes some 15 µs with what waits for it. Here an event loop
    has one timer for all its blocks, set for the first that ends, and not touched when a block is done in time.
    """

    __slots__ = ("_cancelling", "_deadlines", "_seconds", "_task", "expired", "when")

    _task: asyncio.Task[object]
    _deadlines: _Deadlines

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.expired = False

    def __enter__(self) -> Within:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a store must be used inside a task")
        self._task, self._cancelling = task, task.cancelling()
        self._deadlines = deadlines = _of_loop.get()
        self.when = deadlines.loop.time() + self._seconds
        deadlines.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._deadlines.waiting.pop(self, None)
        if self.expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def expire(self) -> None:
        """The time is up."""
        self.expired = True
        self._task.cancel()


class _Deadlines:
    """The blocks of one event loop that are under way."""

    __slots__ = ("_timer", "loop", "waiting")

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.waiting: dict[Within, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, block: Within) -> None:
        self.waiting[block] = None
        if self._timer is None or block.when < self._timer.when():
            self._set(block.when)

    def _set(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_at(when, self._look)

    def _look(self) -> None:
        now, self._timer = self.loop.time(), None
        for block in [block for block in self.waiting if block.when <= now]:
            del self.waiting[block]
            block.expire()
        if self.waiting:
            self._set(min(block.when for block in self.waiting))


_of_loop = PerLoop(_Deadlines, lambda _: None)
