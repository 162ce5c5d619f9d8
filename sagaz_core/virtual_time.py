"""Virtual time: an asyncio event loop that never waits for a timer, and jumps to it.

`run(main())` is `asyncio.run(main())` in which a year's sleep takes microseconds and a deadlock is an error at once;
`VirtualRunner` does so many times on one loop. Time only ever moves to the moment of a timer, so that the times that a
run sees are the same in every run of it.
"""

from __future__ import annotations

import asyncio
import contextvars
from asyncio import events
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from sagaz_core._frozen import frozen_at, move_frozen_clocks
from sagaz_core._virtual_loop import LoopOptions, VirtualClockLoop
from sagaz_core._waiting import WaitingTask
from sagaz_core.clock import Clock, utc_now
from sagaz_core.errors import DeadlockError, RunningLoopError

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from datetime import datetime
    from types import TracebackType

__all__ = [
    "VirtualClockLoop",
    "VirtualRunner",
    "WaitingTask",
    "clock_of_loop",
    "frozen_at",
    "move_frozen_clocks",
    "run",
    "sleep",
]

T = TypeVar("T")


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
