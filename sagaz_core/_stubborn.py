"""Tasks that ignore that they are cancelled: waking one whatever it waits for, and letting one go for good.

asyncio has no way to do either: what waits is woken by a callback of what it waits for, and only that callback.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Iterator
    from contextvars import Context

_UNCLOSED: list[Any] = []  # they ignore that they are closed, too: collecting one would be an error that nobody raises


def wake(task: asyncio.Task[Any], loop: asyncio.AbstractEventLoop) -> None:
    """Let a task go on although what it waits for has not come. One that waits for nothing goes on by itself."""
    for waiter, callback, context in list(_waking(task)):
        waiter.remove_done_callback(callback)
        come: asyncio.Future[None] = loop.create_future()
        come.set_result(None)
        loop.call_soon(callback, come, context=context)


def let_go(task: asyncio.Task[Any], ready: Iterable[asyncio.Handle]) -> None:
    """Never run a task again, and close its coroutine. It stays pending, and nobody complains of that."""
    for waiter, callback, _ in list(_waking(task)):
        waiter.remove_done_callback(callback)
    for handle in ready:
        if not handle.cancelled() and getattr(handle._callback, "__self__", None) is task:  # type: ignore[attr-defined]
            handle.cancel()
    task._log_destroy_pending = False  # type: ignore[attr-defined] # of asyncio's own
    close(task.get_coro())


def close(coroutine: Coroutine[Any, Any, Any] | Any) -> None:
    """Close a coroutine, whatever it does then."""
    try:
        with suppress(Exception, asyncio.CancelledError):
            coroutine.close()
    finally:
        if getattr(coroutine, "cr_frame", None) is not None:
            _UNCLOSED.append(coroutine)


def _waking(task: Any) -> Iterator[tuple[Any, Any, Context]]:
    """Yield what the task waits for, with the callback that wakes it."""
    waiter = task._fut_waiter
    for callback, context in getattr(waiter, "_callbacks", None) or ():
        if getattr(callback, "__self__", None) is task:
            yield waiter, callback, context
