"""Running a saga on from any state: forward as wide as the DAG allows, and back when a step fails.

Between steps all there is to a run is its state; an `Execution` of the same definition on a copy of that state goes on
from there. That is how a crashed saga is resumed, how a replay starts at a checkpoint and how the explorer forks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any, TypeAlias

from sagaz_core.engine.attempts import Attempts
from sagaz_core.engine.calls import call_operation, within
from sagaz_core.engine.eager import begin_task
from sagaz_core.engine.rollback import Rollback
from sagaz_core.engine.side_by_side import SideBySide
from sagaz_core.errors import ContextConflictError, DefinitionError, DuplicateSagaError
from sagaz_core.events import (
    Delta,
    SagaCompleted,
    SagaFailed,
    SagaResumed,
    StepFailed,
    StepRetryScheduled,
    describe_error,
)
from sagaz_core.interceptor import CallKind, Interceptor, StepCall
from sagaz_core.model import END
from sagaz_core.saga.definition import Definition, Recovery
from sagaz_core.saga.step import Operation
from sagaz_core.state import EXECUTING

if TYPE_CHECKING:
    from sagaz_core.engine.journal import Journal


_new = object.__new__

Sleep: TypeAlias = Callable[[float], Awaitable[object]]
"""Waits so many seconds."""


class TakenOver(BaseException):  # no error to be handled: nothing on the way is to undo or record anything
    """Another run goes on with the saga, and takes for done what this one did: this one stops, as if it had died."""

    def __init__(self, error: DuplicateSagaError) -> None:
        super().__init__(str(error))
        self.error = error


class Execution:
    """One run. `exception` is what turned it back; `abort` is an error of the run itself, raised when all is undone.

    `stays`: an abort does not turn it back; whoever resumes it goes on.

    Sagas are run by the thousand: when a run is over, nothing of it is in a circle that only the garbage collector
    could free. What refers back to the execution is let go of at the end, and so are errors, whose tracebacks do.
    """

    _attempts: Attempts
    _cancel: Callable[[], object]

    oldest_first = False
    """Whether what nothing orders is undone in the order in which it was done, to see whether that does no harm."""

    in_order: Sequence[str] = ()
    """All steps in the order in which they are run one at a time, to see the same of doing them; else `()`."""

    def __init__(
        self,
        definition: Definition,
        journal: Journal,
        interceptors: tuple[Interceptor, ...] = (),
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.definition = definition
        self.model = definition.model
        self.journal = journal
        self.state = journal.state
        self.interceptors = interceptors or None
        self._interceptor = interceptors[0] if len(interceptors) == 1 else None
        self.exception: BaseException | None = None
        self.abort: Exception | None = None
        self.failed: dict[str, BaseException] = {}
        self.cancelled: asyncio.CancelledError | None = None
        self.stays = False
        self.dead = False
        self.task: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self._sleep = sleep
        self._in_doubt_before: Sequence[str] = ()
        self._alone = True  # no other step runs, or begins before this one has ended
        self._side_by_side: SideBySide | None = None
        self.another_follows = False
        """Whether, should the step that is running end without having waited, another one starts right behind it."""

    async def run(self) -> None:
        """Run on to an end. Raises `CancelledError` when the task was cancelled, and `abort`, both after undoing.

        A run that can no more be undone (a pivot is done) and was cancelled or aborted stays where it is, and so does
        one whose store cannot be told that it is undone, or failed it when it `would_leave` a step; `resume` takes it
        up again.
        """
        status = self.state.status
        if status is not EXECUTING and status.ended:
            return
        self.task = asyncio.current_task()
        self._cancelling = self.task.cancelling() if self.task is not None else 0
        self._attempts = Attempts(self)
        self._cancel = self.cancel
        in_reach = True
        try:
            if status is EXECUTING and await self._forward():
                self.exception = None  # what a recovery after a pivot has overcome
                self.journal.emit(SagaCompleted)
            elif not self.past_pivot and not (self.stays and self.cancelled is None and self.state.status is EXECUTING):
                self._turn_back()
                in_reach = await Rollback(self).run()
            elif self.cancelled is None and self.abort is None:
                if self.journal.capture is not None:
                    self.journal.capture.failed()
                self.journal.emit(SagaFailed, tuple(self.failed), self.state.error)
            if in_reach and self.journal.capture is not None:
                await self._capture_end()
            if self.cancelled is not None:
                raise self.cancelled
            if self.abort is not None:
                raise self.abort
        finally:
            self.task = self._side_by_side = None
            del self._attempts, self._cancel

    async def resume(self) -> None:
        """Take over a run that another process left, and run on. A step that was running is run again."""
        self.journal.emit(SagaResumed, self.journal.run_id)
        self._in_doubt_before = tuple(self.state.ambiguous)
        if self.journal.capture is not None:
            await self.journal.capture.claim()  # should it raise, nothing was run, and nothing is undone
        await self.run()

    def check_ours(self, error: Exception) -> None:
        """Raise `TakenOver` for what a store says to a run that had begun, when another one writes under its id."""
        capture = self.journal.capture
        if isinstance(error, DuplicateSagaError) and capture is not None and capture.begun:
            raise TakenOver(error)

    def let_go(self) -> None:
        """Forget the errors of a run that is over."""
        self.failed.clear()
        self.exception = self.abort = self.cancelled = None

    def cancel(self) -> None:
        """Cancel the task that runs the saga."""
        if self.task is not None:
            self.task.cancel()

    # ---- the two ways out of the engine: to the user's code, and into waiting

    def call(
        self,
        operation: Operation,
        arguments: tuple[Any, ...],
        kind: CallKind,
        step: str,
        attempt: int,
        result: Any = None,
    ) -> Awaitable[Any]:
        """Return the awaitable of one call of an operation, through the interceptors."""
        if self.interceptors is None:
            return call_operation(operation, arguments, None, None)
        call = _new(StepCall)  # what `StepCall(…)` does, in half the time
        call.saga_id = self.state.saga_id
        call.step = step
        call.kind = kind
        call.attempt = attempt
        call.context = view = arguments[0]
        call.result = result
        call.cancel_saga = self._cancel
        call.renew_time = None
        interceptor, function = self._interceptor, operation.function
        if interceptor is None or not operation.is_async:
            return call_operation(operation, arguments, call, self.interceptors)
        # What `call_operation` does with most calls of a run that is watched; a method is made and called the quickest.
        proceed = MethodType(function, view) if len(arguments) == 1 else partial(function, *arguments)
        begun = interceptor.intercept(call, proceed)
        return begun if operation.timeout is None else within(operation, begun, call)

    def sleep(self, delay: float) -> Awaitable[object]:
        """Wait this many seconds before the next attempt."""
        return self._sleep(delay) if self._alone else asyncio.sleep(delay)

    # ---- what is known of the run

    @property
    def turning_back(self) -> bool:
        """Whether no further step may start."""
        return bool(self.failed) or self.cancelled is not None or self.abort is not None

    @property
    def past_pivot(self) -> bool:
        """Whether the point of no return is behind."""
        pivots = self.definition.pivots
        return bool(pivots) and not self.state.results.keys().isdisjoint(pivots)

    def may_pass_pivot(self, failing: str | None) -> bool:
        """Whether the failure of this step does not turn the saga back, or not yet: a pivot is done, or still runs."""
        pivots, running = self.definition.pivots, self.state.running
        return bool(pivots) and (self.past_pivot or any(p in running and p != failing for p in pivots))

    def would_leave(self) -> bool:
        """Whether, should it be undone now, a step would be left that another process may have done, and lost."""
        state, model = self.state, self.model
        left = [name for name in self._in_doubt_before if name in state.ambiguous and name not in state.results]
        return any(name in model.compensable and not model.step(name).undone_in_doubt for name in left)

    def being_cancelled(self) -> bool:
        """Whether the current task is cancelled, in contrast to a `CancelledError` that user code made up.

        A saga may be run by a task that was cancelled before (to clean up, say): that is not counted.
        """
        task = asyncio.current_task()
        return task is not None and task.cancelling() > (self._cancelling if task is self.task else 0)

    def note_failed(self, name: str, error: BaseException) -> None:
        """Take in that a step has failed for good."""
        self.failed[name] = error
        if self.exception is None:
            self.exception = error

    def note_cancelled(self, error: asyncio.CancelledError) -> None:
        """Take in that the saga's own task is cancelled."""
        if self.cancelled is None:
            self.cancelled = error
        if self.exception is None:
            self.exception = error

    def conflict(self, step: str, delta: Delta) -> ContextConflictError | None:
        """Return the error of a step that wrote a key which a step not ordered with it wrote too."""
        mine, ancestors = {*delta.set, *delta.deleted}, self.model.ancestors
        before = ancestors[step]
        for other, layer in self.state.layers.items():
            if other in before or (mine.isdisjoint(layer.set) and mine.isdisjoint(layer.deleted)):
                continue
            if other != step and step not in ancestors.get(other, (step,)):
                key = next(key for key in (*layer.set, *layer.deleted) if key in mine)
                return ContextConflictError(key, (other, step))
        return None

    # ---- forward

    async def _forward(self) -> bool:
        done = self.state.results
        if order := self._one_at_a_time():
            while left := [name for name in order if name not in done] if done else order:
                await self._attempts.run(left)
                if self.turning_back and not await self._recover():
                    return False
            return self.interceptors is None or await self._end()
        waits, ready = self._frontier()
        dependents, beside = self.model.dependents, self._side_by_side
        finished: Iterable[str]
        while ready or beside:
            self._alone = not beside and len(ready) == 1
            if not self._alone:
                if beside is None:
                    beside = self._side_by_side = SideBySide(self, self._attempts.run)
                if ready:
                    beside.begin(ready, begin_task)
                finished = await beside.next_ended()
            else:
                finished = ready
                await self._attempts.run(ready)
            ready = []
            if not self.turning_back:
                for name in finished:
                    for dependent in dependents[name]:
                        waits[dependent] -= 1
                        if not waits[dependent] and dependent not in done:
                            ready.append(dependent)
            elif not beside:
                if not await self._recover():
                    return False
                waits, ready = self._frontier()
        return self.interceptors is None or await self._end()

    def _one_at_a_time(self) -> Sequence[str]:
        """Return the steps in order if they are to be run, or can only be run, one after the other; else `()`."""
        return self.model.order if self.model.linear and not self.in_order else self.in_order

    def _frontier(self) -> tuple[dict[str, int], list[str]]:
        """Return how many dependencies each step still waits for, and the steps that can start."""
        waits, done = self.model.waits_for.copy(), self.state.results
        if not done:
            return waits, list(self.model.first)
        for name in done:
            for dependent in self.model.dependents[name]:
                waits[dependent] -= 1
        return waits, [name for name in self.model.order if not waits[name] and name not in done]

    async def _end(self) -> bool:
        try:
            await self.call(_NOTHING, (self.state.context,), "end", END, 1)
        except asyncio.CancelledError as error:
            if self.being_cancelled():
                self.note_cancelled(error)
                return False
            failure: BaseException = error
        except Exception as error:  # an interceptor's, so anything
            failure = error
        else:
            return True
        self.note_failed(END, failure)
        self.journal.emit(StepFailed, END, 1, describe_error(failure), False, True)
        del failure  # its traceback has this frame
        return False

    # ---- back

    def _turn_back(self) -> None:
        """Say that the saga turns back, where that was not known when a step failed, or no step did."""
        self._alone = True
        if self.state.status is not EXECUTING:
            return
        step = next(iter(self.failed), None)
        attempt = self.state.attempts.get(step, 0) if step is not None else 0
        error = self.exception or asyncio.CancelledError()
        self.journal.emit(StepFailed, step, attempt, describe_error(error), False, True)

    async def shielded(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the work to its end, even if the saga's task is cancelled meanwhile."""
        task = begin_task(work, f"{self.model.name}:shielded")
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError as error:
                if task.cancelled():  # the loop is being closed
                    raise
                self.note_cancelled(error)
        task.result()

    async def _capture_end(self) -> None:
        capture = self.journal.capture
        assert capture is not None
        try:
            try:
                await capture.ended()
            except asyncio.CancelledError as error:
                self.note_cancelled(error)
                await self.shielded(capture.flush_at_last())
        except Exception as error:  # the store's, which may be anyone's
            self.check_ours(error)
            if self.abort is None:
                self.abort = error

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
        if self._side_by_side is not None:
            self._side_by_side.stopped = False
        return not self.turning_back

    async def _recover_once(self, name: str, retry: int) -> bool:
        """Do what the forward recovery decides, and say whether it may be asked again."""
        step = self.definition.steps[name]
        decision: Any = Recovery.RETRY
        if step.recovery is not None:
            decision = await self._attempts.ask_recovery(step, self.failed[name], retry)
        if decision is Recovery.RETRY:
            delay = step.action.backoff.delay(retry)
            self.journal.emit(StepRetryScheduled, name, self.state.attempts.get(name, 0) + 1, delay, False)
            if await self._slept(delay):
                others, self.failed = self.failed, {}  # so that its own retries count: nothing else is under way
                error = others.pop(name)
                await self._attempts.run((name,))
                if name not in self.state.results:
                    self.failed.setdefault(name, error)
                self.failed = {**self.failed, **others}
            return True
        if decision is Recovery.SKIP or isinstance(decision, Mapping):
            self.failed.pop(name)
            self._attempts.stand_in(name, None if decision is Recovery.SKIP else dict(decision))
        elif decision is not Recovery.GIVE_UP:
            self.failed[name] = DefinitionError(
                f"the forward recovery of step {name!r} returned {decision!r:.80}: "
                f"return Recovery.RETRY, SKIP or GIVE_UP, or a mapping that stands for the step's result"
            )
        return False

    async def _slept(self, delay: float) -> bool:
        try:
            await self.sleep(delay)
        except asyncio.CancelledError as error:
            self.note_cancelled(error)
            return False
        return True


async def _nothing(context: Any) -> None:
    return None


_NOTHING = Operation(_nothing)
"""What is done at the end, which interceptors may let fail."""
