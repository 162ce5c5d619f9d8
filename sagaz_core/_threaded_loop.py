"""The part of the virtual-time loop that has to do with threads, which live in real time."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections.abc import Callable
from concurrent.futures import Executor, wait
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

from sagaz_core._threads import DaemonThreads
from sagaz_core.clock import perf_seconds

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import AsyncGenerator
    from weakref import WeakSet

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class ThreadedLoop(asyncio.BaseEventLoop):
    """A loop that is woken by threads alone. Its times are as `VirtualClockLoop` says."""

    _time = 0.0

    def __init__(self, thread_grace: float, thread_limit: float) -> None:
        self._wake = threading.Lock()
        self._wake.acquire()
        super().__init__()
        self.thread_grace = thread_grace
        self.thread_limit = thread_limit
        self._workers: DaemonThreads | None = None
        self._jobs: dict[asyncio.Future[Any], tuple[float, float]] = {}  # the virtual and the real time of their starts

    if TYPE_CHECKING:  # of asyncio.BaseEventLoop, where typeshed has no private names
        _asyncgens: WeakSet[AsyncGenerator[Any, Any]]
        _asyncgens_shutdown_called: bool
        _closed: bool
        _current_handle: asyncio.Handle | None
        _debug: bool
        _default_executor: Executor | None
        _executor_shutdown_called: bool
        _ready: deque[asyncio.Handle]
        _stopping: bool
        _task_factory: object
        _timer_cancelled_count: int

        def _check_callback(self, callback: object, method: str) -> None: ...
        def _check_closed(self) -> None: ...
        def _check_default_executor(self) -> None: ...
        def _check_thread(self) -> None: ...

    def _write_to_self(self) -> None:
        with contextlib.suppress(RuntimeError):  # woken already
            self._wake.release()

    def _process_events(self, event_list: object) -> None:
        """Do nothing: there are no events but callbacks."""

    def _wait_for_wake(self, seconds: float) -> bool:
        """Wait really until a thread has made something ready, at most so long, and say whether one has."""
        self._wake.acquire(blocking=False)  # forget wakes of before
        deadline = perf_seconds() + seconds
        while not self._ready:
            left = deadline - perf_seconds()
            if left <= 0:
                return False
            self._wake.acquire(timeout=min(left, 3600.0))
        return True

    def _wait_for_jobs(self, when: float) -> bool:
        """Wait until a thread has made something ready, or until the timer at `when` may fire."""
        if when == math.inf:
            return self._wait_for_wake(math.inf)
        real = perf_seconds()
        hold = max(
            min(max(when - virtual_start, self.thread_grace), self.thread_limit) - (real - real_start)
            for virtual_start, real_start in self._jobs.values()
        )
        return hold > 0 and self._wait_for_wake(hold)

    def run_in_executor(self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        """As in asyncio; without an executor in a daemon thread of the loop's own, as many as there are jobs."""
        self._check_closed()
        if self._debug:
            self._check_callback(func, "run_in_executor")
        if executor is None:
            executor = self._default_executor
        if executor is None:
            self._check_default_executor()
            executor = self._workers = self._workers or DaemonThreads()
        future = asyncio.wrap_future(executor.submit(func, *args), loop=self)
        self._jobs[future] = (self._time, perf_seconds())
        future.add_done_callback(self._forget_job)
        return future

    def _forget_job(self, future: asyncio.Future[Any]) -> None:
        self._jobs.pop(future, None)

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Wait for the threads' jobs for `thread_grace` real seconds at most, and leave the rest behind."""
        self._executor_shutdown_called = True
        self.dismiss_threads()
        if self._default_executor is not None:
            self._default_executor.shutdown(wait=False)

    def dismiss_threads(self) -> None:
        """Wait `thread_grace` real seconds at most for what still runs in the loop's threads, and end them."""
        if self._workers is not None:
            wait(list(self._workers.running), timeout=self.thread_grace)
            self._workers.shutdown(wait=False)
            self._workers = None
        for future in list(self._jobs):
            future.cancel()  # else a job that ends after all reports to a closed loop
        self._jobs.clear()

    def close(self) -> None:
        """Close the loop. Its threads are told to end, and not waited for."""
        super().close()
        self._jobs.clear()
        if self._workers is not None:
            self._workers.shutdown(wait=False)
