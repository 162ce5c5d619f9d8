"""Undoing: the compensations of what was done, dependants first, each as hard as it is told to try.

They run one at a time, in the reverse of the order of completion, which is a legal order of any DAG and the same on
every run. They are shielded: cancelling the saga's task again does not stop them.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from sagaz_core.events import (
    NO_DELTA,
    CompensationFailed,
    CompensationStarted,
    CompensationSucceeded,
    SagaFailed,
    SagaRolledBack,
    StepRetryScheduled,
    describe_error,
)
from sagaz_core.saga.context import context_for_undo, delta_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sagaz_core.engine.execution import Execution
    from sagaz_core.model import SagaModel
    from sagaz_core.saga.step import Operation


logger = logging.getLogger(__name__)


class Undoing(NamedTuple):
    """How far a rollback is: what is still to be undone, in order, and what was tried and did not succeed.

    `again`: what failed is being tried once more.
    """

    todo: tuple[str, ...]
    failed: tuple[str, ...] = ()
    again: bool = False

    def after(self, step: str, undone: bool, model: SagaModel) -> Undoing:
        """Return it after the step was undone, or was not: then the model's failure policy says what is still tried."""
        todo = self.todo[1:] if self.todo[0] == step else tuple(name for name in self.todo if name != step)
        failed, policy = self.failed, model.on_compensation_failure
        if not undone:
            failed = (*failed, step)
            if policy == "fail_fast":
                failed, todo = failed + todo, ()
            elif policy == "skip_dependents":
                left = model.ancestors[step]
                failed = (*failed, *(name for name in todo if name in left))
                todo = tuple(name for name in todo if name not in left)
        if failed and not todo and policy == "retry_then_continue" and not self.again:
            return Undoing(failed, (), True)
        return Undoing(todo, failed, self.again)


class _CutOffError(Exception):
    """The store cannot be reached, so that a compensation cannot be recorded before it is run."""


