"""Exploring a saga by running it from its start for each plan: many benign faults at once, then single ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sagaz_core.errors import CannotStoreError
from sagaz_core.faults.plan import NO_FAULTS, FaultPlan
from sagaz_core.prove.clean import runs_differ, shows, why_it_ends, why_it_fails, worlds_differ
from sagaz_core.prove.exploration import Exploration, used_up
from sagaz_core.prove.hidden import Hidden
from sagaz_core.prove.orders import OtherOrders
from sagaz_core.prove.packed import bisected, packed_plans, single_plans
from sagaz_core.prove.schedules import OLDEST_FIRST, has_choice
from sagaz_core.prove.scripts import Scripts
from sagaz_core.prove.trial import NotRunnableError, Subject, run_trial
from sagaz_core.prove.verdict import RANKS
from sagaz_core.state import SagaStatus

if TYPE_CHECKING:
    from sagaz_core.adapters.base import Adapter
    from sagaz_core.model import SagaModel
    from sagaz_core.prove.outcome import Outcome
    from sagaz_core.prove.search import Search
    from sagaz_core.prove.verdict import Finding
    from sagaz_core.prove.world import Reading

_BEHIND_ENDLESS = "what comes after a call that never ends"
ONLY_CALLS = "until then only the calls are judged"


class FromStart:
    """One exploration that runs each plan from the start of the saga."""

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
            self.reason = f"{wrong}; {ONLY_CALLS}"
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
        if clean is not None:
            self.subject = replace(self.subject, fights=clean.evidence.fights)
        await self._run_again()
        out_of_order = await self._run_in_other_orders()
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
        failed = [o for plan, o in self.outcomes.items() if o.findings and plan not in self.said]
        failed = [*out_of_order, *failed]
        bad = sorted(without_larger(failed), key=lambda outcome: RANKS[outcome.verdict])
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
        clean, subject = self.clean, self._subject_of(NO_FAULTS)
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

    async def _run_in_other_orders(self) -> list[Outcome]:
        """Run it without faults in further orders of its steps, and return the runs in which one fails."""
        clean, subject = self.clean, self._subject_of(NO_FAULTS)
        if clean is None or clean.status is not SagaStatus.COMPLETED or self.notes or self.adapter.one_order:
            return []
        calls = subject.calls
        if calls is None or not calls.of_runs:
            return []  # a step that waits for one beside it would wait for ever

        async def run(order: tuple[str, ...]) -> Outcome | None:
            if self._spent():
                return None
            with calls.beside():
                return await self._trial(replace(subject, in_order=order), NO_FAULTS)

        world = subject.world if self.saved is not None else None
        found, note = await OtherOrders(clean, subject.fights, run).explore(world)
        self.notes += [note] if note else []
        return found

    async def _run(self, plan: FaultPlan) -> Outcome | None:
        search = self.search
        if plan in self.outcomes:
            return self.outcomes[plan]
        if self._spent():
            self.not_run[str(plan)] = self.not_run["*"]
            return None
        subject = self._subject_of(plan)
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
        if search.recorded and plan and outcome.findings and (why := await self._without(subject, plan, outcome)):
            self.not_run[str(plan)] = why
            return None
        self.outcomes[plan] = outcome
        return outcome

    def _subject_of(self, plan: FaultPlan) -> Subject:
        """Return what is run under the plan: the recorded steps before the first fault are not run again."""
        if not self.search.recorded:
            return self.subject
        return replace(self.subject, served=self.search.served(plan, self.model))

    async def _without(self, subject: Subject, plan: FaultPlan, outcome: Outcome) -> str:
        """Say that a saga that a benign plan turned back is turned back there without it too, run on from the record.

        Then it is not for the plan: what steps find outside is not what the recorded ones have left there.
        """
        if outcome.status is SagaStatus.COMPLETED or any(fault.described.fatal for fault in plan) or self._spent():
            return ""
        control = await self._trial(subject, NO_FAULTS)
        step = control.evidence.state.failed_step
        if control.status is SagaStatus.COMPLETED or step != outcome.evidence.state.failed_step:
            return ""
        return f"with the steps before it as recorded, {why_it_ends(control)}: give a world that has what they did"

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

    shown = [(frozenset(outcome.evidence.plan), shows(outcome)) for outcome in failed]
    return [
        outcome
        for outcome, (faults, keys) in zip(failed, shown, strict=True)
        if not any(part < faults and keys <= others for part, others in shown)
    ]
