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
    """What is begun while `SCOPE` is set to it, on a loop that tells scopes.

    `begun` counts what has begun since the last `end()`.
    """

    # Of the class, and set when there is something: each call has a scope, and most begin nothing.
    _tasks: WeakSet[asyncio.Task[Any]] | None = None
    _generators: WeakSet[AsyncGeneratorType[Any, Any]] | None = None
    _dropped: tuple[str, ...] = ()
    begun = 0

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
            self._dropped = (*self._dropped, _generator_label(generator))

    def end(self) -> tuple[str, ...]:
        """Return what is left, in words, and cancel its tasks and timers."""
        if not self.begun:
            return ()
        self.begun = 0
        loop: Any = asyncio.get_running_loop()
        if not (self._tasks or self._generators or self._dropped or loop.has_timers):
            return ()
        tasks = _running(self._tasks or ())
        timers = [timer for timer in loop.timers() if self._set(timer)]
        # A generator that a task iterates, and the timer that wakes it, are the task's.
        generators = [] if tasks else [one for one in self._generators or () if one.ag_frame is not None]
        dropped = () if tasks else self._dropped
        parts = [
            *_cancelled(tasks),
            *_part("a timer set", (_timer_label(timer) for timer in timers)),
            *_part("an asynchronous generator open", (*map(_generator_label, generators), *dropped)),
        ]
        for timer in timers:
            timer.cancel()
        self._tasks = self._generators = None
        self._dropped = ()
        return tuple(parts)

    def let_go(self, but: asyncio.Task[Any] | None) -> None:
        """Let go of its tasks but one: they ignore that they are cancelled."""
        tasks, self._tasks = self._tasks or (), None
        for task in _running(tasks):
            if task is not but:
                loop: Any = task.get_loop()
                loop.let_go(task)

    def _set(self, timer: Any) -> bool:
        return timer._context.get(SCOPE) is self and not _is_asyncios(timer._callback)


class NewTasks:
    """The tasks of a loop that does not tell scopes which were not there when this was made."""

    __slots__ = ("_bystanders",)

    def __init__(self) -> None:
        self._bystanders = asyncio.all_tasks()

    def end(self) -> tuple[str, ...]:
        """Return what is left, in words, and cancel it."""
        return tuple(_cancelled(_running(asyncio.all_tasks() - self._bystanders)))


def _running(tasks: Iterable[asyncio.Task[Any]]) -> list[asyncio.Task[Any]]:
    return [task for task in list(tasks) if not task.done()]


def _cancelled(tasks: Sequence[asyncio.Task[Any]]) -> Sequence[str]:
    parts = _part("a task running", map(_task_label, tasks))
    for task in tasks:
        task.cancel()
    return parts


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
