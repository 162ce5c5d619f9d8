"""The seam: what the engine of the `sagaz` package does with a saga's functions, watched and written down.

The engine is given wrapped functions and nothing else; each call goes through the interceptors and into the journal.
What it does between the calls (its levels, its retries, what it undoes and what it does not) is its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from sagaz_core.errors import StepRejected, StepTimeoutError
from sagaz_core.events import (
    NO_DELTA,
    CompensationFailed,
    CompensationStarted,
    CompensationSucceeded,
    Delta,
    SagaCompleted,
    SagaFailed,
    SagaRolledBack,
    StepFailed,
    StepRetryScheduled,
    StepStarted,
    StepSucceeded,
    describe_error,
)
from sagaz_core.interceptor import CallKind, Interceptor, StepCall, run_intercepted
from sagaz_core.model import END, SagaModel
from sagaz_core.saga.context import SagaContext
from sagaz_core.state import SagaStatus

if TYPE_CHECKING:
    from sagaz_core.engine.journal import Journal
    from sagaz_core.engine.run import Served

_MISSING = object()
Call = Callable[[], Awaitable[Any]]


class Prepared(Protocol):
    """One run's own copy of a saga, of either kind. `bookkeeping` are the context keys that are the engine's own."""

    model: SagaModel
    source: str
    bookkeeping: frozenset[str]

    def initial(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the saga begins with, when it is run with this."""

    def wrap(self, watch: Watch) -> None:
        """Put the watch around the functions of the copy's steps."""

    def data(self) -> dict[str, Any]:
        """Return the context that the engine holds, itself."""

    def merged(self, step: str, result: Any) -> Mapping[str, Any]:
        """Return what the engine puts into its context when the step has returned this."""

    def backoff(self, attempt: int) -> float:
        """Return the seconds that the engine waits after this attempt (1, 2…) failed."""

    async def run(self, initial: dict[str, Any], saga_id: str) -> tuple[SagaStatus, Exception | None]:
        """Let the engine run the saga; return how it says that it ended, and the error that it gives for that."""


