"""Ending a step that never yields to the event loop: a loop of its own, which no timeout and no event loop can end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sagaz_core.prove.effects import Stopped
from sagaz_core.prove.endless import NeverYieldsError
from sagaz_core.virtual_time import VirtualClockLoop

if TYPE_CHECKING:
    from types import FrameType

PATIENCE = 60.0
"""Real seconds that one call may keep the event loop for itself."""

_TICK = 1.0
_DEBUGGERS = frozenset({"pdb", "bdb", "ipdb", "IPython", "pudb", "pydevd", "_pydevd_bundle", "debugpy"})


@contextmanager
def watched(call: Callable[[], tuple[int, str]], patience: float | None = None) -> Iterator[None]:
    """Raise `Stopped` by a `NeverYieldsError` in what runs, when `call()` gives the same number for so many seconds.

    `call` returns how many calls were made, and which one is being made (or `""`). Only in the main thread of a system
    that has interval timers, and only if nobody else uses their signal (pytest-timeout does, say); elsewhere it watches
    nothing. `patience` is `PATIENCE` unless given.
    """
    if not _can_watch():
        yield
        return
    seen = (-1, "")
    since = 0.0
    looking = False
    most = PATIENCE if patience is None else patience

    def look(_: int, frame: FrameType | None) -> None:
        nonlocal seen, since, looking
        if looking:
            return  # the machine is so busy that a look takes longer than until the next one
        looking = True
        now = call()
        looking = False
        since = since + _TICK if now == seen and now[1] and not _waits(frame) else 0.0
        seen = now
        if since >= most:
            since = 0.0
            raise Stopped(
                NeverYieldsError(
                    f"{now[1]} did not yield for {most:g} s: let it await what it waits for, or run it in a thread "
                    f"(asyncio.to_thread)",
                    now[1],
                )
            )

    before = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, _TICK, _TICK)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGALRM) is look:  # else what ran has taken it for itself
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def _waits(frame: FrameType | None) -> bool:
    """Whether it is not the user's code that runs: the loop waits (for a thread, or really), or a person debugs."""
    if frame is None or frame.f_code is VirtualClockLoop._wait_for_wake.__code__:
        return True
    if _module(frame) == "selectors":
        return True
    while frame is not None and _module(frame) not in _DEBUGGERS:
        frame = frame.f_back
    return frame is not None


def _module(frame: FrameType) -> str:
    name: str = frame.f_globals.get("__name__", "")
    return name.partition(".")[0]


def _can_watch() -> bool:
    return (
        hasattr(signal, "setitimer")
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGALRM) in (signal.SIG_DFL, signal.SIG_IGN)
    )
