"""What a benign fault has changed of the world, apart from what differs between two runs without faults.

A fault that makes a step be tried again also makes it come later, and steps that nothing orders may then leave another
world, as they may without it. And a time or an id of its own is another one in each run.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sagaz_core.prove.disorder import came_first
from sagaz_core.prove.unsteady import Unsteady

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from sagaz_core.events import Event
    from sagaz_core.interceptor import Proceed, StepCall
    from sagaz_core.model import SagaModel
    from sagaz_core.prove.ledger import Entry
    from sagaz_core.prove.outcome import Outcome
    from sagaz_core.prove.trial import Subject, Trial
    from sagaz_core.prove.world import Change, Reading, World

    Run = Callable[["Subject"], "Awaitable[Outcome]"]


class Reference:
    """Runs a saga without faults, again, in the order in which the actions of another run came."""

    def __init__(self, subject: Subject, model: SagaModel, run: Run) -> None:
        self._subject = subject
        self._linear = model.linear
        self._run = run

    async def changes(self, before: Reading, known: Reading, after: Reading, run: Trial) -> tuple[Change, ...]:
        """Return where the world after a run differs from what it is without faults.

        `before` is the world to begin in, `known` what a run without faults has left, `after` what is to be compared. A
        run in which a step has not read what it reads without faults, because it came sooner or later, is not.
        """
        world = self._subject.world
        assert world is not None
        first = known
        if not self._linear:
            first, events = await self._left(world, before, run.ledger.entries)
            fights = run.pairs()
            if came_first(events, fights) != came_first(run.events, fights):
                world.restore(after)
                return ()
        second, _ = await self._left(world, before, run.ledger.entries)
        world.restore(after)
        return tuple(Unsteady(world.changes(second, first)).without(world.changes(second, after)))

    async def shown(self, steps: Collection[str], before: Reading, after: Reading) -> frozenset[str]:
        """Return those of the steps that change the world without faults."""
        world = self._subject.world
        assert world is not None
        world.restore(before)
        clean = await self._run(replace(self._subject, calls=None, oldest_first=False, closely=True))
        world.restore(after)
        touched = clean.evidence.touched
        return frozenset(step for step in steps if touched is not None and touched.places(step))

    async def _left(self, world: World, before: Reading, entries: Sequence[Entry]) -> tuple[Reading, Sequence[Event]]:
        world.restore(before)
        turns = () if self._linear else (Turns(entries),)
        interceptors = (*turns, *self._subject.interceptors)
        outcome = await self._run(replace(self._subject, interceptors=interceptors, calls=None, oldest_first=False))
        return await world.read(), outcome.events


class Turns:
    """An interceptor that has actions begin and end in the order in which those of another run did."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        first: dict[str, Entry] = {}
        for entry in entries:
            if not entry.undo and entry.happened:
                first.setdefault(entry.step, entry)
        self._ended = {step: asyncio.Event() for step in first}
        self._before = {
            step: [other for other, its in first.items() if its.ended < entry.began] for step, entry in first.items()
        }

    async def intercept(self, call: StepCall, proceed: Proceed) -> Any:
        """Let the action wait for its turn, which takes none of its time."""
        if call.kind != "action" or call.step not in self._before:
            return await proceed()
        waits_for = [self._ended[step] for step in self._before[call.step] if not self._ended[step].is_set()]
        if waits_for and call.renew_time is not None:
            call.renew_time(False)
        for other in waits_for:
            await other.wait()
        if waits_for and call.renew_time is not None:
            call.renew_time(True)
        try:
            return await proceed()
        finally:
            self._ended[call.step].set()