class Watch:
    """One run. `exception` is what turned it back; `abort` is an error of the run itself, raised when it is over.

    What a step put into the context while another one was running beside it can only be told apart by what they
    returned; keys that it set in the context itself are taken for those of the step that ended first.
    """

    def __init__(
        self, prepared: Prepared, journal: Journal, interceptors: Sequence[Interceptor], served: Sequence[Served]
    ) -> None:
        self.exception: BaseException | None = None
        self.abort: Exception | None = None
        self._prepared = prepared
        self._model = prepared.model
        self._journal = journal
        self._state = journal.state
        self._interceptors = tuple(interceptors)
        self._served = {step.step: step for step in served}
        self._failed: list[str] = []
        self._turned = False
        self._over = False
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()

    @property
    def has_end(self) -> bool:
        """Whether something may still fail behind the last step: by a fault, or in the store."""
        return bool(self._interceptors) or self._journal.capture is not None

    # ---- forward

    async def act(self, name: str, function: Call) -> Any:
        """Make one attempt at a step's action. It returns and raises what the engine is to see of it."""
        if self.abort is not None:
            raise self.abort
        if name in self._served:
            return self._serve(self._served.pop(name))
        attempt = self._state.attempts.get(name, 0) + 1
        before = self._prepared.data().copy()
        try:
            await self._start(name, attempt)
            result = await self._call(name, "action", attempt, function)
        except asyncio.CancelledError as error:
            self._not_done(name, attempt, self._meaning(error, self._model.step(name).timeout))
            raise
        except Exception as error:  # the user's code: anything
            if error is not self.abort:
                self._not_done(name, attempt, error)
            raise
        if not self._over:  # else it outlived the engine's run, and its effect is no longer part of the saga
            await self._done(name, attempt, result, before)
        return result

    def _serve(self, served: Served) -> Any:
        data = self._prepared.data()
        data.update(served.delta.set)
        for key in served.delta.deleted:
            data.pop(key, None)
        return served.result

    async def _start(self, name: str, attempt: int) -> None:
        capture = self._journal.capture
        if capture is None:
            self._journal.emit(StepStarted, name, attempt)
            return
        try:
            capture.before(name)
            self._journal.emit(StepStarted, name, attempt)
            await capture.flush()
        except Exception as error:  # the store's, which may be anyone's
            if name in self._state.running:
                # The action was never called: nothing of it is in doubt.
                self._journal.emit(StepFailed, name, attempt, describe_error(error), False, False)
            self._abort(error)
            raise

    async def _done(self, name: str, attempt: int, result: Any, before: Mapping[str, Any]) -> None:
        delta = self._delta(before, self._prepared.merged(name, result))
        capture = self._journal.capture
        unfit: Exception | None = None
        if capture is not None:
            try:
                delta = capture.prepare(name, delta, result)
            except Exception as error:  # a result or a value that cannot be kept
                delta, result, unfit = NO_DELTA, None, error
        self._journal.emit(StepSucceeded, name, attempt, result, delta, "run")
        if unfit is not None:
            self._abort(unfit)
        if capture is not None:
            await self._captured(lambda: capture.after(name))

    def _not_done(self, name: str, attempt: int, error: BaseException) -> None:
        if self._over:
            return
        # A cancellation is no failure to that engine: it does not try again, nor does it turn back because of it.
        failure = isinstance(error, Exception)
        again = failure and attempt <= self._model.step(name).retries
        in_doubt = not isinstance(error, StepRejected)
        self._journal.emit(StepFailed, name, attempt, describe_error(error), in_doubt, failure and not again)
        if again:
            self._journal.emit(StepRetryScheduled, name, attempt + 1, self._prepared.backoff(attempt), False)
        else:
            self._note(name, error)

    async def end(self) -> None:
        """Be called when every step is done, before the engine says so; what it raises turns the saga back."""
        if self.abort is not None:
            raise self.abort
        try:
            await self._call(END, "end", 1, _nothing)
        except Exception as error:  # an interceptor's, so anything
            self._journal.emit(StepFailed, END, 1, describe_error(error), False, True)
            self._note(END, error)
            raise

    # ---- back

    async def undo(self, name: str, function: Call) -> Any:
        """Make one attempt at a step's compensation. It returns and raises what the engine is to see of it."""
        if self._over:
            return await self._call(name, "compensation", self._state.undo_attempts.get(name, 0) + 1, function)
        attempt = self._state.undo_attempts.get(name, 0) + 1
        before = self._prepared.data().copy()
        try:
            await self._turn_back()
            self._journal.emit(CompensationStarted, name, attempt)
            await self._captured(None)
            result = await self._call(name, "compensation", attempt, function)
        except asyncio.CancelledError as error:
            self._not_undone(name, attempt, self._meaning(error, self._model.step(name).compensation_timeout))
            raise
        except Exception as error:  # the user's code: anything
            self._not_undone(name, attempt, error)
            raise
        self._journal.emit(CompensationSucceeded, name, attempt, result, self._delta(before, {}))
        capture = self._journal.capture
        if capture is not None:
            await self._captured(lambda: capture.undone(name))
        return result

    def _not_undone(self, name: str, attempt: int, error: BaseException) -> None:
        again = isinstance(error, Exception) and attempt <= self._model.step(name).compensation_retries
        self._journal.emit(CompensationFailed, name, attempt, describe_error(error), not again)
        if again:
            self._journal.emit(StepRetryScheduled, name, attempt + 1, self._prepared.backoff(attempt), True)

    async def _turn_back(self) -> None:
        if not self._turned:
            self._turned = True
            capture = self._journal.capture
            if capture is not None:
                await self._captured(capture.failed)

    # ---- the end

    async def finish(self, claimed: SagaStatus, error: Exception | None) -> None:
        """Write down how the saga really ended, whatever its engine claims."""
        self._over = True
        if self.exception is None:
            self.exception = error
        if claimed is SagaStatus.COMPLETED:
            self._finish_forward()
        else:
            if error is not None and self._state.error is None:
                self._journal.emit(StepFailed, None, 0, describe_error(error), False, True)
            await self._turn_back()
            self._finish_back()
        await self.close()

    def _finish_forward(self) -> None:
        # The declarative engine takes a step that raised CancelledError for one that succeeded.
        missing = tuple(name for name in self._model.order if name not in self._state.results)
        if missing:
            self._journal.emit(SagaFailed, missing, self._state.error)
        else:
            self._journal.emit(SagaCompleted)

    def _finish_back(self) -> None:
        results, model = self._state.results, self._model
        pivots = [name for name in results if model.step(name).pivot]
        kept = set(pivots).union(*(model.ancestors[pivot] for pivot in pivots))
        left = [name for name in reversed(results) if model.step(name).has_compensation and name not in kept]
        if left or pivots:
            stuck = dict.fromkeys((*left, *(self._failed if pivots else ())))
            self._journal.emit(SagaFailed, tuple(stuck), self._state.error)
        else:
            self._journal.emit(SagaRolledBack)

    async def close(self) -> None:
        """Write down what is left to be written, also of a run that was cancelled."""
        self._over = True
        capture = self._journal.capture
        if capture is not None:
            try:
                await capture.ended()
            except Exception as error:  # the store's, which may be anyone's
                self.abort = self.abort or error

    # ---- what both ways share

    async def _call(self, name: str, kind: CallKind, attempt: int, function: Call) -> Any:
        if not self._interceptors:
            return await function()
        state = self._state
        data = {key: value for key, value in self._prepared.data().items() if not self._hidden(key)}
        result = state.results.get(name) if kind == "compensation" else None
        view = SagaContext(data)
        view.compensation_results = state.undone
        call = StepCall(state.saga_id, name, kind, attempt, view, result, self._task.cancel)
        return await run_intercepted(self._interceptors, call, function)

    def _delta(self, before: Mapping[str, Any], merged: Mapping[str, Any]) -> Delta:
        data, known = self._prepared.data(), self._state.context
        changed = {
            key: value
            for key, value in data.items()
            # What is known already was returned by a step that ran beside this one.
            if before.get(key, _MISSING) is not value
            and known.get(key, _MISSING) is not value
            and not self._hidden(key)
        }
        changed.update(merged)
        deleted = tuple(key for key in before if key not in data and key in known and key not in changed)
        return Delta(changed, deleted) if changed or deleted else NO_DELTA

    def _hidden(self, key: str) -> bool:
        return key in self._prepared.bookkeeping and key not in self._state.initial

    def _meaning(self, error: asyncio.CancelledError, timeout: float | None) -> BaseException:
        """Return what a cancellation inside of a function is: its time is up, or the saga's task was cancelled."""
        current = asyncio.current_task()
        if timeout is None or current is None or not current.cancelling():
            return error
        if self._task.cancelling() > self._cancelling:
            return error
        return StepTimeoutError(f"not done within {timeout:g} s")

    def _note(self, name: str, error: BaseException) -> None:
        self._failed.append(name)
        if self.exception is None:
            self.exception = error

    def _abort(self, error: Exception) -> None:
        if self.abort is None:
            self.abort = error
            self.exception = self.exception or error
            if not self._turned and not self._over:
                self._journal.emit(StepFailed, None, 0, describe_error(error), False, True)

    async def _captured(self, take: Callable[[], object] | None) -> None:
        capture = self._journal.capture
        if capture is None:
            return
        try:
            if take is not None:
                take()
            await capture.flush()
        except Exception as error:  # the store's, which may be anyone's
            self._abort(error)


async def _nothing() -> None:
    return None
