"""What a task of a deadlocked loop waits for, in words."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from types import FrameType


class WaitingTask(NamedTuple):
    """A task that nothing can wake: where in its own code it waits (`file:line`), and for what."""

    name: str
    coroutine: str
    where: str
    waits_for: str

    def __str__(self) -> str:
        return f"{self.name!r} ({self.coroutine}) waits at {self.where} for {self.waits_for}"


UNKNOWN = "unknown"
"""Where a task waits that is in none but asyncio's code."""

_ASYNCIO = os.path.dirname(asyncio.__file__) + os.sep


def waiting_task(task: asyncio.Task[Any]) -> WaitingTask:
    """Follow a task's coroutine to the innermost one, as `task.get_stack()` does not."""
    awaitable: Any = task.get_coro()
    coroutine = getattr(awaitable, "__qualname__", repr(awaitable))
    where, waits_for = UNKNOWN, ""
    while awaitable is not None:
        frame, inner = _frame_and_awaited(awaitable)
        if frame is None:
            break
        if not frame.f_code.co_filename.startswith(_ASYNCIO):
            where, waits_for = f"{short_path(frame.f_code.co_filename)}:{frame.f_lineno}", ""
        elif not waits_for:
            waits_for = awaitable.__qualname__
        awaitable = getattr(inner, "coroutine", inner)  # of what is left of one that was begun by hand
    return WaitingTask(task.get_name(), coroutine, where, waits_for or _what_it_is(getattr(task, "_fut_waiter", None)))


def _frame_and_awaited(awaitable: Any) -> tuple[FrameType | None, Any]:
    for prefix, awaited in (("cr", "cr_await"), ("gi", "gi_yieldfrom"), ("ag", "ag_await")):
        if (frame := getattr(awaitable, f"{prefix}_frame", None)) is not None:
            return frame, getattr(awaitable, awaited)
    return None, None


def _what_it_is(future: object) -> str:
    if isinstance(future, asyncio.Task):
        return f"task {future.get_name()!r}"
    return {"NoneType": "nothing", "_GatheringFuture": "gather"}.get(type(future).__name__, "a future")


def short_path(path: str) -> str:
    """Return a path as it is seen from the current folder."""
    return path.removeprefix(os.getcwd() + os.sep)
