"""Running a saga on from any state: forward as wide as the DAG allows, and back when a step fails.

Between steps all there is to a run is its state; an `Execution` of the same definition on a copy of that state goes on
from there. That is how a crashed saga is resumed, how a replay starts at a checkpoint and how the explorer forks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from sagaz_core.engine.attempts import Attempts
from sagaz_core.engine.journal import Journal
from sagaz_core.engine.rollback import Rollback
from sagaz_core.errors import ContextConflictError
from sagaz_core.events import (
    Delta,
    SagaCompleted,
    SagaFailed,
    SagaResumed,
    StepFailed,
    StepRetryScheduled,
    StepSucceeded,
    describe_error,
)
from sagaz_core.interceptor import Interceptor, StepCall, run_intercepted
from sagaz_core.model import END
from sagaz_core.saga.definition import Definition, Recovery
from sagaz_core.state import SagaStatus


class Execution:
    """One run. `exception` is what turned it back; `abort` is an error of the run itself, raised when all is undone."""

    def __init__(
        self, definition: Definition, journal: Journal, *, interceptors: Sequence[Interceptor] = ()
    ) -> None:
        self.definition = definition
        self.model = definition.model
        self.journal = journal
        self.state = journal.state
        self.interceptors = tuple(interceptors) or None
        self.exception: BaseException | None = None
        self.abort: Exception | None = None
        self.failed: dict[str, BaseException] = {}
        self.cancelled: asyncio.CancelledError | None = None
        self.dead = False
        self.task: asyncio.Task[Any] | None = None
        self._attempts = Attempts(self)

    async def run(self) -> None:
        """Run on to an end. Raises `CancelledError` when the task was cancelled, and `abort`, both after undoing.

        A run that can no more be undone (a pivot is done) and was cancelled or aborted stays where it is; `resume`
        takes it up again.
        """
        if self.state.status.ended:
            return
        self.task = asyncio.current_task()
        forward = self.state.status is SagaStatus.EXECUTING
        if forward and await self._forward():
            self.journal.emit(SagaCompleted)
        elif not self.past_pivot:
            await Rollback(self).run()
        elif self.cancelled is None and self.abort is None:
            self.journal.emit(SagaFailed, tuple(self.failed), self.state.error)
        await self._capture_end()
        if self.cancelled is not None:
            raise self.cancelled
        if self.abort is not None:
            raise self.abort

    async def resume(self) -> None:
        """Take over a run that another process left, and run on. A step that was running is run again."""
        self.journal.emit(SagaResumed)
        await self.run()

    @property
    def turning_back(self) -> bool:
        """Whether no further step may start."""
        return bool(self.failed) or self.cancelled is not None or self.abort is not None

    @property
    def past_pivot(self) -> bool:
        """Whether the point of no return is behind."""
        if not self.definition.has_pivot:
            return False
        return any(step.pivot and step.name in self.state.results for step in self.model.steps)

    async def _forward(self) -> bool:
        waits, ready = self._frontier()
        tasks: dict[asyncio.Task[None], str] = {}
        dependents = self.model.dependents
        while ready or tasks:
            if tasks or len(ready) > 1:
                for name in ready:
                    task = asyncio.create_task(self._attempts.run(name), name=f"{self.model.name}:{name}")
                    tasks[task] = name
                finished = await self._first_of(tasks)
            else:
                finished = ready
                await self._attempts.run(ready[0])
            ready = []
            if not self.turning_back:
                for name in finished:
                    for dependent in dependents[name]:
                        waits[dependent] -= 1
                        if not waits[dependent]:
                            ready.append(dependent)
            elif not tasks:
                if not await self._recover():
                    return False
                waits, ready = self._frontier()
        return await self._end()

    def _frontier(self) -> tuple[dict[str, int], list[str]]:
        """Return how many dependencies each step still waits for, and the steps that can start."""
        waits, done = self.definition.waits_for.copy(), self.state.results
        if done:
            for name in done:
                for dependent in self.model.dependents[name]:
                    waits[dependent] -= 1
        return waits, [name for name in self.model.order if not waits[name] and name not in done]

    async def _first_of(self, tasks: dict[asyncio.Task[None], str]) -> list[str]:
        """Wait until a step has ended, and return those that have, in the order in which they started."""
        if self.turning_back and (self.definition.on_sibling_failure == "cancel" or self.cancelled or self.abort):
            for task in tasks:
                task.cancel()
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError as error:
            self.cancelled = error
            return []
        ended = [task for task in tasks if task.done()]
        deaths = [error for task in ended if (error := None if task.cancelled() else task.exception()) is not None]
        if deaths:
            await self._die(tasks)
            raise deaths[0]
        return [tasks.pop(task) for task in ended]

    async def _die(self, tasks: Mapping[asyncio.Task[None], str]) -> None:
        # What is not an Exception (a simulated crash) ends the process: nothing more happens, nothing is recorded.
        self.dead = True
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.exception()

    async def _end(self) -> bool:
        if self.interceptors is None:
            return True
        call = StepCall(self.state.saga_id, END, "end", 1, self.state.context, None, self.cancel)
        try:
            await run_intercepted(self.interceptors, call, _nothing)
        except Exception as error:  # an interceptor's, so anything
            self.exception = error
            self.failed[END] = error
            self.journal.emit(StepFailed, END, 1, describe_error(error))
            return False
        return True

    def cancel(self) -> None:
        """Cancel the task that runs the saga."""
        if self.task is not None:
            self.task.cancel()

    # ---- after a pivot there is only forward

    async def _recover(self) -> bool:
        if not self.past_pivot or self.cancelled is not None or self.abort is not None:
            return False
        for name in list(self.failed):
            for retry in range(1, self.definition.forward_retries + 1):
                if not await self._recover_once(name, retry):
                    break
                if self.cancelled is not None or self.abort is not None:
                    return False
                if name not in self.failed:
                    break
        return not self.failed

    async def _recover_once(self, name: str, retry: int) -> bool:
        """Do what the forward recovery decides, and say whether it may be asked again."""
        step = self.definition.steps[name]
        decision: Any = Recovery.RETRY
        if step.recovery is not None:
            decision = await self._attempts.ask_recovery(step, self.failed[name], retry)
        if decision is Recovery.RETRY:
            delay = step.action.backoff.delay(retry)
            self.journal.emit(StepRetryScheduled, name, self.state.attempts.get(name, 0) + 1, delay)
            if await self._slept(delay):
                error = self.failed.pop(name)
                await self._attempts.run(name)
                if name not in self.state.results:
                    self.failed.setdefault(name, error)
            return True
        if decision is Recovery.SKIP or isinstance(decision, Mapping):
            result = dict(decision) if isinstance(decision, Mapping) else None
            how = "skipped" if result is None else "recovered"
            delta = Delta(result) if result else Delta()
            self.failed.pop(name)
            self.journal.emit(StepSucceeded, name, self.state.attempts.get(name, 0), result, delta, how)
        return False

    async def _slept(self, delay: float) -> bool:
        try:
            await asyncio.sleep(delay)
        except asyncio.CancelledError as error:
            self.cancelled = error
            return False
        return True

    def conflict(self, step: str, delta: Delta) -> ContextConflictError | None:
        """Return the error of a step that wrote a key which a step not ordered with it wrote too."""
        if self.model.linear or not delta.set:
            return None
        for other, layer in self.state.layers.items():
            if other == step or other in self.model.ancestors[step] or step in self.model.ancestors.get(other, (step,)):
                continue
            for key in layer.set:
                if key in delta.set:
                    return ContextConflictError(key, (other, step))
        return None

    async def _capture_end(self) -> None:
        capture = self.journal.capture
        if capture is None:
            return
        try:
            await capture.ended()
        except Exception as error:  # the store's, which may be anyone's
            if self.abort is None:
                self.abort = error


async def _nothing() -> None:
    return None
