"""One run of a saga under one plan, with every witness watching."""

from __future__ import annotations

import asyncio
from contextvars import Context, copy_context
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from sagaz_core.adapters.locate import adapter_for
from sagaz_core.engine.journal import LateEvents
from sagaz_core.engine.run import RunOptions, Served
from sagaz_core.errors import CannotStoreError, PlanError, SagazError
from sagaz_core.faults.inject import Injector, SimulatedCrash
from sagaz_core.faults.plan import NO_FAULTS, FaultPlan
from sagaz_core.prove.endless import NeverEndsError
from sagaz_core.prove.evidence import Evidence
from sagaz_core.prove.fights import Fights
from sagaz_core.prove.ledger import Ledger
from sagaz_core.prove.leftovers import Leftovers
from sagaz_core.prove.outcome import Outcome
from sagaz_core.prove.reference import Reference
from sagaz_core.prove.round_trip import not_kept
from sagaz_core.prove.touches import Touches
from sagaz_core.state import ROLLED_BACK, SagaState, SagaStatus
from sagaz_core.storage.codec import decode, encode, importing_class
from sagaz_core.virtual_time import clock_of_loop, sleep

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence, Set

    from sagaz_core.adapters.base import Adapter
    from sagaz_core.clock import Clock
    from sagaz_core.engine.journal import Journal, Noted
    from sagaz_core.events import Event
    from sagaz_core.interceptor import Interceptor, Proceed, StepCall
    from sagaz_core.model import SagaModel
    from sagaz_core.prove.unordered import Fight
    from sagaz_core.prove.verdict import Finding
    from sagaz_core.prove.watch import Calls
    from sagaz_core.prove.world import Reading, World
    from sagaz_core.saga.config import ReplayConfig

MAX_RESUMES = 20


class NotRunnableError(SagazError):
    """The saga's engine cannot have a fault of the plan; the plan is reported as not run."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is tried: a saga class, an instance or a factory (`make`), and the context that it begins with.

    `oldest_first`: what nothing orders is undone in the order in which it was done, instead of the newest first.
    `in_order`: the steps are run one at a time, in this order.
    `served` steps are not run but taken from a record. `world` is looked at before and after. `reproduce` is the
    command that runs a plan again, with `{plan}` in it. `calls` is told of each call, to be watched. `fails_at` is the
    step at which the saga is known to fail without any fault. `clock` is the loop's unless another one is given.
    `closely`: the fakes are looked at around each call, so that it is known whose is what is left. `fights` are pairs
    of steps that another run has shown to fight over a key. `variables` are the context variables that a process has
    which takes a run up after a crash; those of the caller unless they are given.
    """

    make: Callable[[], Any]
    context: Mapping[str, Any] = field(default_factory=dict)
    served: Sequence[Served] = ()
    world: World | None = None
    saga_id: str | None = None
    reproduce: str = ""
    interceptors: Sequence[Interceptor] = ()
    clock: Clock | None = None
    oldest_first: bool = False
    in_order: Sequence[str] = ()
    calls: Calls | None = None
    fails_at: str | None = None
    closely: bool = True
    fights: Collection[Fight] = ()
    variables: Context | None = None


async def describe(subject: Subject) -> tuple[Adapter, SagaModel]:
    """Return the adapter of the subject's saga, and its model."""
    saga = subject.make()
    adapter = adapter_for(saga)
    return adapter, await adapter.describe(adapter.create(saga))


def check_runnable(adapter: Adapter, model: SagaModel, plan: FaultPlan) -> None:
    """Raise `PlanError` for a plan that does not fit, `NotRunnableError` for one that the saga's engine cannot have."""
    plan.check(model)
    for fault in plan.faults:
        if fault.kind in adapter.cannot:
            raise NotRunnableError(f"{fault} was not run: {adapter.cannot[fault.kind]}")


