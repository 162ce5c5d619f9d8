"""The seam: what the engine of the `sagaz` package does with a saga's functions, watched and written down.

The engine is given wrapped functions and nothing else; each call goes through the interceptors and into the journal.
What it does between the calls (levels, retries, what it undoes and what it does not) is its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from sagaz_core.engine.journal import Journal
from sagaz_core.engine.run import Served
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
from sagaz_core.interceptor import Interceptor, StepCall, run_intercepted
from sagaz_core.model import END, SagaModel
from sagaz_core.saga.context import SagaContext
from sagaz_core.state import SagaStatus

_MISSING = object()
Call = Callable[[], Awaitable[Any]]


class Equipped(Protocol):
    """One run's own copy of a saga, of either kind."""

    saga: Any
    model: SagaModel
    bookkeeping: frozenset[str]

    def initial(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the saga begins with, when it is run with this."""

    def wrap(self, watch: Watch) -> None:
        """Put the watch around the functions of the saga's steps."""

    def data(self) -> dict[str, Any]:
        """Return the context that the engine holds, itself."""

    def merged(self, step: str, result: Any) -> Mapping[str, Any]:
        """Return what the engine puts into its context when the step has returned this."""

    def backoff(self, attempt: int) -> float:
        """Return the seconds that the engine waits after this attempt failed."""

    async def run(self, initial: dict[str, Any], saga_id: str) -> tuple[SagaStatus, Exception | None]:
        """Let the engine run the saga; return how it says that it ended, and the error that it gives for that."""


class Watch:
    """One run. `exception` is what turned it back; `abort` is an error of the run itself, raised when it is over."""

    def __init__(
        self, equipped: Equipped, journal: Journal, interceptors: Sequence[Interceptor], served: Sequence[Served]
    ) -> None:
        self.equipped = equipped
        self.model = equipped.model
        self.journal = journal
        self.state = journal.state
        self.interceptors = tuple(interceptors)
        self.served = {step.step: step for step in served}
        self.exception: BaseException | None = None
        self.abort: Exception | None = None
        self.failed: dict[str, BaseException] = {}
        self.over = False
        self.turned = False
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()

    @property
    def has_end(self) -> bool:
        """Whether something may still fail behind the last step: a fault, or the store."""
        return bool(self.interceptors) or self.journal.capture is not None

    # ---- forward

    async def act(self, name: str, function: Call) -> Any:
        """Make one attempt at a step's action. It returns and raises what the engine is to see of it."""
        if self.abort is not None:
            raise self.abort
        if name in self.served:
            return self._serve(self.served.pop(name))
        attempt = self.state.attempts.get(name, 0) + 1
        before = self.equipped.data().copy()
        try:
            await self._start(name, attempt)
            result = await self._call(name, "action", attempt, function)
        except asyncio.CancelledError as error:
            self._failed(name, attempt, self._meaning(error, self.model.step(name).timeout), error)
            raise
        except Exception as error:  # the user's code: anything
            self._failed(name, attempt, error, error)
            raise
        await self._succeeded(name, attempt, result, before)
        return result

    def _serve(self, served: Served) -> Any:
        data = self.equipped.data()
        data.update(served.delta.set)
        for key in served.delta.deleted:
            data.pop(key, None)
        return served.result

    async def _start(self, name: str, attempt: int) -> None:
        capture = self.journal.capture
        if capture is None:
            self.journal.emit(StepStarted, name, attempt)
            return
        try:
            capture.before(name)
            self.journal.emit(StepStarted, name, attempt)
            await capture.flush()
        except Exception as error:  # the store's, which may be anyone's
            self._abort(error)
            raise

    async def _call(self, name: str, kind: Any, attempt: int, function: Call) -> Any:
        if not self.interceptors:
            return await function()
        state = self.state
        data = {key: value for key, value in self.equipped.data().items() if not self._hidden(key)}
        result = state.results.get(name) if kind == "compensation" else None
        view = SagaContext(data, state.undone)
        call = StepCall(state.saga_id, name, kind, attempt, view, result, self._task.cancel)
        return await run_intercepted(self.interceptors, call, function)

    async def _succeeded(self, name: str, attempt: int, result: Any, before: Mapping[str, Any]) -> None:
        if self.over:  # it outlived the engine's run: its effect is there, but no longer part of the saga
            return
        delta = self._delta(before, self.equipped.merged(name, result))
        capture = self.journal.capture
        error: Exception | None = None
        if capture is not None:
            try:
                delta = capture.prepare(name, delta, result)
            except Exception as raised:  # a result or a value that cannot be kept
                delta, error, result = NO_DELTA, raised, None
        self.journal.emit(StepSucceeded, name, attempt, result, delta)
        if error is not None:
            self._abort(error)
        if capture is not None:
            await self._captured(lambda: capture.after(name))

    def _failed(self, name: str, attempt: int, error: BaseException, seen: BaseException) -> None:
        if self.over:
            return
        model = self.model.step(name)
        again = attempt <= model.retries and self.abort is None and not self._cancelled
        if isinstance(seen, asyncio.CancelledError) and error is seen:
            again = False  # to the engine that is no failure of the step
        in_doubt = error is not self.abort and not isinstance(error, StepRejected)
        # When its task is cancelled, the engine stops where it is: it does not turn back.
        self.journal.emit(
            StepFailed, name, attempt, describe_error(error), in_doubt, not again and error is not self.abort and error is not seen or not again and isinstance(seen, Exception)
        )
        if again:
            self.journal.emit(StepRetryScheduled, name, attempt + 1, self.equipped.backoff(attempt))
            return
        self.failed[name] = error
        if self.exception is None:
            self.exception = error
