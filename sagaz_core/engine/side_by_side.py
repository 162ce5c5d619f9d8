"""Steps of one run that run at the same time, each in a task, or several in one while none of them waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from sys import getrefcount
from typing import TYPE_CHECKING, Any
from weakref import getweakrefcount

from sagaz_core.engine.eager import BeginTask, create_task
from sagaz_core.engine.rest import Rest

if TYPE_CHECKING:
    from sagaz_core.engine.execution import Execution


class SideBySide:
    """The steps of an execution that are under way. It is true while there are any.

    `stopped`: they were told that the saga turns back.
    """

    __slots__ = ("_deaths", "_ended", "_execution", "_run", "_waiter", "stopped", "tasks")

    def __init__(self, execution: Execution, run: Callable[[Sequence[str]], Coroutine[Any, Any, None]]) -> None:
        self._execution = execution
        self._run = run
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._ended: dict[str, None] = {}
        self._deaths: list[BaseException] = []
        self._waiter: asyncio.Future[None] | None = None
        self.stopped = False

    def __bool__(self) -> bool:
        return bool(self.tasks)

    def begin(self, names: list[str], begin: BeginTask = create_task) -> None:
        """Begin steps that can start together, in their turn unless `begin` is another way."""
        for name in names:
            self.tasks.pop(name, None)  # another task's until now
        task = begin(self._beside_each_other(names), names[0])
        for name in names:
            self.tasks.setdefault(name, task)  # an eager task may have begun others by now
        if task.done():
            self._note_over(names, task)
        else:
            task.add_done_callback(partial(self._note_over, names))

    async def _beside_each_other(self, names: list[str]) -> None:
        """Run the steps one after the other in this task while none of them waits.

        When one does, those after it get a task each. As then, none sees the context variables that another one sets,
        and none is cancelled with the task of another: where someone still holds the task after a step, it is its last.
        """
        task = asyncio.current_task()
        assert task is not None
        held = _holds_on(task)
        for place, name in enumerate(names, 1):
            task.set_name(name)
            run, context = self._run((name,)), copy_context()
            self._execution.another_follows = place < len(names)
            try:
                rest = Rest(run, context.run(run.send, None), context)
            except StopIteration:
                self._note_ended(name)
                if not task.cancelling() and _holds_on(task) == held:
                    continue
                if place < len(names):
                    self._execution.another_follows = False
                    self.begin(names[place:])
                return
            self._execution.another_follows = False
            for other in names[place:]:
                self.begin([other])
            await rest
            return

    def _note_over(self, names: list[str], task: asyncio.Task[None]) -> None:
        """Take in that the task of these steps is over, and with it what of them is still its own."""
        if not task.cancelled() and (death := task.exception()) is not None:
            self._deaths.append(death)
        for name in names:
            if self.tasks.get(name) is task and name not in self._ended:
                self._note_ended(name)

    def _note_ended(self, name: str) -> None:
        self._ended[name] = None
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next_ended(self) -> Iterable[str]:
        """Wait until a step has ended, and return those that have."""
        execution = self._execution
        if execution.turning_back:
            self._stop()
        if not self._ended:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            except asyncio.CancelledError as error:
                if execution.dead:
                    raise
                execution.note_cancelled(error)
                return []
            finally:
                self._waiter = None
        if self._deaths:
            death = self._deaths[0]
            await self._die()
            raise death
        ended, self._ended = self._ended, {}
        for name in ended:
            del self.tasks[name]
        return ended

    def _stop(self) -> None:
        execution = self._execution
        if self.stopped:
            return  # told once: a step that cleans up is not told again and again
        cancels = execution.definition.on_sibling_failure == "cancel"
        if cancels or execution.cancelled is not None:
            self.stopped = True
            for task in dict.fromkeys(self.tasks.values()):
                task.cancel()

    async def _die(self) -> None:
        # What is not an Exception (a simulated crash) ends the process: nothing more happens, nothing is recorded.
        self._execution.dead = True
        tasks = dict.fromkeys(self.tasks.values())
        for task in tasks:
            task.cancel()
        while left := [task for task in tasks if not task.done()]:
            with suppress(asyncio.CancelledError):  # of a saga that is dead already
                await asyncio.wait(left)


def _holds_on(task: asyncio.Task[Any]) -> int:
    """Return how many hold the task, strongly or weakly: one more than before, and someone could cancel it later."""
    return getrefcount(task) + getweakrefcount(task)
