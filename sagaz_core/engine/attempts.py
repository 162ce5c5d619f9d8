"""One step forward: its attempts, until one succeeds or no more is left."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from sagaz_core.engine.calls import call_operation
from sagaz_core.errors import StepRejected
from sagaz_core.events import NO_DELTA, StepFailed, StepRetryScheduled, StepStarted, StepSucceeded, describe_error
from sagaz_core.interceptor import StepCall
from sagaz_core.saga.context import SagaContext, delta_of
from sagaz_core.saga.definition import Recovery, is_rejection

if TYPE_CHECKING:
    from sagaz_core.engine.execution import Execution
    from sagaz_core.saga.step import Step


class Attempts:
    """Runs steps for an execution; what goes wrong is left in the execution's `failed`, `cancelled` or `abort`."""

    __slots__ = ("_capture", "_emit", "_execution", "_state", "_steps", "_typed")

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._state = execution.state
        self._steps = execution.definition.steps
        self._typed = execution.definition.typed
        self._emit = execution.journal.emit
        self._capture = execution.journal.capture

    async def run(self, name: str) -> None:
        """Run the step's attempts. Raises only what is no `Exception`: the end of the process."""
        step = self._steps[name]
        execution, capture = self._execution, self._capture
        first = self._state.attempts.get(name, 0) + 1
        attempt = first
        while True:
            if capture is not None and not await self._captured("before", name, attempt):
                return
            if capture is None:
                self._emit(StepStarted, name, attempt)
            given = self._state.context
            try:
                result, view = await self._call(step, attempt)
            except asyncio.CancelledError as error:
                if execution.dead:
                    raise
                if _being_cancelled():
                    self._cancelled(name, attempt, error)
                    return
                failure: BaseException = error
            except Exception as error:  # the user's code: anything
                failure = error
            else:
                self._succeeded(name, attempt, result, given, view)
                if capture is not None:
                    await self._captured("after", name, attempt)
                return
            if not await self._again(step, attempt, attempt - first, failure):
                return
            attempt += 1

    async def _call(self, step: Step, attempt: int) -> tuple[Any, Any]:
        state, execution = self._state, self._execution
        view: Any
        if self._typed is None:
            view = SagaContext(state.context, state.undone)
        else:
            view = self._typed.view(state.context, state.undone)
        operation = step.action
        call = None
        if execution.interceptors is not None:
            call = StepCall(state.saga_id, step.name, "action", attempt, view, None, execution.cancel)
        elif operation.is_async and operation.timeout is None:
            return await operation.function(view), view
        return await call_operation(operation, (view,), call, execution.interceptors), view

    def _succeeded(self, name: str, attempt: int, result: Any, given: dict[str, Any], view: Any) -> None:
        execution = self._execution
        try:
            if self._typed is not None:
                self._typed.check(name, result)
                view = self._typed.data(view)
            delta = delta_of(given, view, result)
            if self._capture is not None:
                delta = self._capture.prepare(name, delta, result)
            error: Exception | None = execution.conflict(name, delta)
        except Exception as raised:  # a result or a value that cannot be kept
            delta, error = NO_DELTA, raised
        self._emit(StepSucceeded, name, attempt, result if error is None else None, delta)
        if error is not None:
            self._abort(error)

    async def _again(self, step: Step, attempt: int, retried: int, failure: BaseException) -> bool:
        """Record the failed attempt, and say whether there is another one, after its delay."""
        execution = self._execution
        operation = step.action
        rejected = is_rejection(step, failure, StepRejected)
        retry = not rejected and retried < operation.retries and not execution.turning_back
        # With a pivot under way or behind, whether the saga turns back is only known when no step runs any more.
        final = not retry and not execution.definition.has_pivot
        self._emit(StepFailed, step.name, attempt, describe_error(failure), not rejected, final)
        if retry:
            delay = operation.backoff.delay(retried + 1)
            self._emit(StepRetryScheduled, step.name, attempt + 1, delay)
            try:
                await asyncio.sleep(delay)
            except asyncio.CancelledError as error:
                if execution.dead:
                    raise
                self._note_cancelled(error)
                return False
            if not execution.turning_back:
                return True
        if execution.exception is None:
            execution.exception = failure
        execution.failed[step.name] = failure
        return False

    def _cancelled(self, name: str, attempt: int, error: asyncio.CancelledError) -> None:
        final = not self._execution.past_pivot
        self._emit(StepFailed, name, attempt, describe_error(error), True, final)
        self._note_cancelled(error)

    def _note_cancelled(self, error: asyncio.CancelledError) -> None:
        # A sibling's task is cancelled because the saga turns back; only the saga's own task means the saga.
        execution = self._execution
        if asyncio.current_task() is execution.task:
            execution.cancelled = error
            if execution.exception is None:
                execution.exception = error

    def _abort(self, error: Exception) -> None:
        execution = self._execution
        if execution.abort is None:
            execution.abort = error
            if execution.exception is None:
                execution.exception = error
            self._emit(StepFailed, None, 0, describe_error(error), False, not execution.past_pivot)

    async def _captured(self, phase: str, name: str, attempt: int) -> bool:
        """Take the snapshot if it is due and make it durable; say whether the step may go on."""
        capture = self._capture
        if capture is None:
            return True
        try:
            if phase == "before":
                capture.before(name)
                self._emit(StepStarted, name, attempt)
            else:
                capture.after(name)
            await capture.flush()
        except asyncio.CancelledError as error:
            if self._execution.dead:
                raise
            if phase == "before":
                self._cancelled(name, attempt, error)
            else:
                self._note_cancelled(error)
            return False
        except Exception as error:  # the store's, which may be anyone's
            if name in self._state.running:
                # The action was never called: nothing of it is in doubt.
                self._emit(StepFailed, name, attempt, describe_error(error), False, False)
            self._abort(error)
            return False
        return True

    async def ask_recovery(self, step: Step, error: BaseException, attempt: int) -> Any:
        """Return what the step's forward recovery decides; one that fails gives up."""
        execution, state = self._execution, self._state
        assert step.recovery is not None
        view: Any = SagaContext(state.context, state.undone)
        arguments = (view, error) if step.recovery.takes_second else (view,)
        call = StepCall(state.saga_id, step.name, "recovery", attempt, view, error, execution.cancel)
        try:
            return await call_operation(step.recovery, arguments, call, execution.interceptors)
        except Exception as failure:  # the user's code: anything
            execution.failed[step.name] = failure
            return Recovery.GIVE_UP


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
