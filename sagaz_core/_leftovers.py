"""What was begun on an event loop and not ended: tasks, timers and asynchronous generators.

`VirtualClockLoop` tells the `Scope` that it runs in of all that begins. Scopes are kept in a context variable, so that
what runs side by side is told apart, and a task's own tasks are in its scope too.
"""

from __future__ import annotations

import asyncio
import functools
import os
import re
import sysconfig
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from sagaz_core._waiting import UNKNOWN, short_path, waiting_task

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import AsyncGeneratorType

SCOPE: ContextVar[Scope | None] = ContextVar("sagaz_scope", default=None)

_UNNAMED = re.compile(r"Task-\d+")
_LIBRARIES = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "purelib", "platlib")})


def tells_scopes(loop: Any) -> bool:
    """Whether it is a loop of ours."""
    return getattr(loop, "tells_scopes", False)


class Scope:
    """What is begun while `SCOPE` is set to it. On a loop that does not tell scopes, tasks that were not there before.

    `begun` counts what has begun since the last `end()`.
    """

    __slots__ = ("_bystanders", "_dropped", "_generators", "_loop", "_tasks", "begun")

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._bystanders = None if tells_scopes(loop) else asyncio.all_tasks()
        self._tasks: WeakSet[asyncio.Task[Any]] | None = None  # made when there is one: most calls begin nothing
        self._generators: WeakSet[AsyncGeneratorType[Any, Any]] | None = None
        self._dropped: list[str] = []
        self.begun = 0

    def add_task(self, task: asyncio.Task[Any]) -> None:
        """Take note of a new task."""
        self.begun += 1
        if self._tasks is None:
            self._tasks = WeakSet()
        self._tasks.add(task)

    def add_generator(self, generator: AsyncGeneratorType[Any, Any]) -> None:
        """Take note of an asynchronous generator that is iterated for the first time."""
        self.begun += 1
        if self._generators is None:
            self._generators = WeakSet()
        self._generators.add(generator)

    def note_dropped(self, generator: AsyncGeneratorType[Any, Any]) -> None:
        """Take note of a generator that nobody can close any more but the loop, some time after."""
        self.begun += 1
        if not generator.ag_code.co_filename.startswith(_LIBRARIES):
            self._dropped.append(_generator_label(generator))

    def end(self) -> tuple[str, ...]:
        """Return what is left, in words, and cancel its tasks and timers."""
        if self._bystanders is None and not self.begun:
            return ()
        self.begun = 0
        if self._bystanders is None and not (self._tasks or self._generators or self._dropped or self._loop.has_timers):
            return ()
        own = self._tasks or ()
        waiting = own if self._bystanders is None else asyncio.all_tasks(self._loop) - self._bystanders
        tasks = [task for task in waiting if not task.done()]
        timers = [] if self._bystanders is not None else self._timers()
        # A generator that a task iterates, and the timer that wakes it, are the task's.
        generators = [] if tasks else [one for one in self._generators or () if one.ag_frame is not None]
        dropped = [] if tasks else self._dropped
        parts = [
            *_part("a task running", map(_task_label, tasks)),
            *_part("a timer set", (_timer_label(timer) for timer in timers)),
            *_part("an asynchronous generator open", (*map(_generator_label, generators), *dropped)),
        ]
        for task in tasks:
            task.cancel()
        for timer in timers:
            timer.cancel()
        self._tasks = self._generators = None
        self._dropped = []
        return tuple(parts)

    def let_go(self, but: asyncio.Task[Any] | None) -> None:
        """Let go of its tasks but one: they ignore that they are cancelled. The loop is one of ours."""
        tasks, self._tasks = self._tasks or (), None
        for task in list(tasks):
            if task is not but and not task.done():
                self._loop.let_go(task)

    def _timers(self) -> list[asyncio.TimerHandle]:
        return [
            timer
            for timer in self._loop.timers()
            if timer._context.get(SCOPE) is self and not _is_asyncios(timer._callback)
        ]


def _part(what: str, labels: Iterable[str]) -> Sequence[str]:
    names = sorted(labels)
    return [f"{what} ({', '.join(names)})"] if names else []


def _is_asyncios(callback: Any) -> bool:
    """Whether a timer is one that wakes a task: a sleep's, or a timeout's. The task is what is left then."""
    return str(getattr(callback, "__module__", "")).split(".")[0] == "asyncio"


def _task_label(task: asyncio.Task[Any]) -> str:
    waiting = waiting_task(task)
    name = waiting.coroutine if _UNNAMED.fullmatch(waiting.name) else waiting.name
    return name if waiting.where == UNKNOWN else f"{name} at {waiting.where}"


def _timer_label(timer: Any) -> str:
    callback = timer._callback
    while isinstance(callback, functools.partial):
        callback = callback.func
    name = getattr(callback, "__qualname__", None) or type(callback).__qualname__
    code = getattr(getattr(callback, "__func__", callback), "__code__", None)
    return f"{name} at {short_path(code.co_filename)}:{code.co_firstlineno}" if code is not None else name


def _generator_label(generator: AsyncGeneratorType[Any, Any]) -> str:
    code, frame = generator.ag_code, generator.ag_frame
    line = frame.f_lineno if frame is not None else code.co_firstlineno
    return f"{getattr(generator, '__qualname__', code.co_name)} at {short_path(code.co_filename)}:{line}"
