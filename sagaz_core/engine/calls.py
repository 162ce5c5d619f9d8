"""Calling one operation of the user's: sync or async, within its time, through the interceptors."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from sagaz_core.engine.rest import Rest, coroutine_of
from sagaz_core.errors import StepTimeoutError
from sagaz_core.interceptor import Interceptor, StepCall, run_intercepted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from sagaz_core.saga.step import Operation

logger = logging.getLogger(__name__)


def call_operation(
    operation: Operation, arguments: tuple[Any, ...], call: StepCall | None, interceptors: Sequence[Interceptor] | None
) -> Awaitable[Any]:
    """Return the awaitable of one attempt. It raises `StepTimeoutError` when the operation's time is up.

    A sync function that has a timeout runs in a thread. A thread cannot be stopped: when its time is up it is waited
    for as long again, so that its effect is not later than the rollback, and then given up with a warning.
    """
    if interceptors is None or call is None:
        if operation.timeout is None:
            return _plain(operation, arguments)
        return within(operation, _threaded_or_plain(operation, arguments))
    if operation.is_async:
        function: Callable[[], Awaitable[Any]] = partial(operation.function, *arguments)
    else:
        function = partial(_threaded_or_plain, operation, arguments)
    intercepted = run_intercepted(interceptors, call, function)
    return intercepted if operation.timeout is None else within(operation, intercepted, call)


def _plain(operation: Operation, arguments: tuple[Any, ...]) -> Awaitable[Any]:
    if operation.is_async:
        awaitable: Awaitable[Any] = operation.function(*arguments)
        return awaitable
    return _sync(operation, arguments)


async def _sync(operation: Operation, arguments: tuple[Any, ...]) -> Any:
    value = operation.function(*arguments)
    return await value if inspect.isawaitable(value) else value


def _threaded_or_plain(operation: Operation, arguments: tuple[Any, ...]) -> Awaitable[Any]:
    if operation.is_async or operation.timeout is None:
        return _plain(operation, arguments)
    return _threaded(operation, arguments, operation.timeout)


async def _threaded(operation: Operation, arguments: tuple[Any, ...], patience: float) -> Any:
    context = contextvars.copy_context()
    thread = asyncio.get_running_loop().run_in_executor(None, context.run, operation.function, *arguments)
    try:
        value = await asyncio.shield(thread)
    except asyncio.CancelledError:
        await _wait_for_stray(thread, patience)
        raise
    return await value if inspect.isawaitable(value) else value


async def _wait_for_stray(thread: asyncio.Future[Any], patience: float) -> None:
    if not thread.done():
        await asyncio.wait({thread}, timeout=patience)
    if not thread.done():
        logger.warning("a synchronous step ran past its timeout and is still running; its effect may come later")
    thread.add_done_callback(_drop)


def _drop(thread: asyncio.Future[Any]) -> None:
    """Take what a thread has left that nobody waits for any more, or Python complains that nobody did."""
    if not thread.cancelled() and thread.exception() is None and inspect.iscoroutine(thread.result()):
        thread.result().close()


class _Limit:
    """Until when a call may run; an interceptor may change that while the call is under way."""

    __slots__ = ("_seconds", "ends", "scope")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.ends: float | None = asyncio.get_running_loop().time() + seconds
        self.scope: asyncio.Timeout | None = None

    def renew(self, limited: bool = True) -> None:
        """Let the call's time begin now, or end never."""
        self.ends = asyncio.get_running_loop().time() + self._seconds if limited else None
        if self.scope is not None:
            self.scope.reschedule(self.ends)


async def within(operation: Operation, attempt: Awaitable[Any], call: StepCall | None = None) -> Any:
    """Wait for one attempt for as long as the operation's timeout, which it must have."""
    assert operation.timeout is not None
    limit = _Limit(operation.timeout)
    if call is not None:
        call.renew_time = limit.renew
    begun = coroutine_of(attempt)
    try:
        rest = Rest(begun, begun.send(None))
    except StopIteration as stop:
        return stop.value
    try:
        async with asyncio.timeout_at(limit.ends) as scope:
            limit.scope = scope
            return await rest
    except TimeoutError as error:
        if scope.expired():
            raise StepTimeoutError(f"not done within {operation.timeout:g} s") from error
        raise
    finally:
        limit.scope = None
