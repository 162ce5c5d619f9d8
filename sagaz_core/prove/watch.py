"""Noticing a step that never yields: a loop of its own, which no timeout and no event loop can end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sagaz_core.errors import SagazError
from sagaz_core.prove.effects import Stopped

PATIENCE = 60.0
"""Real seconds that one call may keep the event loop for itself."""

_TICK = 1.0


class NeverYieldsError(SagazError):
    """A step kept the event loop for itself for too long; the message names it."""


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

    def look(*_: Any) -> None:
        nonlocal seen, since
        now = call()
        since = since + _TICK if now == seen and now[1] else 0.0
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


def _can_watch() -> bool:
    return (
        hasattr(signal, "setitimer")
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGALRM) in (signal.SIG_DFL, signal.SIG_IGN)
    )