async def run_trial(subject: Subject, plan: FaultPlan = NO_FAULTS, *, reference: Reading | None = None) -> Outcome:
    """Run the saga once under the plan and return the outcome, judged.

    `reference` is what the world shows after a run without faults. The fakes of the world are put back first to what
    they were, when everything in it is a fake. Raises `PlanError`, `NotRunnableError`, and whatever stops the run
    itself (`DefinitionError`, a value that cannot be stored).
    """
    return await Trial(subject, plan).run(reference)


@cache
def _no_capture() -> ReplayConfig:
    """What a saga is given that captures into a store of its own: a trial leaves nothing there."""
    from sagaz_core.saga.config import ReplayConfig  # pydantic, which importing this does not load

    return ReplayConfig(enable_snapshots=False)


class Trial:
    """The parts of one run under a plan.

    It keeps neither the run's options, which refer to it, nor its errors, whose tracebacks do: so nothing of it is left
    to the garbage collector, however many runs there are.
    """

    def __init__(self, subject: Subject, plan: FaultPlan) -> None:
        self.subject = subject
        self.plan = plan
        self.injector = Injector(plan)
        self.ledger = Ledger(step.step for step in subject.served)
        self._journal: Journal | None = None
        self.leftovers = Leftovers()
        self.fights: Fights | None = None
        self.touches: Touches | None = None
        self.began = b""
        self.stored = True
        self.cancelled = False
        self.endless: Finding | None = None
        self._closely: frozenset[tuple[str, str]] | None = None

    def intercept(self, call: StepCall, proceed: Proceed) -> Awaitable[Any]:
        """Be the innermost interceptor: the ledger, below the faults of the plan where it has any."""
        if not self.began and self.stored:
            self._note_beginning()
        closely = self._closely
        key = call.kind, call.step
        if closely is not None and key not in closely and not self.injector.due:
            self.leftovers.enter(key)
            return self.ledger.intercept(call, proceed)
        calls = self.subject.calls
        if calls is not None and calls.of_runs:
            calls.check(call)
            proceed = partial(calls.watch, call, proceed)
        if self.fights is not None and call.kind == "action":
            proceed = partial(self.fights.watch, call, proceed)
        if self.touches is not None and self.touches.watches(call):
            proceed = partial(self.touches.watch, call, proceed)
        if self.injector.concerns(call):
            watched = partial(self.leftovers.watch, call, proceed)  # the call may come later, when all is over
            return self.injector.intercept(call, lambda: self.ledger.intercept(call, watched))
        if self.subject.interceptors:  # those that go on after the call are no part of it
            return self.ledger.intercept(call, partial(self.leftovers.watch, call, proceed))
        self.leftovers.enter(key)
        return self.ledger.intercept(call, proceed)

    def _note_beginning(self) -> None:
        """Keep what the saga began with: for a typed one more than it was given, and maybe what none stores."""
        try:
            self.began = encode(self.state.initial, "context")
        except CannotStoreError:
            self.stored = False

    def _looked_at_closely(self) -> frozenset[tuple[str, str]] | None:
        """Return the calls, by kind and step, for which there is more to do than to write them down; `None`: all."""
        calls = self.subject.calls
        if (calls is not None and calls.of_runs) or self.fights is not None or self.subject.interceptors:
            return None
        return frozenset(self.injector.calls).union(() if self.touches is None else self.touches.calls)

    @property
    def state(self) -> SagaState:
        """What the events come to so far."""
        return SagaState() if self._journal is None else self._journal.state

    @property
    def log(self) -> list[Noted]:
        """All that happened so far, as it was noted."""
        return [] if self._journal is None else self._journal.log

    @property
    def events(self) -> Sequence[Event]:
        """All that happened so far."""
        return LateEvents(self.log)

    def _on_journal(self, journal: Journal) -> None:
        if self._journal is not None:
            journal.log = self._journal.log  # a resumed run goes on in the same history
        self._journal = journal

    async def run(self, reference: Reading | None = None) -> Outcome:
        """Run it and judge."""
        subject, plan = self.subject, self.injector.plan
        made = subject.make()
        adapter = adapter_for(made)
        saga = adapter.create(made)
        model = await adapter.describe(saga)
        check_runnable(adapter, model, plan)
        if not model.linear:
            self.fights = Fights()
        world = subject.world or None
        before = await world.read() if world else None
        if world and world.restorable:
            struck = {fault.step for fault in plan if fault.described.undo or fault.kind == "late"}
            self.touches = Touches(world, model, everything=subject.closely, struck=struck)
        self._closely = self._looked_at_closely()
        run = self._run_to_its_end(adapter, saga, self._context())
        claimed, exception = await (run if subject.calls is None else self._ended(run))
        self.leftovers.leave()
        if self.injector.late and self.endless is None:
            await self._deliver_late()
        events = self.events
        fought = () if self.fights is None else self.fights.findings(events, model)
        changes = reference_changes = after = None
        if world and before is not None:
            after = await world.read()
            changes = world.changes(before, after)
            if reference is not None:
                reference_changes = world.changes(reference, after)
                if reference_changes and claimed is SagaStatus.COMPLETED and world.restorable and self.plan:
                    again = Reference(subject, model, lambda other: Trial(other, NO_FAULTS).run())
                    reference_changes = await again.changes(before, reference, after, self)
        late = {fault.step for fault in self.injector.fired if fault.kind == "late"}
        refused = await self._refused(late, model, before, after) if late else frozenset[str]()
        state, noticed = self.state, (*await self.leftovers.findings(), *fought, *not_kept(self.log))
        evidence = Evidence(
            model=model,
            plan=plan,
            missed=self.injector.missed,
            claimed=claimed,
            state=state,
            events=events,
            ledger=self.ledger,
            engine=adapter.name,
            # Served steps never touched this world, but their compensations do: then it is no witness.
            world_changes=None if subject.served else changes,
            reference_changes=None if subject.served else reference_changes,
            cancelled=self.cancelled,
            left_in_context=left_in_context(state, self.began),
            oldest_first=subject.oldest_first,
            fails_at=subject.fails_at,
            endless=self.endless,
            touched=self.touches,
            noticed=noticed,
            fights=self.pairs(),
            spoilt=self._spoilt(late) if late else frozenset(),
            refused=refused,
        )
        return Outcome(evidence, changes or (), subject.reproduce, exception, after, self.plan)

    def _context(self) -> dict[str, Any]:
        """Return a copy of the context to begin with. One that cannot be stored is not compared in the end."""
        context = dict(self.subject.context)
        try:
            return dict(decode(encode(context, "context"), resolve=importing_class))
        except CannotStoreError:
            self.stored = False
            try:
                return deepcopy(context)
            except Exception:  # what is in it is the user's
                self.stored = True
            raise

    def pairs(self) -> frozenset[Fight]:
        """Return the steps that fight over a key, as far as is known now."""
        return frozenset(self.subject.fights).union(() if self.fights is None else self.fights.pairs)

    async def _refused(
        self, late: Set[str], model: SagaModel, before: Reading | None, after: Reading | None
    ) -> frozenset[str]:
        """Return the steps whose action came late and did nothing, although the world shows what it does."""
        touches = self.touches
        if touches is None or before is None or after is None:
            return frozenset()
        calls = {entry.step: entry for entry in self.ledger.entries}  # the last one of each
        came = [step for step in late & calls.keys() if calls[step].happened and not calls[step].undo]
        quiet = [step for step in came if not touches.did_again(step)]
        if not quiet:
            return frozenset()
        again = Reference(self.subject, model, lambda other: Trial(other, NO_FAULTS).run())
        return await again.shown(quiet, before, after)

    def _spoilt(self, late: Set[str]) -> frozenset[str]:
        """Return the steps whose action came late, changed the world and failed."""
        if self.touches is None:
            return frozenset()
        happened = {entry.step: entry.happened for entry in self.ledger.entries if not entry.undo}  # of the last call
        return frozenset(step for step in late if not happened.get(step, True) and self.touches.changed_last(step))

    def _options(self) -> RunOptions:
        return RunOptions(
            interceptors=(*self.subject.interceptors, self),
            observers=(self.injector.observe,) if self.injector.observes else (),
            on_journal=self._on_journal,
            clock=self.subject.clock or clock_of_loop(),
            sleep=sleep,
            replay_config=_no_capture(),
            oldest_first=self.subject.oldest_first,
            in_order=self.subject.in_order,
        )

    async def _ended(
        self, run: Awaitable[tuple[SagaStatus, BaseException | None]]
    ) -> tuple[SagaStatus, BaseException | None]:
        assert self.subject.calls is not None
        try:
            return await self.subject.calls.ended(run)
        except NeverEndsError as error:
            self.endless = error.finding
            return SagaStatus.EXECUTING, error

    async def _deliver_late(self) -> None:
        late, calls = self.injector.deliver_late(), self.subject.calls
        try:
            await (late if calls is None else calls.ended(late))
        except NeverEndsError as error:
            self.endless = error.finding

    async def _run_to_its_end(
        self, adapter: Adapter, saga: Any, context: dict[str, Any]
    ) -> tuple[SagaStatus, BaseException | None]:
        """Run it, and on after each simulated crash; return what the engine says, and what turned the saga back."""
        subject, options = self.subject, self._options()
        run: Callable[[], Any] = partial(
            adapter.run, saga, context, saga_id=subject.saga_id, served=subject.served, options=options
        )
        limit = MAX_RESUMES + len(self.injector.plan.faults)
        variables = copy_context() if subject.variables is None else subject.variables
        for resumes in range(limit):
            try:
                result = await self._guarded(run, variables.copy() if resumes else None)
            except SimulatedCrash:
                # Another process takes over: all it has is what was recorded, read back from bytes.
                self.leftovers.died()
                saga = adapter.create(subject.make())
                state = SagaState.from_data(decode(encode(self.state.to_data(), "state"), resolve=importing_class))
                run = partial(adapter.resume, saga, state, options=options)
            except asyncio.CancelledError as error:
                if not any(fault.kind == "cancel" for fault in self.injector.fired):
                    raise
                self.cancelled = True
                return self.state.status, error
            else:
                return result.status, result.exception
        raise PlanError(f"{self.injector.plan}: the saga did not end after {limit} resumed runs")

    def _guarded(self, run: Callable[[], Any], variables: Context | None) -> Awaitable[Any]:
        if variables is None and "cancel" not in [fault.kind for fault in self.injector.plan.faults]:
            ran: Awaitable[Any] = run()
            return ran
        # The plan cancels the task that runs the saga, which must not be the one that judges; or the process died, and
        # another one has the context variables as they were before.
        return asyncio.get_running_loop().create_task(run(), context=variables)


def left_in_context(state: SagaState, began: bytes) -> dict[str, str]:
    """Return the keys of a rolled-back saga's context that are not as they were, and how.

    `began` is what it was, encoded; empty when no operation was called, so that nothing can have changed it.
    """
    context = state.context
    if not began or state.status is not ROLLED_BACK or _stored(context) == began:
        return {}
    before: dict[str, Any] = decode(began, resolve=importing_class)
    found = {}
    for key in [*before, *(key for key in context if key not in before)]:
        if key not in context:
            found[key] = "gone"
        elif key not in before:
            found[key] = "still there"
        elif encode(before[key]) != _stored(context[key]):
            found[key] = "changed"
    return found


def _stored(value: Any) -> bytes:
    """Return it encoded; `b""` for what cannot be stored, which is not what a stored value was."""
    try:
        return encode(value)
    except CannotStoreError:
        return b""


async def reference_reading(subject: Subject) -> Reading | None:
    """Return what the world shows after a run without faults, and put the world back. `None` without such a world."""
    world = subject.world
    if not world or not world.restorable or subject.served:
        return None
    saved = world.save()
    outcome = await run_trial(subject)
    world.restore(saved)
    return outcome.world_after if outcome.status is SagaStatus.COMPLETED else None
