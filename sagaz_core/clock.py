"""The only module that reads a clock or makes randomness: everything else takes them as arguments.

The wall clock (`utc_now`) follows freezegun and time-machine, as a test that freezes the time expects.
The other readings are real whatever is frozen: they measure how long something took, and make ids unique.
"""

from __future__ import annotations

import contextlib
import datetime as _datetime
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeAlias

Clock: TypeAlias = Callable[[], _datetime.datetime]
"""Gives the current time, aware and in UTC."""

IdSource: TypeAlias = Callable[[], str]
"""Gives an id that it has never given before."""


def _real(name: str, owner: object) -> Any:
    # When this module is first imported under a freeze, freezegun still knows what it replaced.
    return getattr(sys.modules.get("freezegun.api"), f"real_{name}", None) or getattr(owner, name)


# freezegun replaces the functions that it finds in the globals of modules; into tuples it does not look.
_REAL_DATETIME: tuple[type[_datetime.datetime]] = (_real("datetime", _datetime),)
_UTC = _datetime.UTC
_PERF: tuple[Callable[[], float]] = (_real("perf_counter", time),)
_MONOTONIC: tuple[Callable[[], float]] = (_real("monotonic", time),)
_TIME_NS: tuple[Callable[[], int]] = (_real("time_ns", time),)


def utc_now() -> _datetime.datetime:
    """Return the current time, aware and in UTC: the frozen one when freezegun or time-machine is active.

    Its class is always the real `datetime`, never freezegun's.
    """
    now = _datetime.datetime.now(_UTC)  # noqa: TID251 - this is the clock
    return now if type(now) is _REAL_DATETIME[0] else plain(now)


def plain(moment: _datetime.datetime) -> _datetime.datetime:
    """Return `moment` as a real `datetime`, which freezegun's are not: same time, zone and fold."""
    real = _REAL_DATETIME[0]
    if type(moment) is real:
        return moment
    return real(
        moment.year,
        moment.month,
        moment.day,
        moment.hour,
        moment.minute,
        moment.second,
        moment.microsecond,
        moment.tzinfo,
        fold=moment.fold,
    )


def perf_seconds() -> float:
    """Return real seconds of the finest clock, from an arbitrary zero. Never frozen."""
    return _PERF[0]()


def monotonic() -> float:
    """Return real seconds that never go back, from an arbitrary zero. Never frozen."""
    return _MONOTONIC[0]()


def _real_time_ms() -> int:
    if (travel := sys.modules.get("time_machine")) is not None:
        # It replaces the clock below Python, for every reference to it, and gives out the real one only meanwhile.
        with contextlib.suppress(ValueError):
            return int(travel.escape_hatch.time.time_ns()) // 1_000_000
    return _TIME_NS[0]() // 1_000_000


_RANDOM = 10
_IDS_AT_ONCE = 32  # for which random bytes are asked of the system


class _IdMaker:
    """UUID version 7 of RFC 9562, with the counter of its section 6.2, method 1 (as in Python 3.14's `uuid7`).

    48 bits of milliseconds, a counter of 42 bits that starts at random for each millisecond, and 32 random bits. When
    the clock stands still or goes back, the counter alone goes on, so that ids of one process always increase.
    """

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._milliseconds = 0
        self._counter = 0
        self._random, self._at = b"", 0
        self._first = ""  # what ids of this millisecond begin with, until 16 bits of the counter have gone round

    def __call__(self) -> str:
        now = _real_time_ms()
        with self._lock:
            self._at += _RANDOM
            if self._at >= len(self._random):
                self._random, self._at = os.urandom(_RANDOM * _IDS_AT_ONCE), 0
            random = int.from_bytes(self._random[self._at : self._at + _RANDOM], "big")
            if now > self._milliseconds:
                self._milliseconds = now
                self._counter = random >> 39  # 41 bits: the highest of the 42 is left for counting
                self._first = ""
            else:
                self._counter += 1
                if self._counter >> 42:
                    self._milliseconds += 1
                    self._counter = random >> 39
                    self._first = ""
            low = self._counter & 0xFFFF
            if not low or not self._first:
                self._first = self._begin()
            first = self._first
        return first + "%012x" % (low << 32 | random & 0xFFFF_FFFF)

    def _begin(self) -> str:
        milliseconds, counter = self._milliseconds, self._counter
        return "%08x-%04x-7%03x-%04x-" % (  # noqa: UP031 - takes two thirds of the time
            milliseconds >> 16 & 0xFFFF_FFFF,
            milliseconds & 0xFFFF,
            counter >> 30,
            0x8000 | counter >> 16 & 0x3FFF,  # the variant
        )


_make_id = _IdMaker()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_make_id._forget)  # another counter, and a lock that nobody holds


def new_id() -> str:
    """Return a new UUIDv7 as a string: unique, and greater than every one that this process made before.

    Safe from any thread and after a fork. Made of the real time, also under a frozen clock.
    """
    return _make_id()
