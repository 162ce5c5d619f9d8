"""An execution whose operations are called under a script of faults, each once for all that it can see (`effects`)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sagaz_core.engine.execution import Execution
from sagaz_core.errors import StepTimeoutError
from sagaz_core.events import Delta
from sagaz_core.faults.inject import PERSISTENT, SimulatedCrash
from sagaz_core.faults.kinds import KINDS
from sagaz_core.faults.plan import Fault
from sagaz_core.interceptor import put_back
from sagaz_core.prove.effects import Effect, Effects, Sight, Stopped
from sagaz_core.prove.keys import unread, visible
from sagaz_core.prove.ledger import Entry
from sagaz_core.prove.watch import MOST_ATTEMPTS, tried_too_often

if TYPE_CHECKING:
    from sagaz_core.engine.journal import Journal
    from sagaz_core.engine.rollback import Undoing
    from sagaz_core.interceptor import CallKind
    from sagaz_core.saga.definition import Definition
    from sagaz_core.saga.step import Operation
    from sagaz_core.state import SagaState

Late = tuple[Sight, Mapping[str, Any]]
"""What the action of a step sees, and its context, whose effect comes later."""

_HOW = {kind: kind.removeprefix("undo-") for kind in ("", *KINDS)}


class Scripted(Execution):
    """What the engine reaches through `call` is as the script has it. `void`: not all of the script happened.

    `world` is the number of the world's state, `alive` are the steps whose effect is there, as the calls themselves
    show; `results`, `layers` and `undone` are what the state has of these, as numbers; `late` the effects still under
    way; `struck` the kinds that keep striking a compensation; `hits` counts the faults of the script that happened.
    `entries` takes, where it is wanted, what a ledger would.
    """

    # What most branches never change is of the class: they are made by the thousand.
    interceptors = ()  # not None: every call comes to `call`
    undone: tuple[tuple[str, int], ...] = ()
    late: tuple[Late, ...] = ()
    undoing: Undoing | None = None
    void = False
    entries: list[Entry] | None = None
    last: Effect | None = None
    _script: Sequence[Fault] = ()
    _place = hits = 0
    _cancelled_here = _in_place = False

    world: int
    alive: frozenset[str]
    results: int
    layers: int
    struck: dict[str, str]

    def __init__(self, definition: Definition, state: SagaState, effects: Effects, journal: Journal) -> None:
        # Not through `Execution.__init__`: a branch runs no steps side by side.
        self.definition = definition
        self.model = definition.model
        self.journal = journal
        self.state = state
        self.effects = effects
        self.failed = {}
        self._raised: list[BaseException] = []

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

    def being_cancelled(self) -> bool:
        """Whether the script has cancelled the saga's task."""
        return self._cancelled_here

    def _take(self, script: Sequence[Fault], already: int) -> None:
        self._script = script
        self._place = self.hits = already
        self._cancelled_here = self._in_place = False

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

    def _noted(self, error: BaseException) -> BaseException:
        self._raised.append(error)
        return error

    def _let_go(self) -> None:
        # A traceback holds the frames that hold the error: circles, of which there would be thousands.
        for error in self._raised:
            error.__traceback__ = None
        self._raised.clear()
