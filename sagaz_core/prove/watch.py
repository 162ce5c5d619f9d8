"""Noticing a step that never ends: it waits for what never comes, is tried for ever, or never yields."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from sagaz_core.prove.effects import Stopped
from sagaz_core.prove.endless import IgnoresCancellationError, NeverEndsError
from sagaz_core.prove.held import Held
from sagaz_core.prove.patience import watched
from sagaz_core.virtual_time import VirtualClockLoop, WaitingTask

if TYPE_CHECKING:
    from sagaz_core.errors import DeadlockError
    from sagaz_core.interceptor import Proceed, StepCall
    from sagaz_core.prove.effects import Effects
    from sagaz_core.prove.trial import Subject

MOST_TURNS = 1_000_000
"""How often the loop may go round within one call."""

MOST_ATTEMPTS = 10_000
"""How often one operation may be tried in a run."""

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_PATIENT = 3  # a call may take its cancelling for an error, and go on
_TURNS_TO_END = 10_000  # and as many turns of the loop it has each time to end

T = TypeVar("T")


class Calls:
    """Which call is being made: of runs from the start (`of_runs`), and of a `search` that makes calls of its own.

    In virtual time a call that never ends is noticed: the loop has nothing left to do, or goes round and round. Then
    the task that explores is cancelled, which ends the run, and `ended` raises `NeverEndsError`. A call that goes on
    all the same is left. One that was found to be endless is not made again.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop if isinstance(loop, VirtualClockLoop) else None  # in another one steps wait really, for long
        self._task = asyncio.current_task(loop)
        self._cancelling = self._task.cancelling() if self._task is not None else 0
        self._never: NeverEndsError | None = None
        self._where = ""
        self._asked = 0
        self._endless: dict[str, NeverEndsError] = {}
        self._steps: dict[str, str] = {}  # of each call by its name
        self.made = 0
        self.under_way: dict[str, Held] = {}
        self._busy: set[str] = set()
        self.search: Effects | None = None

    @property
    def of_runs(self) -> bool:
        """Whether the calls of runs are watched."""
        return self._loop is not None

    def check(self, call: StepCall) -> None:
        """Raise `Stopped` for an operation that was tried too often."""
        if call.attempt > MOST_ATTEMPTS:
            raise Stopped(tried_too_often(call.kind, call.step))

    async def watch(self, call: StepCall, proceed: Proceed) -> Any:
        """Make a call."""
        self.made += 1
        name = f"the {call.kind} of step {call.step!r}"
        if name in self._endless:
            raise Stopped(self._endless[name])
        self._steps[name] = call.step
        self.under_way[name] = held = Held(proceed())
        pushes = self._count_turns_anew()
        try:
            return await held
        finally:
            if self._loop is not None and self._loop.pushes != pushes:
                self._busy.add(name)
            self.under_way.pop(name, None)

    def _count_turns_anew(self) -> int:
        """Count from now; a call that was seen to poll until it was ended needs no patience the next time."""
        if self._loop is None:
            return 0
        self._loop.count_turns_anew(busy=not self._busy.isdisjoint(self.under_way))
        return self._loop.pushes

    def current(self) -> tuple[int, str]:
        """Return how many calls were made, and which one is being made, or `""`."""
        made, under_way = self.search.current() if self.search is not None else (0, "")
        return self.made + made, under_way or " and ".join(self.under_way)

    @contextmanager
    def bounded(self) -> Iterator[None]:
        """Notice what never ends."""
        loop = self._loop
        if loop is None:
            yield
            return
        with loop.watched(self._stuck, MOST_TURNS):
            yield

    async def ended(self, work: Awaitable[T]) -> T:
        """Return what the work comes to. Raises `NeverEndsError` when a call in it never ends."""
        try:
            result = await work
        except (asyncio.CancelledError, Stopped, NeverEndsError) as error:
            cause = error.error if isinstance(error, Stopped) else error
            never = self._taken() or (cause if isinstance(cause, NeverEndsError) else None)
            if never is None:
                raise
            never.step = never.step or self._step_of(never.call)
            self._endless.setdefault(never.call, never)
            self.search = None
            raise never from None
        if (never := self._taken()) is not None:
            raise never
        return result

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Run what may wait for what is not run: that a call does not end there says nothing of it elsewhere."""
        endless = self._endless.copy()
        try:
            yield
        finally:
            self._endless = endless

    def _stuck(self, error: DeadlockError) -> int:
        """End what is under way: by cancelling the run, then the calls (one may be shielded), at last by leaving them.

        Returns for how many turns the loop may go on with that.
        """
        name = self.current()[1]
        if not name or self._task is None or self._loop is None or self._asked > _PATIENT:
            return 0
        self._asked += 1
        if self._never is None:
            self._where = _where(error)
            self._found(NeverEndsError(f"{name} never ends{self._where}", name, self._first_step(name)))
        if self._asked == 1:
            self._task.cancel()
        elif self._asked <= _PATIENT:
            for held in self._held():
                held.cancel()
        else:
            said = f"{name} never ends, and goes on when it is cancelled{self._where}"
            self._found(IgnoresCancellationError(said, name, self._first_step(name)))
            for held in self._held():
                held.leave(Stopped(self._never), self._loop)
        return _TURNS_TO_END

    def _held(self) -> list[Held]:
        searched = self.search.held if self.search is not None else None
        return [*([searched] if searched is not None else ()), *self.under_way.values()]

    def _found(self, never: NeverEndsError) -> None:
        self._never = never
        self._endless.update(dict.fromkeys(self.under_way, never))

    def _first_step(self, name: str) -> str | None:
        return self._step_of(next(iter(self.under_way), name))

    def _step_of(self, name: str) -> str | None:
        sight = self.search.under_way if self.search is not None else None
        return self._steps.get(name, sight.step if sight is not None else None)

    def _taken(self) -> NeverEndsError | None:
        never, self._never, self._asked = self._never, None, 0
        if never is not None:
            while self._task is not None and self._task.cancelling() > self._cancelling:
                self._task.uncancel()
        return never


@contextmanager
def watched_calls(subject: Subject) -> Iterator[Subject]:
    """Give back what is to be run, with its calls watched: one that never ends is named, and the run is judged.

    In real time steps may wait for long, and nothing is watched.
    """
    calls = Calls(asyncio.get_running_loop())
    with calls.bounded(), watched(calls.current) if calls.of_runs else nullcontext():
        yield replace(subject, calls=calls)


def _where(error: DeadlockError) -> str:
    """Say where the user's own code waits, and what is the matter there."""
    tasks = [task for task in error.tasks if isinstance(task, WaitingTask)]
    own = [task for task in tasks if not os.path.abspath(task.where).startswith(_PACKAGE)]
    what = str(error).partition("): ")[0]
    return "".join(f", it waits at {task.where} for {task.waits_for}" for task in own[:1]) + f": {what})"


def tried_too_often(kind: str, step: str) -> NeverEndsError:
    """Return the error for an operation that goes on being tried."""
    name = f"the {kind} of step {step!r}"
    return NeverEndsError(f"{name} was tried {MOST_ATTEMPTS:,} times in one run, and goes on", name, step)
