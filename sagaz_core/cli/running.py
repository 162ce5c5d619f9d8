"""Running a saga from the shell: in real or in virtual time, and stopped by a signal as it should be."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from sagaz_core.cli.failure import NOT_WELL, Failure
from sagaz_core.errors import NetworkBlockedError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Sequence
    from types import FrameType

    from sagaz_core.state import SagaState

T = TypeVar("T")


class Signals:
    """Ctrl-C and SIGTERM, while a saga runs: the first cancels it, so that it undoes what it did; the second ends the
    process at once, and leaves what a crash leaves. `received` is the first one's number, 0 before it.
    """

    def __init__(self) -> None:
        self.received = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Handle them meanwhile. Only the main thread can; elsewhere nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def guard(self, work: Coroutine[Any, Any, T]) -> T:
        """Await the work in a task of its own, which the first signal cancels."""
        self._loop = asyncio.get_running_loop()
        self._task = task = asyncio.create_task(work, name="sagaz")
        if self.received:
            task.cancel()
        with _woken_by_signals(self._loop):
            return await task

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            os._exit(128 + number)
        self.received = number
        if self._loop is not None and self._task is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._task.cancel)

    def failure(self, state: SagaState | None) -> Failure:
        """Return how a command ends that was stopped, with the saga in this state."""
        what = f"stopped by {signal.Signals(self.received).name}"
        if state is None or state.seq < 0:
            what += " before the saga began"
        elif state.stuck:
            what += f"; not undone: {', '.join(state.stuck)}"
        elif state.status.ended:
            what += f"; the saga is {state.status.value.replace('_', ' ')}"
        else:
            left = ", ".join(state.results) or "nothing"
            what += f"; the saga is left as it is, {left} done and not undone"
        return Failure(what, 128 + self.received)


def taken_over(state: SagaState, undone: Sequence[str]) -> Failure:
    """Return how a command ends whose saga another process goes on with, when it had undone these steps."""
    what = f"had undone {', '.join(undone)}" if undone else "undid nothing"
    return Failure(f"another process goes on with saga {state.saga_id!r}: this one stopped, and {what}", NOT_WELL)


@contextlib.contextmanager
def _woken_by_signals(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Let a signal wake the loop by itself.

    One that comes just before the loop begins to wait would not be handled until something else wakes it.
    """
    read, write = socket.socketpair()
    with read, write:
        read.setblocking(False)
        write.setblocking(False)
        try:
            loop.add_reader(read, _emptied, read)
        except (NetworkBlockedError, NotImplementedError):  # virtual time, which never waits; or a loop without readers
            yield
            return
        before = -1
        try:
            if threading.current_thread() is threading.main_thread():
                before = signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
            yield
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.set_wakeup_fd(before)
            loop.remove_reader(read)


def _emptied(read: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        read.recv(4096)


def run(main: Coroutine[Any, Any, T], *, virtual: bool = False) -> T:
    """Run a coroutine to its end. What nobody set up logging for is not written to stderr, which is ours.

    In virtual time the saga's own clocks stand at the start and move with its sleeps, as they do when it is replayed.
    """
    with _quiet_logging():
        if virtual:
            from sagaz_core.clock import utc_now
            from sagaz_core.virtual_time import frozen_at
            from sagaz_core.virtual_time import run as run_virtually

            start = utc_now()
            with frozen_at(start):
                return run_virtually(main, start=start)
        return asyncio.run(main)


@contextlib.contextmanager
def _quiet_logging() -> Iterator[None]:
    before = logging.lastResort
    if os.environ.get("SAGAZ_DEBUG", "") in ("", "0"):
        logging.lastResort = logging.NullHandler()
    try:
        yield
    finally:
        logging.lastResort = before
