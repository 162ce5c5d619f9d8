"""One step forward: its attempts, until one succeeds or no more is left."""

from __future__ import annotations

import asyncio
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sagaz_core.errors import DefinitionError, SagazError, StepRejected
from sagaz_core.events import NO_DELTA, StepFailed, StepRetryScheduled, StepStarted, StepSucceeded, describe_error
from sagaz_core.saga.context import SagaContext, context_for_undo, delta_of
from sagaz_core.saga.definition import Recovery, is_rejection

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sagaz_core.engine.execution import Execution
    from sagaz_core.saga.step import Step


class NotStartedError(SagazError):
    """A step's action was not called, because the saga turned back while that it would start was being recorded."""


class Attempts:
    """Runs steps for an execution; what goes wrong is left in the execution's `failed`, `cancelled` or `abort`."""

    __slots__ = ("_capture", "_emit", "_execution", "_linear", "_state", "_steps", "_typed")

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._state = execution.state
        self._steps = execution.definition.steps
        self._typed = execution.definition.typed
        self._linear = execution.model.linear
        self._emit = execution.journal.emit
        self._capture = execution.journal.capture

    async def run(self, names: Iterable[str], retried: int = 0) -> None:
        """Run the steps, one after the other, until the saga turns back. To begin a coroutine for each takes longer.

        Each has its attempts, but for those that were `retried` already, each of which is a retry less. Raises only
        what is no `Exception`: the end of the process.
        """
        execution, state, typed, steps = self._execution, self._state, self._typed, self._steps
        emit, capture, watched = self._emit, self._capture, self._execution.interceptors is not None
        for name in names:
            step = steps[name]
            operation = step.action
            function, plain = operation.function, not watched and operation.is_async and operation.timeout is None
            attempt = state.attempts.get(name, 0) + 1
            first = attempt - retried
            while True:
                if capture is None:
                    emit(StepStarted, name, attempt)
                elif not await self._started(name, attempt):
                    return
                given, view = state.context, None
                try:
                    view = SagaContext(given) if typed is None else typed.view(given, {})
                    result = await (
                        function(view) if plain else execution.call(operation, (view,), "action", name, attempt)
                    )
                except asyncio.CancelledError as error:
                    if execution.dead:
                        raise
                    if execution.being_cancelled():
                        self._cancelled(name, attempt, error, in_doubt=True)
                        return
                    failure: BaseException = error
                except Exception as error:  # the user's code: anything
                    failure = error
                else:
                    break
                again = not execution.dead and await self._again(step, attempt, attempt - first, failure)
                del failure  # its traceback has this frame
                if not again:
                    return
                attempt += 1
            if execution.dead:
                return
            self._succeeded(name, attempt, result, given, view)
            if capture is not None and (capture.after_each or not self._written_soon(name)):
                await self._stored(name)
            if execution.abort is not None or execution.cancelled is not None:
                return

    def stand_in(self, name: str, result: dict[str, Any] | None) -> None:
        """Take the result, or nothing, for that of a step that failed after a pivot."""
        given = self._state.context
        view = given if self._typed is None else self._typed.view(given, {})
        how = "skipped" if result is None else "recovered"
        self._succeeded(name, self._state.attempts.get(name, 0), result, given, view, how)

    def _succeeded(
        self, name: str, attempt: int, result: Any, given: dict[str, Any], view: Any, how: str = "run"
    ) -> None:
        delta, capture, emit = NO_DELTA, self._capture, self._emit
        error: Exception | None = None
        try:
            if self._typed is None:
                delta = delta_of(given, view, result)
            else:
                delta = self._typed.delta(name, given, view, result)
        except DefinitionError as raised:
            error = DefinitionError(f"step {name!r}: {raised}") if self._typed is None else raised
        except Exception as raised:  # a mapping of the user's that cannot be read
            error = raised
        if capture is not None:
            delta = capture.prepare(name, delta, result)
        if error is None and delta is not NO_DELTA and not self._linear:
            error = self._execution.conflict(name, delta)
        emit(StepSucceeded, name, attempt, result, delta, how)
        if error is not None:
            self._abort(error)

    async def _again(self, step: Step, attempt: int, retried: int, failure: BaseException) -> bool:
        """Record the failed attempt, and say whether there is another one, after its delay."""
        execution = self._execution
        operation = step.action
        rejected = is_rejection(step, failure, StepRejected)
        retry = not rejected and retried < operation.retries and not execution.turning_back
        if self._capture is not None:
            self._capture.forget_changes_in_place()
        final = not retry and not execution.may_pass_pivot(step.name)
        self._emit(StepFailed, step.name, attempt, describe_error(failure), not rejected, final)
        if retry:
            delay = operation.backoff.delay(retried + 1)
            self._emit(StepRetryScheduled, step.name, attempt + 1, delay, False)
            try:
                await execution.sleep(delay)
            except asyncio.CancelledError as error:
                if execution.dead:
                    raise
                self._note_cancelled(step.name, error)
                return False
            if not execution.turning_back:
                return True
        execution.note_failed(step.name, failure)
        return False

    def _cancelled(self, name: str, attempt: int, error: asyncio.CancelledError, *, in_doubt: bool) -> None:
        if self._capture is not None:
            self._capture.forget_changes_in_place()
        final = not self._execution.may_pass_pivot(name)
        self._emit(StepFailed, name, attempt, describe_error(error), in_doubt, final)
        self._note_cancelled(name, error)

    def _note_cancelled(self, name: str, error: asyncio.CancelledError) -> None:
        execution = self._execution
        if asyncio.current_task() is execution.task:
            execution.note_cancelled(error)
        elif not execution.turning_back:
            # Not because the saga turns back: someone cancelled this step's own task, which makes it fail.
            execution.note_failed(name, error)

    def _abort(self, error: Exception) -> None:
        execution = self._execution
        if execution.abort is None:
            execution.abort = error
            if execution.exception is None:
                execution.exception = error
            capture = self._capture
            execution.stays = capture is not None and capture.is_cut_off_by(error) and execution.would_leave()
            final = not execution.stays and not execution.may_pass_pivot(None)
            self._emit(StepFailed, None, 0, describe_error(error), False, final)

    # ---- with a store

    async def _started(self, name: str, attempt: int) -> bool:
        """Take the snapshot before the step if it is due, make its start durable, and say whether it may go on."""
        execution, capture = self._execution, self._capture
        assert capture is not None
        try:
            capture.before(name)
            self._emit(StepStarted, name, attempt)
            await capture.flush()
        except asyncio.CancelledError as error:
            if execution.dead:
                raise
            self._cancelled(name, attempt, error, in_doubt=False)
            return False
        except Exception as error:  # the store's, which may be anyone's
            execution.check_ours(error)
            self._not_started(name, attempt, error)
            self._abort(error)
            return False
        if execution.turning_back:
            self._not_started(name, attempt, NotStartedError("not started: the saga turned back"))
            return False
        return True

    def _not_started(self, name: str, attempt: int, error: BaseException) -> None:
        # The action was never called: nothing of it is in doubt.
        if name in self._state.running:
            self._emit(StepFailed, name, attempt, describe_error(error), False, False)

    async def _stored(self, name: str) -> None:
        """Take the snapshot after the step if it is due, and make its end durable before anything else is done."""
        execution, capture = self._execution, self._capture
        assert capture is not None
        try:
            capture.after(name)
            if not self._written_soon(name):
                await capture.flush()
        except asyncio.CancelledError as error:
            if execution.dead:
                raise
            self._note_cancelled(name, error)
        except Exception as error:  # the store's, which may be anyone's
            execution.check_ours(error)
            self._abort(error)

    def _written_soon(self, name: str) -> bool:
        """Whether a step that follows starts at once, and writes what this one did together with its own start."""
        execution, done = self._execution, self._state.results
        if execution.turning_back or (self._capture is not None and self._capture.troubled):
            return False
        if len(done) == len(self._steps):
            return execution.interceptors is None  # else there is one more call, at the end
        if self._linear or execution.another_follows:
            return True
        dependents = execution.model.dependents[name]
        return any(all(d in done for d in execution.model.step(other).depends_on) for other in dependents)

    async def ask_recovery(self, step: Step, error: BaseException, attempt: int) -> Any:
        """Return what the step's forward recovery decides; one that fails gives up."""
        execution, state = self._execution, self._state
        assert step.recovery is not None
        try:
            view: Any
            if self._typed is None:
                view = context_for_undo(state.context, MappingProxyType(state.undone))
            else:
                view = self._typed.view(state.context, state.undone)
            arguments = (view, error) if step.recovery.takes_second else (view,)
            return await execution.call(step.recovery, arguments, "recovery", step.name, attempt, error)
        except asyncio.CancelledError as stopped:
            if execution.dead:
                raise
            if execution.being_cancelled():
                execution.note_cancelled(stopped)
            else:
                execution.failed[step.name] = stopped
        except Exception as failure:  # the user's code: anything
            execution.failed[step.name] = failure
        return Recovery.GIVE_UP