class Rollback:
    """Undoes what an execution's state says was done."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._emit = execution.journal.emit
        self._capture = execution.journal.capture
        self._state = execution.state
        self._model = execution.model
        self._typed = execution.definition.typed
        self._results = MappingProxyType(self._state.undone)

    async def run(self) -> bool:
        """Undo all that can be undone, to the end, even if the task is cancelled meanwhile.

        Returns False when it stopped because the store cannot be reached. What is undone without its knowledge would be
        taken for done by whoever resumes the saga.
        """
        steps = steps_to_undo(self._execution)
        if steps or self._capture is not None:
            try:
                await self._execution.shielded(self._undo_all(steps))
            except _CutOffError as end:
                left = ", ".join(step for step in steps if step not in self._state.undone)
                logger.warning(
                    "saga %s is left as it is, to be resumed: that %s would be undone cannot be recorded: %s",
                    *(self._state.saga_id, left, end.__cause__),
                )
                return False
        undone = self._state.undone
        if undone.keys() >= set(steps):
            self._emit(SagaRolledBack)
        else:
            self._emit(SagaFailed, tuple([step for step in steps if step not in undone]), None)
        return True

    async def _undo_all(self, steps: list[str]) -> None:
        if self._capture is not None:
            await self._captured(self._capture.failed)
        undoing = Undoing(tuple(steps))
        while todo := undoing.todo:
            undone = await self.undo(todo)
            if undone == len(todo) and not undoing.failed:
                return
            last = min(undone, len(todo) - 1)
            undoing = undoing._replace(todo=todo[last:]).after(todo[last], undone == len(todo), self._model)

    async def undo(self, names: Sequence[str], retried: int = 0) -> int:
        """Undo the steps, one after the other, until one cannot be undone, and return how many were.

        Each has the attempts that its compensation has, but for those that were `retried` already.
        """
        execution, state, capture, emit = self._execution, self._state, self._capture, self._emit
        typed, results, steps = self._typed, self._results, self._execution.definition.steps
        for place, name in enumerate(names):
            operation = steps[name].compensation
            assert operation is not None
            attempt = state.undo_attempts.get(name, 0) + 1
            first = attempt - retried
            while True:
                emit(CompensationStarted, name, attempt)
                if capture is not None:
                    await self._started(operation)
                given, view = state.context, None
                try:
                    view = context_for_undo(given, results) if typed is None else typed.view(given, state.undone)
                    result = state.results.get(name)
                    arguments = (view, result) if operation.takes_second else (view,)
                    result = await execution.call(operation, arguments, "compensation", name, attempt, result)
                except asyncio.CancelledError as error:
                    if execution.dead or execution.being_cancelled():
                        raise
                    failure: BaseException = error
                except Exception as error:  # the user's code: anything
                    failure = error
                else:
                    break
                if capture is not None:
                    capture.forget_changes_in_place()
                final = attempt - first >= operation.retries
                emit(CompensationFailed, name, attempt, describe_error(failure), final)
                del failure  # its traceback has this frame
                if final:
                    return place
                attempt += 1
                delay = operation.backoff.delay(attempt - first)
                emit(StepRetryScheduled, name, attempt, delay, True)
                await execution.sleep(delay)
            self._undone(name, attempt, result, given, view)
            if capture is not None:
                await self._captured(partial(capture.undone, name))
        return len(names)

    def _undone(self, name: str, attempt: int, result: Any, given: dict[str, Any], view: Any) -> None:
        typed, delta, emit = self._typed, NO_DELTA, self._emit
        try:
            delta = delta_of(given, view, None) if typed is None else typed.delta(name, given, view, None)
        except Exception as error:  # what it wrote does not fit the model; what it undid is undone all the same
            self._note(error)
        if self._capture is not None:
            delta = self._capture.prepare_undo(name, delta, result)
        emit(CompensationSucceeded, name, attempt, result, delta)

    async def _started(self, operation: Operation) -> None:
        """Have the start of a compensation recorded, which is tried as hard as the compensation itself."""
        execution, capture = self._execution, self._capture
        assert capture is not None
        for retry in range(1, operation.retries + 2):
            try:
                await capture.flush_for_sure()  # what another run goes on from is not to be undone
                return
            except Exception as error:  # the store's, which may be anyone's
                execution.check_ours(error)
                self._note(error)
                if not capture.is_behind:
                    return
                if retry > operation.retries:
                    raise _CutOffError from error
            await execution.sleep(operation.backoff.delay(retry))

    async def _captured(self, take: Callable[[], object]) -> None:
        # What was undone is undone: a store that fails now is an error of the run, and told what it missed later.
        assert self._capture is not None
        try:
            take()
            await self._capture.flush()
        except Exception as error:  # the store's, which may be anyone's
            self._execution.check_ours(error)
            self._note(error)

    def _note(self, error: Exception) -> None:
        if self._execution.abort is None:
            self._execution.abort = error


def steps_to_undo(execution: Execution) -> list[str]:
    """Return what must be undone, in order: steps in doubt first, then the completed ones, the last one first."""
    state, model = execution.state, execution.model
    ambiguous, results, compensable = state.ambiguous, state.results, model.compensable
    doubtful = []
    if ambiguous:
        doubtful = [
            name
            for name in state.attempts
            if name in ambiguous and name not in results and model.step(name).undone_in_doubt
        ]
    done = [name for name in results if name in compensable]
    steps = [*reversed(doubtful), *reversed(done)]
    return oldest_first(steps, model) if execution.oldest_first else steps


def oldest_first(steps: Sequence[str], model: SagaModel) -> list[str]:
    """Return what is to be undone, the newest first, in the order that is as far from that one as the model allows."""
    left, found = list(steps), []
    while left:
        step = next(name for name in reversed(left) if model.descendants[name].isdisjoint(left))
        left.remove(step)
        found.append(step)
    return found
