"""Which places of the world each step's calls change: where something is left, they say whose it is."""

from __future__ import annotations

from collections import Counter
from itertools import product, takewhile
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence, Set

    from sagaz_core.interceptor import Proceed, StepCall
    from sagaz_core.model import SagaModel
    from sagaz_core.prove.world import Change, World


class Touched(Protocol):
    """What is known of the places that the calls of steps have changed."""

    def places(self, step: str) -> Set[str] | None:
        """Return the places that calls of the step were seen to change; `None` when nobody looked."""

    def culprits(self, left: Sequence[Change]) -> tuple[str, ...]:
        """Return the steps whose compensation has not put these places right, as far as that can be said."""

    def done_again(self, left: Sequence[Change]) -> tuple[str, ...]:
        """Return the steps whose action changed one of these places more than once."""


class _Call(NamedTuple):
    step: str
    undo: bool
    changes: dict[str, Change]


class Touches:
    """Looks at the fakes before and after each call of one run: of all steps, or of those whose effect may stay.

    That is of those without a compensation, and of those that a fault has `struck` in theirs, or that come late.
    """

    def __init__(self, world: World, model: SagaModel, *, everything: bool, struck: Iterable[str]) -> None:
        self._world = world
        kept = (step.name for step in model.steps if not step.has_compensation)
        self._watched = frozenset(model.names if everything else (*kept, *struck))
        self._calls: list[_Call] = []

    @property
    def calls(self) -> Iterable[tuple[str, str]]:
        """The calls that are to be looked at, by kind and step."""
        return product(("action", "compensation"), self._watched)

    def watches(self, call: StepCall) -> bool:
        """Whether the call is to be looked at."""
        return call.step in self._watched and call.kind in ("action", "compensation")

    async def watch(self, call: StepCall, proceed: Proceed) -> Any:
        """Make the call, and note what it changes."""
        before = self._world.save()
        try:
            return await proceed()
        finally:
            changes = {change.where: change for change in self._world.changes(before, self._world.save())}
            self._calls.append(_Call(call.step, call.kind == "compensation", changes))

    def places(self, step: str) -> Set[str] | None:
        """Return the places that calls of the step were seen to change; `None` when nobody looked."""
        if step not in self._watched:
            return None
        return {where for call in self._calls if call.step == step for where in call.changes}

    def changed_last(self, step: str) -> bool:
        """Whether the last call of the step's action was seen to change anything."""
        calls = [call for call in self._calls if call.step == step and not call.undo]
        return bool(calls) and bool(calls[-1].changes)

    def did_again(self, step: str) -> bool:
        """Whether a call of the step's action was seen to change anything after its compensation had run."""
        calls = [call for call in self._calls if call.step == step]
        later = takewhile(lambda call: not call.undo, reversed(calls))
        return any(call.changes for call in later)

    def culprits(self, left: Sequence[Change]) -> tuple[str, ...]:
        """Return the steps whose compensation has not put these places right, as far as that can be said."""
        found = (self._culprit(change.where) for change in left)
        return tuple(dict.fromkeys(step for step in found if step is not None))

    def done_again(self, left: Sequence[Change]) -> tuple[str, ...]:
        """Return the steps whose action changed one of these places more than once."""
        did = Counter(
            (call.step, change.where)
            for call in self._calls
            for change in left
            if not call.undo and change.where in call.changes
        )
        return tuple(dict.fromkeys(step for (step, _), times in did.items() if times > 1))

    def _culprit(self, where: str) -> str | None:
        calls = [call for call in self._calls if where in call.changes]
        did = {call.step: call.changes[where] for call in calls if not call.undo}
        for undoing in calls:
            if not undoing.undo:
                continue
            undone, done = undoing.changes[where], did.get(undoing.step)
            if done is None or (_same(undone.before, done.after) and not _same(undone.after, done.before)):
                return undoing.step
        called = {call.step for call in self._calls if call.undo}
        put_right = {call.step for call in calls if call.undo}
        return next((step for step in did if step in called and step not in put_right), None)


def _same(one: Any, other: Any) -> bool:
    return one is other or repr(one) == repr(other)


def apart_from(changes: Iterable[Change], places: Iterable[str]) -> list[Change]:
    """Return the changes that are at none of the places, nor in or around one."""
    known = list(places)
    return [change for change in changes if not any(_overlap(change.where, place) for place in known)]


def _overlap(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")
