"""Exploring a saga by forking it, with what keeps that honest.

Before anything is merged the saga is run twice without faults and the traces compared; of the merged plans one in a
hundred is run again from the start, by the engine as it is, and must be judged alike. What is reported was seen on such
a run too, or, where it needs an order of steps that the engine does not take by itself, on the branch.
"""

from __future__ import annotations

import asyncio
import decimal
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sagaz_core._leftovers import SCOPE
from sagaz_core.errors import CannotStoreError
from sagaz_core.events import SagaStarted
from sagaz_core.faults.plan import NO_FAULTS, FaultPlan
from sagaz_core.model import END
from sagaz_core.prove.beside import Beside
from sagaz_core.prove.branch import Branch
from sagaz_core.prove.clean import order_matters, runs_differ, why_it_ends, why_it_fails, with_others, worlds_differ
from sagaz_core.prove.effects import Effects
from sagaz_core.prove.ends import Ends
from sagaz_core.prove.exploration import Exploration, used_up
from sagaz_core.prove.oracle import monitors
from sagaz_core.prove.outcome import Outcome
from sagaz_core.prove.packed import single_plans
from sagaz_core.prove.runs import Runs
from sagaz_core.prove.scripts import Scripts, plan_counts
from sagaz_core.prove.shown import Shown
from sagaz_core.prove.summary import Summary
from sagaz_core.prove.tree import Tree
from sagaz_core.prove.trial import Subject, left_in_context
from sagaz_core.prove.unordered import every_order
from sagaz_core.prove.unsteady import Unsteady
from sagaz_core.prove.world import ATOMS
from sagaz_core.prove.worlds import NotForkableError, Worlds
from sagaz_core.saga.definition import mapping_or_empty
from sagaz_core.state import SagaStatus
from sagaz_core.storage.codec import decode, encode, importing_class
from sagaz_core.virtual_time import VirtualClockLoop, clock_of_loop, sleep

if TYPE_CHECKING:
    from datetime import datetime

    from sagaz_core.adapters.base import Adapter
    from sagaz_core.model import SagaModel
    from sagaz_core.prove.search import Search
    from sagaz_core.saga.definition import Definition


def why_not_forkable(adapter: Adapter, saga: Any, subject: Subject) -> str:
    """Say why the saga has to be run from the start for each plan, or return `""`."""
    world = subject.world
    if adapter.name != "native":
        return f"the engine of the {adapter.name} package runs a saga from its start to its end, and cannot be forked"
    if not world:
        return "no world was given, so what the steps do outside cannot be put back: give a world made of fakes"
    if not world.restorable:
        return (
            f"the world has probes ({', '.join(world.probes)}), which are read but cannot be put back: register fakes"
        )
    if saga.interceptors or subject.interceptors:
        return "the saga has interceptors, which may hold a state of their own"
    if monitors():
        return "a plugin's monitor reads the whole history of a run"
    return ""


_TWO_ORDERS = (
    "the steps can go in too many orders: two were tried, with the first and with the last of those that can come next"
)


_LATER = 61.0
"""Seconds between two runs without faults."""


