"""Noticing a step that never yields: a loop of its own, which no timeout and no event loop can end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sagaz_core.errors import SagazError
from sagaz_core.prove.effects import Stopped
from sagaz_core.virtual_time import VirtualClockLoop

if TYPE_CHECKING:
    from types import FrameType

    from sagaz_core.interceptor import Proceed, StepCall

PATIENCE = 60.0
"""Real seconds that one call may keep the event loop for itself."""

_TICK = 1.0


class NeverYieldsError(SagazError):
    """A step kept the event loop for itself for too long; the message names it."""


class Calls:
    """Which call is being made: of runs from the start (`of_runs`), and of a `search` that makes calls of its own."""

    def __init__(self, *, of_runs: bool) -> None:
        self.of_runs = of_runs
        self.made = 0
        self.under_way: list[str] = []
        self.search: Callable[[], tuple[int, str]] | None = None

    async def watch(self, call: StepCall, proceed: Proceed) -> Any:
        """Make a call."""
        self.made += 1
        name = f"the {call.kind} of step {call.step!r}"
        self.under_way.append(name)
        try:
            return await proceed()
        finally:
            self.under_way.remove(name)

    def current(self) -> tuple[int, str]:
        """Return how many calls were made, and which one is being made, or `""`."""
        made, under_way = self.search() if self.search is not None else (0, "")
        return self.made + made, under_way or " and ".join(self.under_way)


@contextmanager
def watched(call: Callable[[], tuple[int, str]], patience: float = PATIENCE) -> Iterator[None]:
    """Raise `Stopped` by a `NeverYieldsError` in what runs, when `call()` gives the same number for so many seconds.

    `call` returns how many calls were made, and which one is being made (or `""`). Only in the main thread of a system
    that has interval timers, and only if nobody else uses their signal; elsewhere it watches nothing.
    """
    if not _can_watch():
        yield
        return
    seen = (-1, "")
    since = 0.0

    def look(_: int, frame: FrameType | None) -> None:
        nonlocal seen, since
        now = call()
        since = since + _TICK if now == seen and now[1] and not _waits(frame) else 0.0
        seen = now
        if since >= patience:
            since = 0.0
            raise Stopped(
                NeverYieldsError(
                    f"{now[1]} did not yield for {patience:g} s: let it await what it waits for, or run it in a thread "
                    f"(asyncio.to_thread)"
                )
            )

    before = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, _TICK, _TICK)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _waits(frame: FrameType | None) -> bool:
    """Whether the loop itself waits, for a thread: then what is under way has yielded."""
    return frame is not None and frame.f_code is VirtualClockLoop._wait_for_wake.__code__


def _can_watch() -> bool:
    return (
        hasattr(signal, "setitimer")
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGALRM) in (signal.SIG_DFL, signal.SIG_IGN)
    )
