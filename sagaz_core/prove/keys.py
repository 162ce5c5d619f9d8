"""What decides all that can follow at a branch, as keys: branches of one key are explored once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sagaz_core.prove.stacks import EMPTY

if TYPE_CHECKING:
    from sagaz_core.prove.branch import Branch
    from sagaz_core.prove.scripted import Scripted

NEVER_CALLED = frozenset({"undo-fail", "undo-hang"})
"""The kinds under which a compensation is not even called."""


def forward_key(at: Branch, left: int, ordered: bool) -> tuple[Any, ...]:
    """Return what decides all that can follow with this many faults left, before the saga turns back."""
    stacks = at.effects.stacks
    return (
        left,
        at.results if ordered else stacks.unordered(at.results),
        at.layers if ordered else stacks.unordered(at.layers),
        frozenset(at.state.ambiguous),
        at.alive,
        at.effects.worlds.key(at.world),
        tuple([sight for sight, _ in at.late]),
        at.fatal,
        at.live,
    )


def backward_key(at: Branch, left: int, ordered: bool) -> tuple[Any, ...]:
    """Return what decides all that can follow while undoing: "undone" and "never ran" are the same.

    What struck a compensation for good only matters for later when it may be called again; so does what its step
    returned, and what it put into the context where no compensation that is still to come reads it.
    """
    assert at.undoing is not None
    effects, late = at.effects, at.late
    stacks, worlds = effects.stacks, effects.worlds
    results, layers, ambiguous = at.results, at.layers, frozenset(at.state.ambiguous)
    again = left > 0 or at.model.on_compensation_failure == "retry_then_continue"
    todo, failed, again_now = at.undoing
    if failed:
        called = tuple([step for step in failed if at.struck.get(step) not in NEVER_CALLED]) if again else ()
        if todo or called:
            for step in failed:
                if step not in called or not _takes_result(at, step):
                    results = stacks.without(results, step)
            layers = visible(at, todo, called)
        else:
            results = layers = EMPTY  # no user code is called any more
        if not again or at.model.linear:
            ambiguous = ambiguous.difference(failed)
    struck: Any = tuple(at.struck)
    if again and struck:
        struck = tuple([(step, kind in NEVER_CALLED or kind) for step, kind in at.struck.items()])
    return (
        left,
        todo if ordered else frozenset(todo),
        failed if ordered else frozenset(failed),
        again_now,
        results if ordered else stacks.unordered(results),
        layers if ordered else stacks.unordered(layers),
        ambiguous,
        at.alive,
        worlds.whole_key(at.world) if late else worlds.key(at.world),
        tuple([sight for sight, _ in late]),
        struck,
        at.spoilt,
        at.refused,
        at.undone if effects.undone_read else None,
    )


def _takes_result(at: Branch, step: str) -> bool:
    undo = at.definition.steps[step].compensation
    return undo is not None and undo.takes_second


def visible(at: Scripted, steps: tuple[str, ...], more: tuple[str, ...] = ()) -> int:
    """Return the context's layers without those of failed steps that no compensation of these steps reads."""
    stack, effects = at.layers, at.effects
    reads = effects.read_by(steps)
    if more and reads is not None:
        read_too = effects.read_by(more)
        reads = None if read_too is None else reads | read_too
    for step in unread(at, reads):
        effects.relied_on_reads = True
        stack = effects.stacks.without(stack, step)
    return stack


def unread(at: Scripted, reads: frozenset[str] | None) -> list[str]:
    """Return the failed steps which left nothing in the context that is read."""
    if reads is None or at.undoing is None:
        return []
    layers, found = at.state.layers, []
    for step in at.undoing.failed:
        layer = layers.get(step)
        if layer is not None and reads.isdisjoint(layer.set) and (not layer.deleted or reads.isdisjoint(layer.deleted)):
            found.append(step)
    return found
