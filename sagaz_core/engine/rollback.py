"""Undoing: the compensations of what was done, dependants first, each as hard as it is told to try.

They run one at a time, in the reverse of the order of completion, which is a legal order of any DAG and the same on
every run. They are shielded: cancelling the saga's task again does not stop them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from sagaz_core.engine.calls import call_operation
from sagaz_core.events import (
    CompensationFailed,
    CompensationStarted,
    CompensationSucceeded,
    SagaFailed,
    SagaRolledBack,
    StepRetryScheduled,
    describe_error,
)
from sagaz_core.interceptor import StepCall
from sagaz_core.saga.context import SagaContext, delta_of

if TYPE_CHECKING:
    from sagaz_core.engine.execution import Execution
    from sagaz_core.saga.step import Operation


class Rollback:
    """Undoes what an execution's state says was done."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._journal = execution.journal
        self._state = execution.state
        self._model = execution.model
        self._policy = execution.model.on_compensation_failure

    async def run(self) -> None:
        """Undo all that can be undone, to the end, even if the task is cancelled meanwhile."""
        execution = self._execution
        if execution.journal.capture is not None:
            await self._captured("failed", None)
        steps = steps_to_undo(execution)
        if steps:
            work = asyncio.create_task(self._undo_all(steps), name=f"{self._model.name}:rollback")
            while not work.done():
                try:
                    await asyncio.shield(work)
                except asyncio.CancelledError as error:
                    if work.cancelled():
                        raise
                    execution.cancelled = execution.cancelled or error
            work.result()
        left = tuple(step for step in steps if step not in self._state.undone)
        if left:
            self._journal.emit(SagaFailed, left, None)
        else:
            self._journal.emit(SagaRolledBack)

    async def _undo_all(self, steps: list[str]) -> None:
        failed: list[str] = []
        for step in steps:
            if self._policy == "skip_dependents" and any(
                step in self._model.ancestors[other] for other in failed
            ):
                failed.append(step)
            elif not await self._undo(step):
                failed.append(step)
                if self._policy == "fail_fast":
                    return
        if self._policy == "retry_then_continue":
            for step in failed:
                await self._undo(step)

    async def _undo(self, name: str) -> bool:
        step = self._execution.definition.steps[name]
        operation = step.compensation
        assert operation is not None
        emit = self._journal.emit
        first = self._state.undo_attempts.get(name, 0) + 1
        attempt = first
        while True:
            emit(CompensationStarted, name, attempt)
            if self._journal.capture is not None:
                await self._captured(None, None)
            try:
                result, view = await self._call(name, operation, attempt)
            except asyncio.CancelledError as error:
                if self._execution.dead or _being_cancelled():
                    raise
                failure: BaseException = error
            except Exception as error:  # the user's code: anything
                failure = error
            else:
                emit(CompensationSucceeded, name, attempt, result, delta_of(self._state.context, view, None))
                if self._journal.capture is not None:
                    await self._captured("undone", name)
                return True
            final = attempt - first >= operation.retries
            emit(CompensationFailed, name, attempt, describe_error(failure), final)
            if final:
                return False
            attempt += 1
            delay = operation.backoff.delay(attempt - first)
            emit(StepRetryScheduled, name, attempt, delay, True)
            await asyncio.sleep(delay)

    async def _call(self, name: str, operation: Operation, attempt: int) -> tuple[Any, Any]:
        execution, state = self._execution, self._state
        typed = execution.definition.typed
        view: Any
        if typed is None:
            view = SagaContext(state.context, state.undone)
        else:
            view = typed.view(state.context, state.undone)
        result = state.results.get(name)
        arguments = (view, result) if operation.takes_second else (view,)
        call = None
        if execution.interceptors is not None:
            call = StepCall(state.saga_id, name, "compensation", attempt, view, result, execution.cancel)
        returned = await call_operation(operation, arguments, call, execution.interceptors)
        return returned, view if typed is None else typed.data(view)

    async def _captured(self, phase: str | None, step: str | None) -> None:
        # Undoing is worth more than its record: a store that fails now is an error of the run, but not the end of it.
        execution, capture = self._execution, self._journal.capture
        if capture is None:
            return
        try:
            if phase == "undone" and step is not None:
                capture.undone(step)
            elif phase == "failed":
                capture.failed()
            await capture.flush()
        except Exception as error:  # the store's, which may be anyone's
            if execution.abort is None:
                execution.abort = error


def steps_to_undo(execution: Execution) -> list[str]:
    """Return what must be undone, in order: steps in doubt first, then the completed ones, the last one first."""
    state, model = execution.state, execution.model
    doubtful = [
        name
        for name in state.attempts
        if name in state.ambiguous and name not in state.results and model.step(name).undone_in_doubt
    ]
    done = [name for name in state.results if model.step(name).has_compensation]
    return [*reversed(doubtful), *reversed(done)]


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


