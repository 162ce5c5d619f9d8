"""What the engine makes of a branch by running one operation, worked out once for all that it depends on.

It depends on what the operation can see (`Sight`) and on the script; how often it was tried before only shifts the
numbers of its attempts. To do it again is to fold its events into another state, as a resumed run does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sagaz_core.state import FOLD

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping, Sequence

    from sagaz_core.events import Event
    from sagaz_core.faults.plan import Fault
    from sagaz_core.prove.branch import Branch
    from sagaz_core.prove.effects import Effect
    from sagaz_core.prove.scripted import Late


class Before(NamedTuple):
    """What a transition begins with: where its events come, and how many attempts and late effects there were."""

    events: list[Event]
    attempts: int
    late: int


class Transition(NamedTuple):
    """What the engine made of a branch by running one operation with all its attempts: the events, and the rest.

    `attempts` were made before. `result` is what the engine's method returned; `died` is whether the process did.
    `alive` is whether the step's effect is there, `late` what of it is still to come, `hits` how many faults of the
    script happened, `struck` what goes on striking its compensation. `prefix` is the part until all of the script had
    struck, if another attempt came then: scripts that go on have it in common.
    """

    events: Sequence[Event]
    attempts: int
    result: Any
    died: bool
    void: bool
    hits: int
    world: int
    alive: bool
    late: tuple[Late, ...]
    struck: str | None
    last: Effect | None
    failed: Mapping[str, BaseException]
    exception: BaseException | None
    abort: Exception | None
    cancelled: asyncio.CancelledError | None
    prefix: Transition | None


def transition(
    at: Branch, name: str, before: Before, result: Any = None, died: bool = False, prefix: Transition | None = None
) -> Transition:
    """Return what was made of the branch since `before`."""
    return Transition(
        tuple(before.events),  # more will happen to this branch
        before.attempts,
        result,
        died,
        at.void,
        at.hits,
        at.world,
        name in at.alive,
        at.late[before.late :],
        at.struck.get(name),
        at.last,
        at.failed.copy(),
        at.exception,
        at.abort,
        at.cancelled,
        prefix,
    )


def transition_key(at: Branch, name: str, script: Sequence[Fault], place: int, undo: bool) -> tuple[Any, ...] | None:
    """Return all that a transition depends on, or nothing where that is not to be told.

    Of the script all is still to come from `place` on. How many attempts there were before only shifts their numbers.
    """
    effects = at.effects
    if at.entries is not None or not effects.keeps:
        return None
    if undo:
        operation = at.definition.steps[name].compensation
        assert operation is not None
        sight = at.sight("compensation", name, operation.takes_second)
        world = at.world if at.late else -1 - effects.worlds.key(at.world)  # as its effect is known
        what = name, script, place, at.struck.get(name), name in at.alive
        return *what, sight.context, sight.result, sight.undone, world
    if at.turning_back or at.late:
        return None
    sight = at.sight("action", name, False)
    results = at.results if at.model.linear else effects.stacks.unordered(at.results)
    return name, script, place, name in at.alive, sight.context, results, at.world


def repeat(known: Transition, at: Branch, name: str, *, undo: bool) -> None:
    """Do with the branch what was done with another one."""
    state = at.state
    attempts = state.undo_attempts if undo else state.attempts
    shift = attempts.get(name, 0) - known.attempts
    state.seq += len(known.events)
    for event in known.events:
        FOLD[type(event)](state, event)
    if shift:
        attempts[name] += shift
    at.void, at.hits, at.world, at.last = known.void, known.hits, known.world, known.last
    if known.alive is not (name in at.alive):
        at.alive = at.alive | {name} if known.alive else at.alive - {name}
    if known.late:
        at.late += known.late
    if known.struck is not None and name not in at.struck:
        at.struck = {**at.struck, name: known.struck}
    if known.failed:
        at.failed = dict(known.failed)
    if known.exception is not None:
        at.exception = known.exception
    if known.abort is not None:
        at.abort = known.abort
    if known.cancelled is not None:
        at.cancelled = known.cancelled
