"""The event loop with virtual time: it never waits for a timer, it jumps to it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
import itertools
import logging
import math
from asyncio import events
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, TypeVarTuple

from sagaz_core._frozen import clock_is_frozen, move_frozen_clocks
from sagaz_core._leftovers import SCOPE, Scope
from sagaz_core._stubborn import let_go, wake
from sagaz_core._threaded_loop import ThreadedLoop
from sagaz_core._threads import foreign_threads
from sagaz_core._waiting import waiting_task
from sagaz_core.clock import perf_seconds, plain, utc_now
from sagaz_core.errors import DeadlockError, NaiveTimeError
from sagaz_core.network import NetworklessLoop

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator
    from types import AsyncGeneratorType

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


class VirtualClockLoop(NetworklessLoop, ThreadedLoop):
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
        super().__init__(thread_grace, thread_limit)
        if debug is not None:
            self.set_debug(debug)
        self.max_turns = self._most_turns = max_turns
        self._watchers: list[tuple[WhenStuck, int]] = []
        self._jumps_then = 0
        self._move_frozen = move_frozen
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._order = itertools.count()
        self._scopes: dict[int, Scope] = {}  # of generators, by their ids: what is finalized has no weak references
        self.restart(start)

    tells_scopes = True
    """It tells each `Scope` what is begun in it."""

    _now: datetime | None = None  # made when it is asked for, and again when time has moved

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
        return timer  # type: ignore[no-any-return] # Any for its private attributes

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
            task._log_destroy_pending = False  # type: ignore[attr-defined] # of asyncio's own
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

    def __del__(self) -> None:
        # Unlike its base class without a warning: there is no descriptor that could leak.
        if not getattr(self, "_closed", True) and not self.is_running():
            self.close()


def _microseconds(seconds: float) -> int:
    return round(seconds * 1_000_000)