class Forked:
    """One exploration by forking."""

    def __init__(self, subject: Subject, saga: Any, model: SagaModel, search: Search) -> None:
        self.saga = saga
        self.model = model
        self.search = search
        self.scripts = Scripts(model, search.kinds, search.first)
        self.worlds = Worlds(subject.world or None, ordered=model.linear)
        self._instance = dict(vars(saga))
        self._beside = Beside(saga, subject.world)
        self._seen: list[Outcome] = []  # what a run from the start has shown, and no branch may show
        self.runs = Runs(subject, model, search, self.worlds)
        self.unsteady = Unsteady(())
        self.fails_alone = ""
        self.merge = search.mode != "tree"
        self.two_orders: tuple[str, ...] = ()
        self.reason = "asked for" if search.mode == "tree" else ""

    async def explore(self) -> Exploration:
        """Explore, check, and return what came of it. Raises `NotForkableError`."""
        definition = await self.saga.prepare()
        if not self.search.recorded:
            await self._run_twice()
        known = await self._run_known()
        with _few_collections():
            tree, root, summary = await self._searched(definition)
            if self.merge and not await self._samples_hold(tree):
                self.merge = False
                tree, root, summary = await self._searched(definition)
        self._check_beside(tree)
        if self._sets_variables() and self.search.depth and not tree.spent:
            await self._run_crashes(tree)
        failures = await Shown(self.runs, tree, root).failures(summary)
        seen = sorted([*known, *self._seen], key=lambda outcome: len(outcome.plan.faults))
        return self._exploration(tree, summary, with_others(failures, seen))

    # ---- before

    async def _run_twice(self) -> None:
        first = await self.runs.trial(NO_FAULTS)
        if first.status is not SagaStatus.COMPLETED:
            self.fails_alone = why_it_fails(first, self.runs.subject)
            self.runs.subject = replace(self.runs.subject, fails_at=first.evidence.state.failed_step)
        elif self.runs.subject.world:
            self.runs.reference = self.runs.after
        if isinstance(asyncio.get_running_loop(), VirtualClockLoop):
            await sleep(_LATER)  # clocks may be frozen, and the search moves them on: what tells the time shows it now
        second = await self.runs.trial(NO_FAULTS)
        self.runs.clean = first
        if self.worlds.key(self.runs.after) != self.worlds.key(self.runs.before_that):
            changes = self.worlds.changes(self.runs.before_that, self.runs.after)
            self.unsteady = Unsteady(changes)
            self._do_not_merge(worlds_differ(changes))
        if differs := runs_differ(first, second):
            self._do_not_merge(differs)

    def _do_not_merge(self, why: str) -> None:
        self.merge = False
        self.reason = why

    async def _run_known(self) -> list[Outcome]:
        failed = []
        for plan in self.search.known_of(self.model):
            outcome = await self.runs.trial(plan, closely=True)
            if outcome.findings and not outcome.evidence.missed:  # else it is of another context
                failed.append(outcome)
        return failed

    def _sets_variables(self) -> bool:
        """Whether a step has set a context variable, which the next one sees and another process does not."""
        before, now = self.runs.subject.variables, copy_context()
        return before is not None and any(
            variable is not SCOPE and before.get(variable) is not value
            for variable, value in now.items()
            if value is not None and not isinstance(value, decimal.Context)  # which the first sum makes
        )

    async def _run_crashes(self, tree: Tree) -> None:
        """Let the process die in runs from the start: context variables that a step sets are those of all branches."""
        kinds = [kind for kind in ("crash", "crash-recorded") if kind in self.search.kinds]
        for plan in single_plans(self.model, kinds, self.search.first):
            outcome = await self.runs.trial(plan, closely=True)
            if outcome.findings and not outcome.evidence.missed:
                self._seen.append(outcome)
                tree.unsound.update((fault.step, fault.kind) for fault in plan)

    # ---- the search

    @cached_property
    def _possible(self) -> int:
        return sum(plan_counts(self.scripts, self.search.depth))

    def _every_order(self, depth: int, definition: Definition) -> bool:
        return every_order(self.model, depth, cancels=definition.on_sibling_failure == "cancel")

    async def _searched(self, definition: Definition) -> tuple[Tree, Branch, Summary]:
        limit = self.search.max_executions
        effects = Effects(
            self.worlds,
            definition.typed,
            keep=self.merge,
            limit=None if limit is None else max(0, limit - self.runs.executions),
        )
        effects.hidden = self.runs.hidden
        initial = self._context(definition)
        root = Branch.first(definition, effects, self._now(), self._started(initial))
        root.live = not self.search.recorded
        began = encode(initial)
        possible, progress = self._possible, self.search.on_progress
        orders = self._every_order(self.search.depth, definition)
        if not (orders or self.model.linear):
            less = self.search.depth > 1 and self._every_order(1, definition)
            self.two_orders = (_TWO_ORDERS + ("; a depth of 1 tries every order" if less else ""),)
        ends = Ends(
            self.model,
            self.worlds,
            self.runs.initial,
            lambda state: left_in_context(state, began),
            reference=self.runs.reference,
            witness=bool(self.runs.subject.world) and not self.search.recorded,
            ordered=not orders,
            unsteady=self.unsteady,
            seen=effects.seen_by_world,
        )
        tree = Tree(
            self.scripts,
            effects,
            ends,
            orders=orders,
            merge=self.merge,
            recorded=dict(self.search.recorded),
            over=self.search.over,
            on_progress=None if progress is None else lambda covered: progress(covered, possible),
        )
        before = self._attributes()
        if self.runs.subject.calls is not None:
            self.runs.subject.calls.search = effects
        if not self.model.linear and self.runs.reference is not None:
            await tree.note_completed(root)
        summary = await tree.explore(root, self.search.depth)
        self._check_instance(before)
        self.runs.executions += effects.executions
        return tree, root, summary

    def _context(self, definition: Definition) -> dict[str, Any]:
        try:
            given = decode(encode(mapping_or_empty(dict(self.runs.subject.context))), resolve=importing_class)
            if definition.typed is None:
                return dict(given)
            initial = definition.typed.initial(self.model.name, given)
            encode(initial, "context")
        except CannotStoreError as error:
            raise NotForkableError(f"the context cannot be copied: {error}") from error
        return initial

    def _now(self) -> datetime:
        return (self.runs.subject.clock or clock_of_loop())()

    def _started(self, initial: dict[str, Any]) -> SagaStarted:
        model = self.model
        return SagaStarted(
            0,
            self._now(),
            self.runs.subject.saga_id or "explored",
            model.name,
            model.version,
            model.fingerprint,
            initial,
        )

    def _attributes(self) -> dict[str, Any]:
        """Return the attributes of the saga: plain values as they were at first, and all that has been made since."""
        first = self._instance
        return {
            name: first[name] if type(value) in ATOMS else value
            for name, value in vars(self.saga).items()
            if name in first or type(value) not in ATOMS
        }

    def _check_instance(self, before: dict[str, Any]) -> None:
        after = vars(self.saga)
        for name in after:
            if not name.startswith("_") and (name not in before or before[name] is not after[name]):
                raise NotForkableError(
                    f"the saga keeps state of a run on itself (self.{name}), which a fork shares with all others: "
                    f"return it from the step"
                )

    def _blind(self, tree: Tree) -> frozenset[str]:
        """Return the compensated steps of which the world shows nothing."""
        if not self.runs.subject.world:
            return frozenset()
        compensated = frozenset(step.name for step in self.model.steps if step.has_compensation)
        return compensated & tree.effects.reads.keys() - tree.effects.seen_by_world.keys()

    def _check_beside(self, tree: Tree) -> None:
        """Raise where the world shows nothing of a step, and something of the saga's own was seen to change."""
        if (blind := self._blind(tree)) and (names := self._beside.changed()):
            steps = ", ".join(name for name in self.model.order if name in blind)
            what = " and ".join(f"self.{name}" for name in names)
            does = "changes and is" if len(names) == 1 else "change and are"
            raise NotForkableError(
                f"the world shows nothing of {steps}, and {what} of the saga {does} not in it: register it by "
                f"world.fake(…)"
            )

    async def _samples_hold(self, tree: Tree) -> bool:
        """Run what was sampled from the start, and say whether it ends as its merged state said it would."""
        if not self.model.linear or tree.spent:
            return True  # the engine takes one order, and a sample may be of another
        for faults, expected in tree.samples:
            outcome = await self.runs.trial(FaultPlan(faults))
            if [fault.step for fault in outcome.evidence.missed] == [END]:
                continue  # faults of compensations alone fail the end too, which this saga does not get to
            judged = set(outcome.findings).difference(outcome.evidence.noticed)  # the search has noticed that too
            got = frozenset((finding.verdict, finding.step) for finding in judged)
            if got != expected:
                shown = ", ".join(sorted(f"{verdict.value} at {step}" for verdict, step in got ^ expected))
                if got - expected and not outcome.evidence.missed:
                    self._seen.append(outcome)
                self._do_not_merge(
                    f"{outcome.plan} run from the start was not judged as the state it was merged with ({shown}): "
                    f"something that the steps see is not in the world or the context"
                )
                return False
        return True

    # ---- after

    def _exploration(self, tree: Tree, summary: Summary, failures: list[Outcome]) -> Exploration:
        applicable = self.scripts.pairs()
        plans = sum(summary.counts)
        possible = self._possible
        checked = frozenset(tree.checked)
        not_run: dict[str, str] = {}
        stopped = ""
        if tree.spent:
            stopped = not_run["*"] = used_up(self.runs.executions)
        else:
            possible = max(plans, possible)
            not_run = {f"{step}@{kind}": self._why(step, kind) for step, kind in sorted(applicable - checked)}
            if not_run and self.runs.clean is not None and self.runs.clean.status is not SagaStatus.COMPLETED:
                not_run["*"] = why_it_ends(self.runs.clean)
            elif self.fails_alone:
                not_run["*"] = self.fails_alone
        if not self.search.depth or (self.search.depth == 1 and not tree.spent):
            # Compensations are struck by the second fault.
            not_run = {part: why for part, why in not_run.items() if part == "*"}
        return Exploration(
            model=self.model,
            mode="merged" if self.merge else "tree",
            reason=self.reason,
            depth=self.search.depth,
            plans=plans,
            possible=possible,
            executions=self.runs.executions,
            orders=summary.beside,
            outcomes=(*([self.runs.clean] if self.runs.clean is not None else []), *failures),
            failures=tuple(failures),
            checked=checked,
            unsound=frozenset(tree.unsound),
            applicable=applicable,
            blind=self._blind(tree),
            not_run=not_run,
            stopped=stopped,
            fails_alone=self.fails_alone,
            notes=(*self.runs.hidden.sentences, *self.two_orders, *self._by_order(tree)),
        )

    def _by_order(self, tree: Tree) -> tuple[str, ...]:
        """Say where the world that the saga leaves without faults hangs on the order of its steps."""
        if len(left := tree.ends.completed) < 2:
            return ()
        one, other = list(left.values())[:2]
        return (order_matters(self.worlds.changes(one, other)),)

    def _why(self, step: str, kind: str) -> str:
        if self.runs.clean is not None and self.runs.clean.status is not SagaStatus.COMPLETED:
            return why_it_ends(self.runs.clean)
        return f"no run got to where {step}@{kind} strikes"


@contextmanager
def _few_collections() -> Iterator[None]:
    """Let the garbage collector run seldom: what is made here by the thousand is no garbage, nor in circles."""
    before = gc.get_threshold()
    gc.set_threshold(200_000, 50, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)
