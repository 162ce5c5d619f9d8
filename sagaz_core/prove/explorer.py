"""Trying every failure of a saga.

A saga whose world is made of fakes is forked between its steps (`forked`); any other is run from its start for each
plan, many benign faults at once (`packed`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sagaz_core.adapters.locate import adapter_for
from sagaz_core.errors import CannotStoreError, PlanError, RunningLoopError, UsageError
from sagaz_core.faults.kinds import parse_kinds
from sagaz_core.faults.plan import NO_FAULTS, FaultPlan
from sagaz_core.model import END
from sagaz_core.prove.effects import Stopped
from sagaz_core.prove.exploration import MODES, Exploration, used_up
from sagaz_core.prove.forked import Forked, runs_differ, why_it_ends, why_it_fails, why_not_forkable, worlds_differ
from sagaz_core.prove.hidden import Hidden
from sagaz_core.prove.packed import bisected, packed_plans, single_plans
from sagaz_core.prove.recorded import not_as_recorded
from sagaz_core.prove.schedules import OLDEST_FIRST, has_choice
from sagaz_core.prove.scripts import Scripts, spared
from sagaz_core.prove.trial import NotRunnableError, Subject, run_trial
from sagaz_core.prove.verdict import Verdict
from sagaz_core.prove.watch import Calls, NeverEndsError, watched
from sagaz_core.prove.world import as_world
from sagaz_core.prove.worlds import LyingFakeError, NotForkableError
from sagaz_core.saga.definition import mapping_or_empty
from sagaz_core.state import SagaStatus

if TYPE_CHECKING:
    from sagaz_core.adapters.base import Adapter
    from sagaz_core.engine.run import Served
    from sagaz_core.model import SagaModel
    from sagaz_core.prove.outcome import Outcome
    from sagaz_core.prove.verdict import Finding
    from sagaz_core.prove.world import Reading, World

DEFAULT_DEPTH = 2


@dataclass(frozen=True)
class Search:
    """How to explore: which kinds, how many faults at once, in which mode, and when to stop.

    `known` plans failed before; those that are asked for are run first. `recorded` steps are taken from a record until
    a fault strikes, of which none strikes an action before the step `first`. `over` says that the time is up;
    `on_progress` is told how many plans are done, and how many there are. `again` is the command that makes the same
    search, for what is seen only in an order of the steps that a run of one plan does not take.
    """

    kinds: tuple[str, ...]
    depth: int = DEFAULT_DEPTH
    mode: str = "auto"
    max_executions: int | None = None
    first: str | None = None
    known: Sequence[FaultPlan] = ()
    recorded: Mapping[str, Served] = field(default_factory=dict)
    over: Callable[[], bool] = lambda: False
    on_progress: Callable[[int, int], object] | None = None
    again: str = ""

    def served(self, plan: FaultPlan, model: SagaModel) -> tuple[Served, ...]:
        """Return the recorded steps that come before the first that a fault of the plan strikes."""
        struck = {fault.step for fault in plan if not fault.described.undo}
        served: list[Served] = []
        for name in model.order:
            if name in struck or name not in self.recorded:
                break
            served.append(self.recorded[name])
        return tuple(served)

    def known_of(self, model: SagaModel) -> list[FaultPlan]:
        """Return the known plans that are among those that are asked for."""
        return [plan for plan in self.known if _fits(plan, model) and self._asks_for(plan, model)]

    def not_asked_for(self, model: SagaModel) -> list[FaultPlan]:
        """Return the known plans that the saga can have, and that this search leaves out."""
        return [plan for plan in self.known if _fits(plan, model) and not self._asks_for(plan, model)]

    def _asks_for(self, plan: FaultPlan, model: SagaModel) -> bool:
        early = spared(model, self.first)
        return sum(fault.times for fault in plan) <= self.depth and all(
            fault.kind in self.kinds and (fault.described.undo or fault.step not in early)
            for fault in plan
            if fault.step != END
        )


def _fits(plan: FaultPlan, model: SagaModel) -> bool:
    try:
        plan.check(model)
    except PlanError:
        return False  # of a saga that has changed since
    return True


def explore(
    saga: Any,
    context: Mapping[str, Any] | None = None,
    *,
    kinds: str | Iterable[str] = "all",
    depth: int = DEFAULT_DEPTH,
    world: World | None = None,
    max_executions: int | None = None,
    mode: str = "auto",
) -> Exploration:
    """Try every plan of at most `depth` faults, each judged with no assertion of yours.

    `saga` is a class, an instance or a factory; `kinds` is `all`, `quick` or a list. With a `world` that is made of
    fakes alone the saga is forked between its steps and equal states are merged; else each plan is run from the start,
    and only plans of one fault (and packed ones) are tried: `.mode` and `.reason` say which. `mode` asks for one of
    `merged`, `tree` (forked, not merged) and `packed`. When forked, a compensation's fault is the second one of a plan,
    after what makes the compensation run. Runs on a virtual clock; raises `RunningLoopError` inside a running loop (use
    `aexplore`).
    """
    from asyncio import _get_running_loop

    from sagaz_core.virtual_time import run  # the loop is only for those who have none

    if _get_running_loop() is not None:
        raise RunningLoopError("explore() was called inside a running event loop: write `await aexplore(...)` there")
    return run(aexplore(saga, context, kinds=kinds, depth=depth, world=world, max_executions=max_executions, mode=mode))


async def aexplore(
    saga: Any,
    context: Mapping[str, Any] | None = None,
    *,
    kinds: str | Iterable[str] = "all",
    depth: int = DEFAULT_DEPTH,
    world: World | None = None,
    max_executions: int | None = None,
    mode: str = "auto",
) -> Exploration:
    """Do what `explore` does, inside a running loop."""
    subject = Subject(_maker(saga), mapping_or_empty(context), world=None if world is None else as_world(world))
    search = Search(parse_kinds(kinds), depth, mode, max_executions)
    return await explore_subject(subject, search)


async def explore_subject(subject: Subject, search: Search) -> Exploration:
    """Explore what is tried of a subject. Its world's fakes end as they were.

    What never ends is named (`ENDLESS`), and plans that do not get there are run from the start.
    """
    calls = Calls(asyncio.get_running_loop())
    subject = replace(subject, calls=calls)
    try:
        with calls.bounded(), watched(calls.current):
            return await _explored(subject, search)
    except Stopped as stopped:
        raise stopped.error or stopped from None


async def _explored(subject: Subject, search: Search) -> Exploration:
    for name, number in (("depth", search.depth), ("max_executions", search.max_executions or 0)):
        if not isinstance(number, int) or number < 0:
            raise UsageError(f"{name}={number!r}: give a whole number from 0")
    if search.mode != "auto" and search.mode not in MODES:
        raise UsageError(f"mode={search.mode!r}: write auto, merged, tree or packed")
    made = subject.make()
    adapter = adapter_for(made)
    saga = adapter.create(made)
    model = await adapter.describe(saga)
    reason = why_not_forkable(adapter, saga, subject)
    if search.mode in ("merged", "tree") and reason:
        raise UsageError(f"mode={search.mode!r}: {reason}")
    if search.mode == "packed":
        reason = "asked for"
    subject, unseen = with_seen_world(subject)
    if unseen and search.mode in ("merged", "tree"):
        raise UsageError(f"mode={search.mode!r}: {unseen.removesuffix(f'; {_ONLY_CALLS}')}")
    reason = unseen or reason
    note = ""
    if search.recorded and subject.world and not search.over():
        note = await not_as_recorded(subject, search.recorded.values())
        if not note:
            search = replace(search, recorded={})
    found = await _searched(subject, search, saga, model, adapter, reason)
    return replace(found, notes=(*found.notes, note)) if note else found


async def _searched(
    subject: Subject, search: Search, saga: Any, model: SagaModel, adapter: Adapter, reason: str
) -> Exploration:
    if not reason:
        world = subject.world
        saved = world.save() if world else None
        try:
            assert subject.calls is not None
            return await subject.calls.ended(Forked(subject, saga, model, search).explore())
        except LyingFakeError as error:
            if search.mode != "auto":
                raise
            subject, reason = replace(subject, world=None), f"{error}; {_ONLY_CALLS}"
        except (NotForkableError, NeverEndsError) as error:
            if search.mode != "auto":
                raise
            reason = str(error)
        finally:
            if saved is not None and world is not None:
                with suppress(UsageError):  # one that cannot be put back was named
                    world.restore(saved)
    return await _Packed(subject, model, search, reason, adapter).explore()


def with_seen_world(subject: Subject) -> tuple[Subject, str]:
    """Return the subject and `""`; or, if its world cannot be copied or put back, the subject without it, and why."""
    world, wrong = subject.world, ""
    try:
        if world:
            saved = world.save()
            if world.restorable:
                world.restore(saved)
                wrong = world.not_put_back(saved)
    except UsageError as error:
        wrong = str(error)
    return (replace(subject, world=None), f"{wrong}; {_ONLY_CALLS}") if wrong else (subject, "")


_BEHIND_ENDLESS = "what comes after a call that never ends"
_ONLY_CALLS = "until then only the calls are judged"


class _Packed:
    """Runs each plan from the start."""

    def __init__(self, subject: Subject, model: SagaModel, search: Search, reason: str, adapter: Adapter) -> None:
        self.subject = subject
        self.model = model
        self.search = search
        self.reason = reason
        self.adapter = adapter
        self.outcomes: dict[FaultPlan, Outcome] = {}
        self.said: set[FaultPlan] = set()  # packed plans that failed as a smaller one does
        self.not_run: dict[str, str] = {}
        self.endless: set[Finding] = set()
        self.notes: list[str] = []
        self.executions = 0
        self.orders = 0
        self.stopped = ""
        self.clean: Outcome | None = None
        self.fails_alone = ""
        self.reference: Reading | None = None
        world = subject.world
        self.saved = world.save() if world is not None and world.restorable else None
        self.hidden = Hidden(world)

    async def explore(self) -> Exploration:
        """Run them all and return what came of it."""
        search, model = self.search, self.model
        clean = self.clean = await self._run(NO_FAULTS)
        if self.subject.world and self.saved is not None and (wrong := self.subject.world.not_put_back(self.saved)):
            self.reason = f"{wrong}; {_ONLY_CALLS}"
            self.subject, self.saved = replace(self.subject, world=None), None
            self.outcomes.clear()
            clean = self.clean = await self._run(NO_FAULTS)
        if clean is not None and clean.evidence.endless is not None:
            self.clean = None
        elif clean is not None and clean.status is not SagaStatus.COMPLETED:
            self.fails_alone = why_it_fails(clean, self.subject)
            if self.fails_alone:
                self.not_run["*"] = self.fails_alone
            self.subject = replace(self.subject, fails_at=clean.evidence.state.failed_step)
        elif clean is not None and self.saved is not None and not search.recorded:
            self.reference = clean.world_after
        await self._run_again()
        singles = single_plans(model, search.kinds, search.first) if search.depth else []
        packs = packed_plans(model, search.kinds, search.first) if search.depth else []
        for plan in search.known_of(model):
            await self._run(plan)
        for plan in packs:
            await self._run_packed(plan)
        for plan in singles:
            await self._run(plan)
            if search.on_progress is not None:
                search.on_progress(len(self.outcomes), 1 + len(packs) + len(singles))
        outcomes = tuple(self.outcomes.values())
        order = list(Verdict)
        failed = [o for plan, o in self.outcomes.items() if o.findings and plan not in self.said]
        bad = sorted(without_larger(failed), key=lambda outcome: order.index(outcome.verdict))
        checked = {
            (fault.step, fault.kind)
            for outcome in outcomes
            for fault in outcome.evidence.plan
            if fault not in outcome.evidence.missed
        }
        applicable = Scripts(model, search.kinds, search.first).pairs()
        return Exploration(
            model=model,
            mode="packed",
            reason=self.reason,
            engine=self.adapter.name,
            depth=min(search.depth, 1),
            plans=len(outcomes),
            possible=len(outcomes) + len(self.not_run.keys() - {"*", OLDEST_FIRST}),
            executions=self.executions,
            orders=self.orders,
            outcomes=outcomes,
            failures=tuple(bad),
            checked=frozenset(checked & applicable),
            unsound=frozenset(_last_of(plan) for plan in singles if any(self.outcomes.get(plan) is o for o in bad))
            & applicable,
            applicable=applicable,
            not_run=self.not_run,
            stopped=self.stopped,
            fails_alone=self.fails_alone,
            notes=(*self.hidden.sentences, *self.notes),
        )

    async def _run_again(self) -> None:
        """Run it without faults once more, and note what differs: then nothing says that a plan ends so again."""
        clean, subject = self.clean, self.subject
        if clean is None or self._spent() or self.search.depth == 0:
            return
        before = clean.world_after
        again = await self._trial(subject, NO_FAULTS)
        if (endless := again.evidence.endless) is not None:
            self.endless.add(endless)
            self.outcomes[NO_FAULTS] = again
            self.not_run["*"] = _BEHIND_ENDLESS
            return
        if differs := runs_differ(clean, again):
            self.notes.append(differs)
            return
        world, after = subject.world, again.world_after
        if world is None or self.saved is None or before is None or after is None:
            return
        if changes := world.changes(before, after):
            self.notes.append(worlds_differ(changes))

    async def _run(self, plan: FaultPlan) -> Outcome | None:
        search = self.search
        if plan in self.outcomes:
            return self.outcomes[plan]
        if self._spent():
            self.not_run[str(plan)] = self.not_run["*"]
            return None
        subject = self.subject
        if search.recorded:
            subject = replace(subject, served=search.served(plan, self.model))
        try:
            outcome = await self._trial(subject, plan)
        except (NotRunnableError, CannotStoreError) as error:
            self.not_run[str(plan)] = str(error)
            return None
        if (endless := outcome.evidence.endless) is not None:
            self.not_run["*"] = _BEHIND_ENDLESS
            if endless in self.endless:
                self.not_run[str(plan)] = self.not_run["*"]
                return None
            self.endless.add(endless)
        if not outcome.findings and has_choice(outcome):
            outcome = await self._other_order(subject, plan) or outcome
        if outcome.evidence.missed and endless is None:
            if self.clean is not None and self.clean.status is not SagaStatus.COMPLETED:
                self.not_run[str(plan)] = self.not_run["*"] = why_it_ends(self.clean)
            else:
                self.not_run[str(plan)] = f"no run got to where {outcome.evidence.missed[0]} strikes"
            return None
        self.outcomes[plan] = outcome
        return outcome

    def _spent(self) -> bool:
        limit = self.search.max_executions
        if (limit is not None and self.executions >= limit) or self.search.over():
            self.stopped = self.not_run["*"] = used_up(self.executions)
            return True
        return False

    async def _trial(self, subject: Subject, plan: FaultPlan) -> Outcome:
        before = self.hidden.look()
        try:
            outcome = await run_trial(subject, plan, reference=self.reference)
            self.hidden.note(before)
        finally:
            if subject.world is not None and self.saved is not None:
                subject.world.restore(self.saved)
        self.executions += len(outcome.evidence.ledger.entries)
        return outcome

    async def _other_order(self, subject: Subject, plan: FaultPlan) -> Outcome | None:
        """Run a plan once more, undone in the other order, and return the outcome if that is not sound."""
        if self.adapter.one_order:
            self.not_run[OLDEST_FIRST] = self.adapter.one_order
        elif not self._spent():
            self.orders += 1
            outcome = await self._trial(replace(subject, oldest_first=True), plan)
            return outcome if outcome.findings else None
        return None

    async def _run_packed(self, plan: FaultPlan) -> None:
        outcome = await self._run(plan)
        if outcome is None or not outcome.findings:
            return

        async def fails(part: FaultPlan) -> bool:
            tried = await self._run(part)
            return tried is not None and bool(tried.findings)

        smallest = await bisected(plan, fails)
        for tried in self.outcomes:
            if len(tried.faults) > len(smallest.faults) and set(smallest.faults) <= set(tried.faults):
                self.said.add(tried)


def _last_of(plan: FaultPlan) -> tuple[str, str]:
    return plan.faults[-1].step, plan.faults[-1].kind


def without_larger(failed: Sequence[Outcome]) -> list[Outcome]:
    """Leave out the outcomes of plans that show only what a part of them shows by itself."""

    def shows(outcome: Outcome) -> set[tuple[Verdict, str | None]]:
        return {(finding.verdict, finding.step) for finding in outcome.findings}

    shown = [(frozenset(outcome.evidence.plan), shows(outcome)) for outcome in failed]
    return [
        outcome
        for outcome, (faults, keys) in zip(failed, shown, strict=True)
        if not any(part < faults and keys <= others for part, others in shown)
    ]


def _maker(saga: Any) -> Callable[[], Any]:
    is_factory = callable(saga) and not isinstance(saga, type) and not hasattr(saga, "run")
    return saga if is_factory else lambda: saga
