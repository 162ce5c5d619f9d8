"""One branch of an exploration: the engine's own execution, at a state between two steps, under scripted faults.

A branch is forked, one operation is run on the fork by the engine's own code, and the result is the next branch. What
differs from a run is only what the engine reaches through `call` and `sleep`: operations are called once for all that
they can see (`effects`), and nothing waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sagaz_core.engine.attempts import Attempts
from sagaz_core.engine.execution import Execution
from sagaz_core.engine.journal import Journal
from sagaz_core.engine.rollback import Rollback, Undoing, steps_to_undo
from sagaz_core.errors import StepTimeoutError
from sagaz_core.events import (
    EVENT_SIZES,
    NO_DELTA,
    Delta,
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
from sagaz_core.faults.inject import PERSISTENT, SimulatedCrash, exception_of
from sagaz_core.faults.kinds import KINDS
from sagaz_core.faults.plan import Fault
from sagaz_core.interceptor import put_back
from sagaz_core.model import END
from sagaz_core.prove.effects import Effect, Effects, Sight, Stopped
from sagaz_core.prove.keys import unread, visible
from sagaz_core.prove.ledger import Entry
from sagaz_core.prove.stacks import EMPTY
from sagaz_core.prove.transitions import Before, Transition, repeat, transition, transition_key
from sagaz_core.prove.watch import MOST_ATTEMPTS, tried_too_often
from sagaz_core.saga.context import SagaContext
from sagaz_core.state import FOLD, SagaState, SagaStatus

if TYPE_CHECKING:
    from datetime import datetime

    from sagaz_core.clock import Clock
    from sagaz_core.engine.run import Served
    from sagaz_core.interceptor import CallKind
    from sagaz_core.saga.definition import Definition
    from sagaz_core.saga.step import Operation


Late = tuple[Sight, Mapping[str, Any]]
"""What the action of a step sees, and its context, whose effect comes later."""

_new: Any = tuple.__new__  # as in the journal
_CANCELLED = describe_error(asyncio.CancelledError())
_HOW = {kind: kind.removeprefix("undo-") for kind in ("", *KINDS)}


class _Quick(Journal):
    """Folds events and keeps none, but for those of the transition that is being made."""

    __slots__ = ("made",)

    def __init__(self, state: SagaState, clock: Clock) -> None:
        self.state = state
        self.clock = clock
        self.capture = None
        self.observers = ()
        self.made: list[Event] = []

    def emit(self, kind: type[Event], *fields: Any) -> None:
        """Let the next event happen."""
        if kind is not StepRetryScheduled:
            state = self.state
            state.seq = seq = state.seq + 1
            made: Any = (seq, state.at, *fields)
            event = _new(kind, made) if len(made) == EVENT_SIZES[kind] else kind(*made)
            self.made.append(event)
            FOLD[kind](state, event)


class Branch(Execution):
    """A saga between two operations. All that tells two branches apart is in their keys (see `keys`).

    `alive` are the steps whose effect is there, as the calls themselves show; `late` the effects still under way;
    `spoilt` the steps whose action came late, changed the world and failed; `struck` the kinds that keep striking a
    compensation; `fatal` the fatal faults that struck an action. `begun` takes, where it is wanted, what a script has
    come to when all of it has struck and there is another attempt.
    """

    # What most branches never change is of the class: branches are made by the thousand.
    interceptors = ()  # not None: every call comes to `call`
    exception: BaseException | None = None
    abort: Exception | None = None
    cancelled: asyncio.CancelledError | None = None
    dead = False
    _side_by_side = None
    served: tuple[str, ...] = ()
    undone: tuple[tuple[str, int], ...] = ()
    late: tuple[Late, ...] = ()
    fatal: tuple[Fault, ...] = ()
    spoilt: frozenset[str] = frozenset()
    undoing: Undoing | None = None
    live = True
    void = False
    entries: list[Entry] | None = None
    begun: dict[Sequence[Fault], Transition] | None = None
    _script: Sequence[Fault] = ()
    _place = hits = 0
    _cancelled_here = _in_place = False
    _prefix: Transition | None = None
    _under_way: tuple[str, Before] | None = None
    last: Effect | None = None

    def __init__(self, definition: Definition, state: SagaState, effects: Effects, journal: Journal) -> None:
        # Not through `Execution.__init__`: a branch runs no steps side by side.
        self.definition = definition
        self.model = definition.model
        self.journal = journal
        self.state = state
        self.effects = effects
        self.failed = {}
        self._raised: list[BaseException] = []

    def _start(self) -> None:
        self.world = self.effects.worlds.current
        self.alive: frozenset[str] = frozenset()
        self.results = self.layers = EMPTY
        self.struck: dict[str, str] = {}

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
            other.fatal, other.spoilt = self.fatal, self.spoilt
        if self.undoing is not None:
            other.undoing, other.undone = self.undoing, self.undone
        if self.cancelled is not None:
            other.cancelled = self.cancelled
        if not self.live or self.served:
            other.live, other.served = self.live, self.served
        if self.entries is not None:
            other.entries = self.entries.copy()
            other.journal = Journal(state, self.journal.clock)
            other.journal.events = self.journal.events.copy()
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

    def serve(self, step: Served) -> None:
        """Take a step's result from a record."""
        self.journal.emit(StepSucceeded, step.step, 0, step.result, step.delta, "served")
        self._keep_number(step.step, self.effects.number_of(step.result, step.delta))
        self.served += (step.step,)
        self.alive |= {step.step}

    async def act(self, name: str, script: Sequence[Fault] = (), already: int = 0) -> None:
        """Run a step's action, with all its attempts, under the faults, one after the other.

        Of the faults so many have struck `already`: that was `begun` before.
        """
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
        self._take(script, already)
        made = await self._transition(name, Rollback(self).undo, undo=True)
        if made.died:
            self._resume()
            self.begin_undoing()
            return
        undone = made.result
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
        self.journal.emit(StepFailed, END, 1, describe_error(error))

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
            if effect.error is None:
                self.alive |= {sight.step}
            elif self.effects.worlds.key(self.world) != self.effects.worlds.key(before):
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

    async def call(
        self,
        operation: Operation,
        arguments: tuple[Any, ...],
        kind: CallKind,
        step: str,
        attempt: int,
        result: Any = None,
    ) -> Any:
        """Make the call as the script has it."""
        if attempt > MOST_ATTEMPTS:
            raise Stopped(tried_too_often(kind, step))
        fault = self._next_fault(kind, step)
        if fault is None:
            return await self._effect(operation, arguments, kind, step, attempt)
        how = _HOW[fault.kind]
        if how == "late":
            # What the world will be then is not known yet.
            self.late += ((self.sight(kind, step, len(arguments) > 1)._replace(world=-1), self.state.context),)
        if how == "hang" or how == "late":
            raise self._noted(StepTimeoutError(f"not done within {operation.timeout:g} s"))
        if how not in ("before", "flaky", "fail"):
            deliver_again = put_back(arguments[0]) if how == "repeat" else None
            try:
                await self._effect(operation, arguments, kind, step, attempt)
            except Exception:
                self.void = True
                raise
            if how == "crash":
                raise SimulatedCrash(str(fault))
            if deliver_again is not None:
                deliver_again()
                return await self._effect(operation, arguments, kind, step, attempt)
            if how == "cancel":
                self._cancelled_here = True
                raise asyncio.CancelledError
        raise self._noted(self.effects.exception_of(fault))

    async def sleep(self, delay: float) -> None:
        """Wait no longer."""
        if self._under_way is not None and self._place == len(self._script) and not self._in_place:
            self._prefix = transition(self, *self._under_way)

    def being_cancelled(self) -> bool:
        """Whether the script has cancelled the saga's task."""
        return self._cancelled_here

    # ---- a transition is worked out once for all that it depends on

    def _take(self, script: Sequence[Fault], already: int) -> None:
        self._script = script
        self._prefix = None
        self._place = self.hits = already
        self._cancelled_here = self._in_place = False

    async def _transition(self, name: str, run: Callable[[str, int], Awaitable[Any]], *, undo: bool) -> Transition:
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
            result = await run(name, self._place)
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

    # ---- the parts

    def _next_fault(self, kind: CallKind, step: str) -> Fault | None:
        undo = kind == "compensation"
        if self._place < len(self._script):
            fault = self._script[self._place]
            how = _HOW[fault.kind]
            if how != "crash-recorded":
                self.hits = self._place + 1
                if how not in PERSISTENT:
                    self._place += 1
                elif undo and step not in self.struck:
                    self.struck = {**self.struck, step: fault.kind}
                return fault
        if undo and self.struck and _HOW[kept := self.struck.get(step, "")] in PERSISTENT:
            return Fault(step, kept)
        return None

    def _dies_when_recorded(self, kind: str, recorded: bool) -> bool:
        """Say whether the process dies now, and note a script of which not all has happened."""
        dies = recorded and self.hits == len(self._script) - 1 and self._script[-1].kind == kind
        self.void = self.void or (self.hits < len(self._script) and not dies)
        return dies

    def sight(self, kind: CallKind, step: str, takes_second: bool) -> Sight:
        """Return what an operation would see now."""
        undo = kind != "action"
        effects, context = self.effects, self.layers
        second = effects.stacks.number(self.results, step) if undo and takes_second else 0
        undone = self.undone if undo and effects.undone_read else ()
        if kind == "compensation" and self.undoing is not None and self.undoing.failed:
            context = visible(self, (step,))
        if not self.model.linear:
            context = effects.stacks.unordered(context)
        return Sight(step, kind, context, second, undone, self.world)

    async def _effect(
        self, operation: Operation, arguments: tuple[Any, ...], kind: CallKind, step: str, attempt: int
    ) -> Any:
        sight, state, effects = self.sight(kind, step, len(arguments) > 1), self.state, self.effects
        known_as = sight
        if kind == "compensation" and not self.late:
            # No action runs any more: what only grows is read by nobody whose effect is judged.
            known_as = sight._replace(world=-1 - effects.worlds.key(self.world))
        found = effects.known(known_as)
        if found is None:
            undone = state.undone if kind != "action" else {}
            found = await effects.call(sight, operation, state.context, arguments[1:], undone)
            if kind == "compensation":
                await self._check_unread(sight, operation, arguments[1:], found)
                # It may look at more now.
                known_as = self.sight(kind, step, len(arguments) > 1)._replace(world=known_as.world)
            effects.keep(known_as, found)
        effect, self.world = found
        self.last = effect
        if effect.mutated:
            self._in_place = True
            self._change_in_place(effect)
        happened = effect.error is None
        undo = kind == "compensation"
        if self.entries is not None and (undo or kind == "action"):
            self._enter(step, undo, attempt, happened)
        if effect.error is not None:
            raise self._noted(effect.error)
        if undo:
            self.alive -= {step}
        elif kind == "action" and step not in self.alive:
            self.alive |= {step}
        view = arguments[0]
        if effect.set or effect.deleted:
            typed = self.definition.typed
            if typed is None:
                view.update(effect.set)
                for key in effect.deleted:
                    view.pop(key, None)
            else:
                typed.put(view, effect.set)
        return effect.result

    async def _check_unread(
        self, sight: Sight, operation: Operation, second: tuple[Any, ...], found: tuple[Effect, int]
    ) -> None:
        state, effects = self.state, self.effects
        hidden = frozenset(unread(self, effects.read_by((sight.step,))))
        if hidden and effects.may_read_more(sight.step, hidden):
            left_out = {key for step in hidden for key in state.layers[step].set}
            context = {key: value for key, value in state.context.items() if key not in left_out}
            await effects.check_unread(sight, operation, context, second, state.undone, found, hidden)

    def _enter(self, step: str, undo: bool, attempt: int, happened: bool) -> None:
        if self.entries is not None:
            moment = 2 * len(self.entries) + 1
            self.entries.append(Entry(step, undo, attempt, moment, moment + 1, happened))

    def _change_in_place(self, effect: Effect) -> None:
        # As in a run: the value that was changed is the one that the context, its layer or its beginning holds.
        state = self.state
        for key, value in effect.mutated.items():
            state.context = {**state.context, key: value}
            for name, layer in reversed(state.layers.items()):
                if key in layer.set:
                    state.layers[name] = Delta({**layer.set, key: value}, layer.deleted)
                    break
            else:
                state.initial = {**state.initial, key: value}
            self.layers = self.effects.stacks.push(self.layers, f"={key}", effect.number)

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

    def _noted(self, error: BaseException) -> BaseException:
        self._raised.append(error)
        return error

    def _let_go(self) -> None:
        # A traceback holds the frames that hold the error: circles, of which there would be thousands.
        for error in self._raised:
            error.__traceback__ = None
        self._raised.clear()

    def _resume(self) -> None:
        # Another process takes over, and nothing is left of this one.
        self.failed, self.cancelled, self.abort, self.exception = {}, None, None, None
        self.journal.emit(SagaResumed)
