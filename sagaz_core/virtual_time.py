"""An asyncio event loop with virtual time: it never waits for a timer, it jumps to it.

`run(main())` is `asyncio.run(main())` in which a year's sleep takes microseconds and a deadlock is an error at once;
`VirtualRunner` does so many times on one loop. Time only ever moves to the moment of a timer, so that the times that a
run sees are the same in every run of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
import itertools
import logging
import math
import threading
from asyncio import events
from collections.abc import Callable
from concurrent.futures import Executor, wait
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Self, TypedDict, TypeVar, TypeVarTuple, Unpack

from sagaz_core._frozen import clock_is_frozen, frozen_at, move_frozen_clocks
from sagaz_core._leftovers import SCOPE, Scope
from sagaz_core._stubborn import let_go, wake
from sagaz_core._threads import DaemonThreads, foreign_threads
from sagaz_core._waiting import WaitingTask, waiting_task
from sagaz_core.clock import Clock, perf_seconds, plain, utc_now
from sagaz_core.errors import DeadlockError, NaiveTimeError, RunningLoopError
from sagaz_core.network import NetworklessLoop

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import AsyncGenerator, Coroutine, Iterator
    from types import AsyncGeneratorType, TracebackType
    from weakref import WeakSet

__all__ = ["VirtualClockLoop", "VirtualRunner", "WaitingTask", "frozen_at", "move_frozen_clocks", "run"]

WhenStuck = Callable[[DeadlockError], int]
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

logger = logging.getLogger("asyncio")  # where a loop's slow callbacks are logged

_END_OF_TIME = plain(datetime.max.replace(tzinfo=UTC))
_MANY_TIMERS = 100  # below so many, cancelled timers may stay until their time comes
_LOOKS = 1_000  # how often at most it is looked at whether a busy loop keeps time from moving
_TURNS_TO_END = 100_000  # how often the loop goes round at most for what is left to end


class LoopOptions(TypedDict, total=False):
    """The options of `VirtualClockLoop`, which `VirtualRunner` and `run` take too."""

    start: datetime | None
    move_frozen: bool
    thread_grace: float
    thread_limit: float
    max_turns: int
    debug: bool | None


class VirtualClockLoop(NetworklessLoop, asyncio.BaseEventLoop):
    """An event loop whose time jumps to the next timer as soon as nothing is ready. It has no file descriptors.

    `start` is the wall-clock time at the loop's zero (aware; the current time unless given), for `now()`. With
    `move_frozen`, each jump also moves the clocks that freezegun and time-machine hold. `jumps` counts the jumps,
    `pushes` those for which the loop has not waited until nothing was ready.

    **Deadlock.** When nothing is ready and no timer or thread is left, `DeadlockError` is raised out of the run, with
    the waiting tasks in its message and as `WaitingTask`s in `.tasks`. If the process has threads that the loop did not
    start (they may call `call_soon_threadsafe`), only after `thread_grace` real seconds. A run that goes round
    `max_turns` times (one that polls for ever, say) is given up with the same error. One that polls with
    `asyncio.sleep(0)` keeps time from moving; when an eighth of these turns is over, timers fire all the same.

    **Threads** (`asyncio.to_thread`, `run_in_executor`) live in real time. A job that is awaited holds virtual time
    back: no timer fires before the job has had as many real seconds as it had virtual ones until that timer, and at
    least `thread_grace`. So a job that is quick always ends before any jump, and takes no virtual time; one that blocks
    for ever under a timeout of 5 s times out after 5 s really. A job older than `thread_limit` real seconds holds
    nothing back any more, nor does one whose future was cancelled. With no timer at all a job is waited for without
    limit. Threads of other making (`asyncio.wrap_future`) are not known to the loop and do not hold timers back. The
    end of a run waits for jobs that still run, `thread_grace` at most; the threads are daemons.

    **Network.** There is none: what would open a connection raises `NetworkBlockedError`.
    """

    def __init__(
        self,
        start: datetime | None = None,
        *,
        move_frozen: bool = True,
        thread_grace: float = 1.0,
        thread_limit: float = 10.0,
        max_turns: int = 5_000_000,
        debug: bool | None = None,
    ) -> None:
        self._wake = threading.Lock()
        self._wake.acquire()
        super().__init__()
        if debug is not None:
            self.set_debug(debug)
        self.thread_grace = thread_grace
        self.thread_limit = thread_limit
        self.max_turns = self._most_turns = max_turns
        self._watchers: list[tuple[WhenStuck, int]] = []
        self._jumps_then = 0
        self._move_frozen = move_frozen
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._order = itertools.count()
        self._workers: DaemonThreads | None = None
        self._jobs: dict[asyncio.Future[Any], tuple[float, float]] = {}  # the virtual and the real time of their starts
        self._scopes: dict[int, Scope] = {}  # of generators, by their ids: what is finalized has no weak references
        self.restart(start)

    tells_scopes = True
    """It tells each `Scope` what is begun in it."""

    _now: datetime | None = None  # made when it is asked for, and again when time has moved

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

    # Time

    def time(self) -> float:
        """Return the virtual seconds since the loop's start."""
        return self._time

    def now(self) -> datetime:
        """Return the virtual wall-clock time, aware and in UTC, to the microsecond; at most the end of year 9999."""
        if self._now is None:
            self._now = self._wall_clock()
        return self._now

    def _wall_clock(self) -> datetime:
        try:
            return self._start + timedelta(microseconds=_microseconds(self._time))
        except OverflowError:
            return _END_OF_TIME

    def restart(self, start: datetime | None = None) -> None:
        """Set the time back to zero, which is `start` on the wall clock. Only while nothing runs or is scheduled."""
        if start is not None and start.tzinfo is None:
            raise NaiveTimeError(
                f"virtual time cannot start at {start}, a time without a zone: write datetime(…, tzinfo=UTC)"
            )
        if self.is_running():
            raise RuntimeError("the virtual-time loop is running: its time can only be set between runs")
        self._start = utc_now() if start is None else plain(start).astimezone(UTC)
        self._time = 0.0
        self._now = None
        self.jumps = self.pushes = 0
        self.count_turns_anew()
        self._ready.clear()
        self._timers.clear()
        self._scopes.clear()
        self._timer_cancelled_count = 0
        self._order = itertools.count()

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """As in asyncio. A delay above zero moves the time on, however short it is and however late."""
        if delay is None:
            raise TypeError("delay must not be None")
        when = self._time + delay
        if delay > 0 and when == self._time:
            when = math.nextafter(when, math.inf)
        return self.call_at(when, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """As in asyncio. Timers of one moment fire in the order in which they were set; one at infinity never does."""
        if when is None:
            raise TypeError("when cannot be None")
        if math.isnan(when):
            raise ValueError("a timer cannot be set to NaN")
        self._check_closed()
        if self._debug:
            self._check_thread()
            self._check_callback(callback, "call_at")
        timer: Any = events.TimerHandle(when, callback, args, self, context)
        if when < math.inf:
            heapq.heappush(self._timers, (when, next(self._order), timer))
            timer._scheduled = True
            if (scope := SCOPE.get()) is not None:
                scope.begun += 1
        return timer  # type: ignore[no-any-return]

    def passes(self, seconds: float) -> bool:
        """Let so much time go by at once if nothing else would happen meanwhile, and say whether it did."""
        when = self._time + seconds
        if when <= self._time or self._ready or self._jobs or self._stopping or self._turns + 1 >= self._looks_at:
            return False
        self._drop_cancelled_timers()
        if self._timers and self._timers[0][0] <= when:
            return False
        self._turns += 1
        self._jump(when)
        return True

    @property
    def has_timers(self) -> bool:
        """Whether any timer is set."""
        return len(self._timers) > self._timer_cancelled_count

    def timers(self) -> Iterator[asyncio.TimerHandle]:
        """Yield the timers that are set, in no order."""
        return (timer for _, _, timer in self._timers if not timer.cancelled())

    def _timer_handle_cancelled(self, handle: Any) -> None:
        if not handle._scheduled:
            return
        self._timer_cancelled_count += 1
        if self._timer_cancelled_count * 2 > len(self._timers) > _MANY_TIMERS:
            self._timers = [timer for timer in self._timers if not timer[2].cancelled() and timer[2] is not handle]
            heapq.heapify(self._timers)
            self._timer_cancelled_count = 0

    # Turning

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        """As in asyncio."""
        task: asyncio.Task[Any] = super().create_task(coro, **options)
        if (scope := SCOPE.get()) is not None:
            scope.add_task(task)
        return task

    def begin_task(self, coro: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Create a task of nobody's scope, and run it at once until it first waits, as an eager one of Python 3.12."""
        task: asyncio.Task[T] = super().create_task(coro, name=name)
        if self._task_factory is not None:
            return task  # it may have been begun by now
        step, current = self._ready.pop(), asyncio.current_task(self)
        if current is not None:
            asyncio.tasks._leave_task(self, current)
        try:
            step._run()
        finally:
            if current is not None:
                asyncio.tasks._enter_task(self, current)
        return task

    def _asyncgen_firstiter_hook(self, agen: AsyncGeneratorType[Any, Any]) -> None:
        super()._asyncgen_firstiter_hook(agen)  # type: ignore[misc] # typeshed has no private names
        if (scope := SCOPE.get()) is not None:
            scope.add_generator(agen)
            self._scopes[id(agen)] = scope
        else:
            self._scopes.pop(id(agen), None)

    def _asyncgen_finalizer_hook(self, agen: AsyncGeneratorType[Any, Any]) -> None:
        if (scope := self._scopes.pop(id(agen), None)) is not None:
            scope.note_dropped(agen)
        context = contextvars.copy_context()
        context.run(SCOPE.set, None)  # the task that closes it is nobody's
        context.run(super()._asyncgen_finalizer_hook, agen)  # type: ignore[misc] # as above

    def _run_once(self) -> None:
        # In place of BaseEventLoop's, with the same order: what is ready, and after it the timers that are due.
        ready = self._ready
        if not ready and not self._stopping:
            self._advance()
        timers, time = self._timers, self._time
        while timers and timers[0][0] <= time:
            handle: Any = heapq.heappop(timers)[2]
            handle._scheduled = False
            if handle._cancelled:
                self._timer_cancelled_count -= 1
            else:
                ready.append(handle)
        self._turns += 1
        if self._turns >= self._looks_at:
            self._look_at_turns()
        if self._debug:
            self._run_ready_and_time_it()
            return
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                handle._run()
        handle = None  # else a failing callback's traceback and its frame hold each other

    def _run_ready_and_time_it(self) -> None:
        for _ in range(len(self._ready)):
            handle: Any = self._ready.popleft()
            if handle._cancelled:
                continue
            self._current_handle = handle
            before = perf_seconds()
            try:
                handle._run()
            finally:
                self._current_handle = None
            if (taken := perf_seconds() - before) >= self.slow_callback_duration:
                logger.warning("Executing %r took %.3f seconds", handle, taken)

    def _advance(self) -> None:
        """With nothing ready: wait for a thread, or jump to the next timer, or raise DeadlockError."""
        timers = self._timers
        self._drop_cancelled_timers()
        if timers and timers[0][0] <= self._time:
            return
        if self._jobs and self._wait_for_jobs(timers[0][0] if timers else math.inf):
            return
        if timers:
            self._jump(timers[0][0])
        elif not (foreign_threads() and self._wait_for_wake(self.thread_grace)):
            self._give_up("deadlock: nothing is left that could wake")

    def _drop_cancelled_timers(self) -> None:
        """Let the next timer, if there is any, be one that will fire."""
        timers = self._timers
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
            self._timer_cancelled_count -= 1

    def _jump(self, when: float) -> None:
        before, self._time, self._now = self._time, when, None
        self.jumps += 1
        if self._move_frozen and clock_is_frozen():
            # The difference of rounded times, so that no rounding adds up.
            move_frozen_clocks((_microseconds(when) - _microseconds(before)) / 1_000_000)

    def _look_at_turns(self) -> None:
        """Give up what has taken too many turns. Before that, let the timers fire that it keeps from firing."""
        if self._turns > self._most_turns:
            self._give_up(f"gave up after {self._most_turns:,} turns of the loop")
            return
        if self.jumps == self._jumps_then and self.has_timers and not self._jobs:
            self.pushes += 1
            self._jump(max(self._time, min(timer.when() for timer in self.timers())))
        self._jumps_then = self.jumps
        self._looks_at = min(self._turns + self._most_turns // _LOOKS, self._most_turns) + 1

    def count_turns_anew(self, from_turn: int = 0, *, busy: bool = False) -> None:
        """Let `max_turns` be counted from now. `busy`: what comes is known to keep time from moving."""
        self._turns = from_turn
        self._jumps_then = self.jumps
        first = 0 if busy else self._most_turns // 8
        self._looks_at = min(max(from_turn + self._most_turns // _LOOKS, first), self._most_turns) + 1

    @contextlib.contextmanager
    def watched(self, when_stuck: WhenStuck, max_turns: int) -> Iterator[None]:
        """Ask `when_stuck` before `DeadlockError` is raised, which comes after `max_turns` at most.

        It returns for how many turns the run may go on, because it has made something ready (cancelled a task, say), or
        0. The last one to watch is asked first.
        """
        watcher = (when_stuck, max_turns)
        self._watchers.append(watcher)
        self._set_most_turns()
        try:
            yield
        finally:
            self._watchers.remove(watcher)
            self._set_most_turns()

    def _set_most_turns(self) -> None:
        self._most_turns = min([self.max_turns, *(turns for _, turns in self._watchers)])
        self.count_turns_anew()

    def wake(self, task: asyncio.Task[Any]) -> None:
        """Let a task go on although what it waits for has not come: for who waits in a way that notices that."""
        wake(task, self)

    def let_go(self, task: asyncio.Task[Any]) -> None:
        """Never run a task again that ignores that it is cancelled. It stays pending, and is none of the loop's."""
        let_go(task, self._ready)
        asyncio.tasks._unregister_task(task)  # as it does when a task is done

    def _give_up(self, what: str) -> None:
        error = self._stuck(what)
        left = next((turns for ask, _ in reversed(self._watchers) if (turns := ask(error))), 0)
        if not left:
            raise error
        self.count_turns_anew(max(0, self._most_turns - left))

    def _stuck(self, what: str) -> DeadlockError:
        tasks = tuple(map(waiting_task, self._pending_tasks()))
        shown = ", ".join(map(str, tasks[:5])) + (f" and {len(tasks) - 5} more" if len(tasks) > 5 else "")
        error = DeadlockError(f"{what} (virtual time {self._time:.10g} s): {shown or 'no task is left'}")
        error.tasks = tasks
        return error

    def _pending_tasks(self) -> list[asyncio.Task[Any]]:
        # Their set has no order. Names that asyncio gives are numbered.
        return sorted(
            asyncio.all_tasks(self), key=lambda task: (len(task.get_name()), task.get_name(), waiting_task(task))
        )

    # Threads

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

    # Ending

    def settle(self) -> bool:
        """Cancel the tasks that are left, wait for them, close asynchronous generators, and end the threads.

        False if some task could not be ended: it ignored its cancellation, and then nothing could wake it.
        """
        self.count_turns_anew(max(0, self._most_turns - _TURNS_TO_END))
        if self._ready or self._asyncgens or asyncio.all_tasks(self):
            try:
                self.run_until_complete(self._cancel_all())
            except DeadlockError:
                pass
            finally:
                self._asyncgens_shutdown_called = False
        self.dismiss_threads()
        left = asyncio.all_tasks(self)
        for task in left:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        return not left

    async def _cancel_all(self) -> None:
        await asyncio.sleep(0)  # what is ready may start tasks, such as one that closes a generator
        tasks = [task for task in self._pending_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                message = "unhandled exception while the virtual-time loop was closed"
                self.call_exception_handler({"message": message, "exception": error, "task": task})
        await self.shutdown_asyncgens()

    def close(self) -> None:
        """Close the loop. It holds nothing but its threads, which are told to end and not waited for."""
        super().close()
        self._timers.clear()
        self._jobs.clear()
        if self._workers is not None:
            self._workers.shutdown(wait=False)

    def __del__(self) -> None:
        # Unlike its base class without a warning: there is no descriptor that could leak.
        if not getattr(self, "_closed", True) and not self.is_running():
            self.close()


def clock_of_loop() -> Clock:
    """Return the clock of what runs now: the virtual one on a loop that has it, else that on the wall."""
    loop = asyncio.get_running_loop()
    return loop.now if isinstance(loop, VirtualClockLoop) else utc_now


async def sleep(seconds: float) -> None:
    """Do what `asyncio.sleep` does. Where only time is to go by, it does, without a turn of the loop."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    if not isinstance(loop, VirtualClockLoop) or task is None or task.cancelling() or not loop.passes(seconds):
        await asyncio.sleep(seconds)


class VirtualRunner:
    """A context manager that runs coroutines one after another on one `VirtualClockLoop`, which it closes at its end.

    Time, and tasks that are left running, go on from one run to the next until `reset()`, as with `asyncio.Runner`.
    The options are those of `VirtualClockLoop`.
    """

    def __init__(self, **options: Unpack[LoopOptions]) -> None:
        self._options = options
        self.loop = VirtualClockLoop(**options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def run(self, main: Coroutine[Any, Any, T], *, context: contextvars.Context | None = None) -> T:
        """Run a coroutine to its end and return its result.

        Raises `DeadlockError` when nothing can wake it any more, having cancelled all tasks and let them clean up, and
        `RunningLoopError` inside a running loop.
        """
        if not asyncio.iscoroutine(main):
            raise ValueError(f"a coroutine was expected, got {main!r}")
        if events._get_running_loop() is not None:
            main.close()
            raise RunningLoopError("run() was called inside a running event loop: await the coroutine there")
        loop = self.loop
        loop.count_turns_anew()
        task = loop.create_task(main, context=context)
        try:
            result: T = loop.run_until_complete(task)
            return result
        except DeadlockError:
            if not task.done():
                self._settle()
            raise

    def reset(self, start: datetime | None = None) -> None:
        """Begin anew: cancel what is left, as at the end, and set the time to zero, `start` on the wall clock."""
        self._settle()
        self.loop.restart(start)

    def close(self) -> None:
        """Cancel what is left, let it clean up, and close the loop."""
        if not self.loop.is_closed():
            try:
                self.loop.settle()
            finally:
                self.loop.close()

    def _settle(self) -> None:
        if not self.loop.settle():  # what cannot be ended must not reach into the next run
            self.loop.close()
            self.loop = VirtualClockLoop(**self._options)


def run(main: Coroutine[Any, Any, T], **options: Unpack[LoopOptions]) -> T:
    """Run a coroutine in virtual time and return its result: `asyncio.run` for tests. Options: see `VirtualClockLoop`.

    Raises `DeadlockError` when nothing can wake it any more, and `RunningLoopError` inside a running loop.
    """
    with VirtualRunner(**options) as runner:
        return runner.run(main)


def _microseconds(seconds: float) -> int:
    return round(seconds * 1_000_000)
