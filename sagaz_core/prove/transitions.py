"""What the engine makes of a branch by running one operation, worked out once for all that it depends on.

It depends on what the operation can see (`Sight`), on the script and on how often it was tried. To do it again is to
fold its events into another state, as a resumed run does.
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


class Transition(NamedTuple):
    """What the engine made of a branch by running one operation with all its attempts: the events, and the rest.

    `result` is what the engine's method returned; `died` is whether the process did. `alive`, whether the step's effect
    is there; `hits`, how many faults of the script happened; `struck`, what goes on striking its compensation.
    """

    events: Sequence[Event]
    result: Any
    died: bool
    void: bool
    hits: int
    world: int
    alive: bool
    struck: str | None
    last: Effect | None
    failed: Mapping[str, BaseException]
    exception: BaseException | None
    abort: Exception | None
    cancelled: asyncio.CancelledError | None


def transition(at: Branch, name: str, events: Sequence[Event], result: Any, died: bool) -> Transition:
    """Return what was made of the branch."""
    return Transition(
        tuple(events),  # more will happen to this branch
        result,
        died,
        at.void,
        at.hits,
        at.world,
        name in at.alive,
        at.struck.get(name),
        at.last,
        at.failed.copy(),
        at.exception,
        at.abort,
        at.cancelled,
    )


def transition_key(at: Branch, name: str, script: Sequence[Fault], place: int, undo: bool) -> tuple[Any, ...] | None:
    """Return all that a transition depends on, or nothing where that is not to be told.

    Of the script all is still to come from `place` on.
    """
    effects, state = at.effects, at.state
    if at.late or at.entries is not None or not effects.keeps or (script and script[-1].kind == "late"):
        return None
    if undo:
        operation = at.definition.steps[name].compensation
        assert operation is not None
        sight = at.sight("compensation", name, operation.takes_second)
        world = -1 - effects.worlds.key(at.world)
        what = name, script, place, state.undo_attempts.get(name, 0), at.struck.get(name), name in at.alive
        return *what, sight.context, sight.result, sight.undone, world
    if at.turning_back:
        return None
    sight = at.sight("action", name, False)
    results = at.results if at.model.linear else effects.stacks.unordered(at.results)
    return name, script, place, state.attempts.get(name, 0), name in at.alive, sight.context, results, at.world


def repeat(known: Transition, at: Branch, name: str) -> None:
    """Do with the branch what was done with another one."""
    state = at.state
    state.seq += len(known.events)
    for event in known.events:
        FOLD[type(event)](state, event)
    at.void, at.hits, at.world, at.last = known.void, known.hits, known.world, known.last
    if known.alive is not (name in at.alive):
        at.alive = at.alive | {name} if known.alive else at.alive - {name}
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
