"""The threads of the virtual-time loop: one for each job under way, and none that keeps the process from ending."""

from __future__ import annotations

import functools
import threading
from collections import deque
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def foreign_threads() -> bool:
    """Say whether the process has threads that might wake a loop, and that no virtual-time loop has started."""
    current = threading.current_thread()
    return any(thread is not current and not isinstance(thread, _Worker) for thread in threading.enumerate())


class DaemonThreads(Executor):
    """Runs each job at once: in a thread that is idle, or in a new one. Unlike `ThreadPoolExecutor`'s, a thread that
    hangs does not keep the process from ending, and no job waits for another one's end."""

    def __init__(self) -> None:
        self.running: set[Future[Any]] = set()
        self.idle: deque[_Worker] = deque()
        self.closed = False

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        self.running.add(future)
        future.add_done_callback(self.running.discard)
        worker = self.idle.pop() if self.idle else _Worker(self)
        worker.inbox.put((future, functools.partial(fn, *args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let idle threads end now, and the others after their jobs."""
        self.closed = True
        for worker in list(self.idle):
            worker.inbox.put(None)


class _Worker(threading.Thread):
    def __init__(self, owner: DaemonThreads) -> None:
        super().__init__(name="sagaz-virtual-time", daemon=True)
        self.inbox: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._owner = owner
        self.start()

    def run(self) -> None:
        while (job := self.inbox.get()) is not None:
            self._do(*job)
            del job  # its result and its error must not live on while the thread idles

    def _do(self, future: Future[Any], call: Callable[[], Any]) -> None:
        result, error = None, None
        started = future.set_running_or_notify_cancel()
        if started:
            try:
                result = call()
            except BaseException as caught:
                error = caught
        # Idle before the result is known, so that the next job finds this thread.
        self._owner.idle.append(self)
        if self._owner.closed:
            self.inbox.put(None)
        if error is not None:
            future.set_exception(error)
        elif started:
            future.set_result(result)
        del future, error  # a frame in its own traceback would never be freed by counting
