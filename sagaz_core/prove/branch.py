"""One branch of an exploration: the engine's own execution, at a state between two steps, under scripted faults.

A branch is forked, one operation is run on the fork by the engine's own code, and the result is the next branch. What
differs from a run is only what the engine reaches through `call` and `sleep`: operations are called once for all that
they can see (`effects`), and nothing waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sagaz_core.engine.attempts import Attempts
from sagaz_core.engine.journal import Journal
from sagaz_core.engine.rollback import Rollback, Undoing, steps_to_undo
from sagaz_core.events import (
    NO_DELTA,
    Event,
    SagaCompleted,
    SagaFailed,
    SagaResumed,
    SagaRolledBack,
    SagaStarted,
    StepFailed,
    StepRetryScheduled,
    StepStarted,
    StepSucceeded,
    describe_error,
)
from sagaz_core.faults.inject import SimulatedCrash, exception_of
from sagaz_core.faults.plan import Fault
from sagaz_core.model import END
from sagaz_core.prove.effects import Effect, Effects
from sagaz_core.prove.scripted import Scripted
from sagaz_core.prove.stacks import EMPTY
from sagaz_core.prove.transitions import Before, Transition, repeat, transition, transition_key
from sagaz_core.saga.context import SagaContext
from sagaz_core.state import FOLD, SagaState, SagaStatus

if TYPE_CHECKING:
    from datetime import datetime

    from sagaz_core.clock import Clock
    from sagaz_core.engine.run import Served
    from sagaz_core.saga.definition import Definition


_new: Any = tuple.__new__  # as in the journal
_CANCELLED = describe_error(asyncio.CancelledError())


class _Quick(Journal):
    """Folds events and keeps none, but for those of the transition that is being made."""

    __slots__ = ("made",)

    def __init__(self, state: SagaState, clock: Clock) -> None:
        self.state = state
        self.clock = clock
        self.capture = None
        self.made: list[Event] = []

    def emit(self, kind: type[Event], *fields: Any) -> None:
        """Let the next event happen."""
        if kind is not StepRetryScheduled:
            state = self.state
            state.seq = seq = state.seq + 1
            made = (seq, state.at) + fields  # noqa: RUF005 - as in the journal
            FOLD[kind](state, made)
            self.made.append(_new(kind, made))


class Branch(Scripted):
    """A saga between two operations. All that tells two branches apart is in their keys (see `keys`).

    `spoilt` are the steps whose action came late, changed the world and failed, `refused` those where it came late and
    did nothing; `fatal` the fatal faults that struck an
    action. `begun` takes, where it is wanted, what a script has come to when all of it has struck and there is another
    attempt.
    """

    # What most branches never change is of the class: branches are made by the thousand.
    exception: BaseException | None = None
    abort: Exception | None = None
    cancelled: asyncio.CancelledError | None = None
    dead = False
    _side_by_side = None
    served: tuple[str, ...] = ()
    fatal: tuple[Fault, ...] = ()
    spoilt: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    live = True
    begun: dict[Sequence[Fault], Transition] | None = None
    _prefix: Transition | None = None
    _under_way: tuple[str, Before] | None = None

    def _start(self) -> None:
        self.world = self.effects.worlds.current
        self.alive = frozenset()
        self.results = self.layers = EMPTY
        self.struck = {}

    @classmethod
    def first(cls, definition: Definition, effects: Effects, at: datetime, started: SagaStarted) -> Branch:
        """Return the branch of a saga that has just started."""
        state = SagaState()
        made = cls(definition, state, effects, Journal(state, lambda: at))
        made._start()
        made.journal.emit(SagaStarted, *started[2:])
        made.task = asyncio.current_task()
        return made

    @property
    def _attempts(self) -> Attempts:  # type: ignore[override]  # made when it is needed: no cycle keeps a branch alive
        return Attempts(self)

    def fork(self) -> Branch:
        """Return an independent branch in the same state."""
        state = self.state.fork()
        other = Branch(self.definition, state, self.effects, _Quick(state, self.journal.clock))
        other.task = self.task
        other.world, other.alive, other.struck = self.world, self.alive, self.struck
        other.results, other.layers = self.results, self.layers
        if self.late:
            other.late = self.late
        if self.fatal:
            other.fatal, other.spoilt, other.refused = self.fatal, self.spoilt, self.refused
        if self.undoing is not None:
            other.undoing, other.undone = self.undoing, self.undone
        if self.cancelled is not None:
            other.cancelled = self.cancelled
        if not self.live or self.served:
            other.live, other.served = self.live, self.served
        if self.entries is not None:
            other.entries = self.entries.copy()
            other.journal = Journal(state, self.journal.clock)
            other.journal.log = self.journal.log.copy()
        return other

    def ready(self) -> list[str]:
        """Return the steps that can start, in the model's order."""
        done, model = self.state.results, self.model
        if model.linear:
            return [model.order[len(done)]] if len(done) < len(model.order) else []
        return [
            name
            for name in model.order
            if name not in done and all(needed in done for needed in model.step(name).depends_on)
        ]

    # ---- operations, each of which changes this branch

    async def serve(self, step: Served) -> None:
        """Take a step's result from a record."""
        self.journal.emit(StepSucceeded, step.step, 0, step.result, step.delta, "served")
        self._keep_number(step.step, self.effects.number_of(step.result, step.delta))
        self.served += (step.step,)
        self.alive |= {step.step}

    async def act(self, name: str, script: Sequence[Fault] = (), already: int = 0) -> None:
        """Run a step's action, with all its attempts, under the faults, one after the other.

        Of the faults so many have struck `already`: that was `begun` before.
        """
        self._prefix = None
        self._take(script, already)
        if script:
            self.live = True  # what was recorded is no more what happens
            self.fatal += tuple([fault for fault in script if fault.described.fatal])
        if (await self._transition(name, Attempts(self).run, undo=False)).died:
            self._resume()
            return
        if name in self.state.results:
            assert self.last is not None
            self._keep_number(name, self.last.number)
        if self._dies_when_recorded("crash-recorded", name in self.state.results):
            self._resume()

    async def interrupt(self, name: str, effect: bool) -> None:
        """Cancel a step while it runs, because another one failed: its effect has happened, or not."""
        attempt = self.state.attempts.get(name, 0) + 1
        self.journal.emit(StepStarted, name, attempt)
        if effect:
            typed, context = self.definition.typed, self.state.context
            view = SagaContext(context) if typed is None else typed.view(context, {})
            with suppress(Exception):  # it failed by itself before it could be cancelled
                await self._effect(self.definition.steps[name].action, (view,), "action", name, attempt)
            self._let_go()
        self.journal.emit(StepFailed, name, attempt, _CANCELLED, True, False)

    async def undo(self, name: str, script: Sequence[Fault] = (), already: int = 0) -> None:
        """Run a step's compensation, with all its attempts, under the faults, as `act` does."""
        assert self.undoing is not None
        self._prefix = None
        self._take(script, already)
        made = await self._transition(name, Rollback(self).undo, undo=True)
        if made.died:
            self._resume()
            self.begin_undoing()
            return
        undone = bool(made.result)
        if undone:
            assert self.last is not None
            self._forget(name, self.last)
        elif name not in self.struck and self.hits > self.model.step(name).compensation_retries:
            self.struck = {**self.struck, name: script[-1].kind}  # more transient faults than it has retries
        if self.late:
            await self.deliver(name)
        self.undoing = self.undoing.after(name, undone, self.model)
        if self._dies_when_recorded("undo-crash-recorded", undone):
            self._resume()
            self.begin_undoing()

    async def recover(self) -> bool:
        """Do what the engine does with a step that failed after a pivot."""
        recovered = await self._recover()
        state = self.state
        for name, result in state.results.items():
            if not self.effects.stacks.number(self.results, name):
                self._keep_number(name, self.effects.number_of(result, state.layers.get(name, NO_DELTA)))
        return recovered

    def fail_end(self, fault: Fault) -> None:
        """Fail the saga after its last step."""
        self.live = True
        error = exception_of(fault)
        self.fatal += (fault,)
        self.note_failed(END, error)
        self.journal.emit(StepFailed, END, 1, describe_error(error), False, True)

    def begin_undoing(self) -> None:
        """Turn back, or take a rollback up again."""
        self._turn_back()
        self.undoing = Undoing(tuple(steps_to_undo(self)))

    async def deliver(self, step: str | None = None) -> None:
        """Let the effects happen that are late: of one step, or all of them."""
        waiting = [late for late in self.late if step is None or late[0].step == step]
        self.late = tuple([late for late in self.late if late not in waiting])
        for sight, context in waiting:
            operation = self.definition.steps[sight.step].action
            now = sight._replace(world=self.world)
            found = self.effects.known(now)
            if found is None:
                found = await self.effects.call(now, operation, context, (), {})
                self.effects.keep(now, found)
            before, (effect, self.world) = self.world, found
            changed = self.effects.worlds.key(self.world) != self.effects.worlds.key(before)
            if effect.error is None:
                if changed:
                    self.refused -= {sight.step}
                elif sight.step not in self.alive and self.effects.shows(sight.step):
                    self.refused |= {sight.step}
                self.alive |= {sight.step}
            elif changed:
                self.spoilt |= {sight.step}
            self._enter(sight.step, False, 0, effect.error is None)

    async def end(self) -> None:
        """End the saga, as the engine would."""
        if self.state.status is SagaStatus.EXECUTING:
            if not self.turning_back:
                self.journal.emit(SagaCompleted)
            elif self.cancelled is None and self.abort is None:
                self.journal.emit(SagaFailed, tuple(self.failed), self.state.error)
        elif self.undoing is not None:
            if self.undoing.failed:
                self.journal.emit(SagaFailed, self.undoing.failed, None)
            else:
                self.journal.emit(SagaRolledBack)
        await self.deliver()

    # ---- what the engine calls

    async def sleep(self, delay: float) -> None:
        """Wait no longer."""
        if self._under_way is not None and self._place == len(self._script) and not self._in_place:
            self._prefix = transition(self, *self._under_way)

    # ---- a transition is worked out once for all that it depends on

    async def _transition(
        self, name: str, run: Callable[[Sequence[str], int], Awaitable[Any]], *, undo: bool
    ) -> Transition:
        """Let the engine run an operation, or do again what that came to."""
        effects = self.effects
        key, looks = transition_key(self, name, self._script, self._place, undo), effects.looks_grown
        if key is not None and (known := effects.transitions.get(key)) is not None:
            repeat(known, self, name, undo=undo)
            if self.begun is not None and known.prefix is not None:
                self.begun[self._script] = known.prefix
            return known
        events: list[Event] = []
        if isinstance(self.journal, _Quick):
            self.journal.made = events
        attempts = self.state.undo_attempts if undo else self.state.attempts
        before = Before(events, attempts.get(name, 0), len(self.late))
        self._under_way = (name, before) if self.entries is None else None
        died, result = False, None
        try:
            result = await run((name,), self._place)
        except SimulatedCrash:
            died = True
        finally:
            self._let_go()
            self._under_way = None
        made = transition(self, name, before, result, died, self._prefix)
        if self.begun is not None and self._prefix is not None:
            self.begun[self._script] = self._prefix
        if key is not None and not self._in_place and looks == effects.looks_grown:
            effects.transitions[key] = made
        return made

    def _keep_number(self, step: str, number: int) -> None:
        stacks = self.effects.stacks
        self.results = stacks.push(stacks.without(self.results, step), step, number)
        if step in self.state.layers:
            self.layers = stacks.push(stacks.without(self.layers, step), step, number)

    def _forget(self, step: str, effect: Effect) -> None:
        stacks = self.effects.stacks
        self.results = stacks.without(self.results, step)
        self.layers = stacks.without(self.layers, step)
        self.undone += ((step, effect.number),)
        layer = f"undo:{step}"
        if layer in self.state.layers:
            self.layers = stacks.push(stacks.without(self.layers, layer), layer, effect.number)

    def _resume(self) -> None:
        # Another process takes over, and nothing is left of this one.
        self.failed, self.cancelled, self.abort, self.exception = {}, None, None, None
        self.journal.emit(SagaResumed, self.journal.run_id)
