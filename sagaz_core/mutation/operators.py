"""The operators: each makes, of a definition and of what was seen of it, mutants that do one kind of thing wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from sagaz_core.mutation.around import (
    GONE,
    after_a_moment,
    again_each_time,
    all_but_one,
    instead,
    needing,
    nothing,
    raising,
    seeing,
    swallowed,
    two_times,
)
from sagaz_core.mutation.facts import Facts, native
from sagaz_core.mutation.mutant import Change, Mutant
from sagaz_core.mutation.places import Place, repeatable
from sagaz_core.mutation.wrap import around_action, around_compensation, with_steps
from sagaz_core.saga.definition import Definition

if TYPE_CHECKING:
    from sagaz_core.model import SagaModel
    from sagaz_core.mutation.wrap import Around
    from sagaz_core.saga.step import Step

Make = Callable[[Definition, Facts], Iterator[Mutant]]


# ---- the compensation


def _skip(definition: Definition, facts: Facts) -> Iterator[Mutant]:
    for step in _undone(definition):
        yield _undo_mutant("skip", step, "", f"the compensation of {step.name!r} does nothing", nothing)


def _twice(definition: Definition, facts: Facts) -> Iterator[Mutant]:
    for step in _undone(definition):
        if facts.world is not None and not _repeatable(step, facts, undo=True):
            continue  # what is gone is gone: it cannot go twice
        around = partial(two_times, facts.world)
        yield _undo_mutant("twice", step, "", f"the compensation of {step.name!r} has its effect twice", around)


def _wrong_step(definition: Definition, facts: Facts) -> Iterator[Mutant]:
    undone = list(_undone(definition))
    for index, step in enumerate(undone):
        if len(undone) > 1:
            other = undone[index - 1 if index else 1].name
            sentence = f"the compensation of {step.name!r} undoes {other!r} in its place"
            yield Mutant("wrong-step", step.name, other, sentence, partial(_mixing_up, step.name, other))


def _swallow(definition: Definition, facts: Facts) -> Iterator[Mutant]:
    for step in _undone(definition):
        around = partial(swallowed, facts.world)
        sentence = f"the compensation of {step.name!r} swallows the error that keeps it from having its effect"
        yield _undo_mutant("swallow", step, "", sentence, around)


def _drop_key(definition: Definition, facts: Facts) -> Iterator[Mutant]:
    for step in _undone(definition):
        for key in _keys(step, facts):
            around = partial(seeing, key, GONE)
            sentence = f"the compensation of {step.name!r} does not find {key!r} in the context"
            yield _undo_mutant("drop-key", step, key, sentence, around)


def _stale(definition: Definition, facts: Facts) -> Iterator[Mutant]:
    for step in _undone(definition):
        now = facts.after.get(step.name, {})
        for key in _keys(step, facts):
            for then, when in ((facts.began, "the saga began"), (facts.before.get(step.name, {}), "its action ran")):
                if key in then and key in now and then[key] != now[key]:
                    around = partial(seeing, key, then[key])
                    sentence = f"the compensation of {step.name!r} sees {key!r} as it was when {when}"
                    yield _undo_mutant("stale", step, key, sentence, around)
                    break


def _partial_undo(definition: Definition, facts: Facts) -> Iterator[Mutant]:
    if facts.world is None:
        return
    for step in _undone(definition):
        places = facts.places.get((step.name, True), [])
        for index, place in enumerate(places if len(places) > 1 else ()):
            around = partial(all_but_one, facts.world, index)
            sentence = f"the compensation of {step.name!r} does not put {place} right"
            yield _undo_mutant("partial-undo", step, str(index + 1), sentence, around)


def _undo_again(definition: Definition, facts: Facts) -> Iterator[Mutant]:
    for step in _undone(definition):
        places = _repeatable(step, facts, undo=True)
        if places and facts.world is not None:
            around = partial(again_each_time, facts.world, places)
            sentence = f"the compensation of {step.name!r} has its effect again when there is nothing left to undo"
            yield _undo_mutant("undo-not-idempotent", step, "", sentence, around)


def _needs_result(definition: Definition, facts: Facts) -> Iterator[Mutant]:
    for step in _undone(definition):
        if step.name not in facts.without_result:
            sentence = f"the compensation of {step.name!r} fails without the result of its action"
            yield _undo_mutant("needs-result", step, "", sentence, partial(needing, step.name))


# ---- the action, and the order


def _action_again(definition: Definition, facts: Facts) -> Iterator[Mutant]:
    for step in definition.steps.values():
        places = _repeatable(step, facts, undo=False)
        if places and facts.world is not None:
            around = partial(again_each_time, facts.world, places)
            sentence = f"the action of {step.name!r} has its effect again when it is delivered again"
            change = _changing(step.name, partial(around_action, around=around))
            yield Mutant("not-idempotent", step.name, "", sentence, change)


def _lose_edge(definition: Definition, facts: Facts) -> Iterator[Mutant]:
    for step in definition.model.steps:
        for dependency in dict.fromkeys(step.depends_on):
            model = _without_edge(definition.model, step.name, dependency)
            if dependency not in model.ancestors[step.name]:  # else another path says the same
                sentence = f"{step.name!r} does not wait for {dependency!r} any more"
                yield Mutant("lose-edge", step.name, dependency, sentence, partial(_losing, step.name, dependency))


OPERATORS: dict[str, Make] = {
    "skip": _skip,
    "twice": _twice,
    "wrong-step": _wrong_step,
    "swallow": _swallow,
    "drop-key": _drop_key,
    "stale": _stale,
    "partial-undo": _partial_undo,
    "not-idempotent": _action_again,
    "undo-not-idempotent": _undo_again,
    "lose-edge": _lose_edge,
    "needs-result": _needs_result,
}
NEED_WORLD = ("partial-undo", "not-idempotent", "undo-not-idempotent")
"""Operators that can only be told how to do wrong by a world of fakes."""


def mutants(saga: Any, facts: Facts | None = None) -> list[Mutant]:
    """Return the saga's mutants; `saga` is a `Saga` class or instance, or a `Definition`.

    Without the `facts` of a survey, those are missing that are made of a key or of a place of the world, and one may
    be among them that does what the saga does.
    """
    definition = saga if isinstance(saga, Definition) else native(saga).definition()
    seen = facts or Facts()
    return [mutant for make in OPERATORS.values() for mutant in make(definition, seen)]


def control(definition: Definition) -> Mutant:
    """Return the control: every compensation fails, which leaves the saga stuck whenever it turns back."""

    def change(given: Definition) -> Definition:
        return with_steps(given, {step.name: around_compensation(step, raising) for step in _undone(given)})

    first = next(iter(definition.steps))
    return Mutant("control", first, "", "every compensation fails", change)


def broken(definition: Definition) -> Mutant:
    """Return the control for tests, which may look at nothing but a run that completes: the first action fails."""
    first = definition.model.order[0]
    change = _changing(first, partial(around_action, around=raising))
    return Mutant("control", first, "", f"the action of {first!r} fails", change)


# ---- making


def _undone(definition: Definition) -> Iterator[Step]:
    return (step for step in definition.steps.values() if step.compensation is not None)


def _repeatable(step: Step, facts: Facts, *, undo: bool) -> list[Place]:
    return [place for place in facts.places.get((step.name, undo), ()) if repeatable(place)]


def _keys(step: Step, facts: Facts) -> list[str]:
    """The keys that the compensation looked at."""
    return list(facts.read.get(step.name, ()))


def _undo_mutant(operator: str, step: Step, detail: str, sentence: str, around: Around) -> Mutant:
    change = _changing(step.name, partial(around_compensation, around=around))
    return Mutant(operator, step.name, detail, sentence, change)


def _changing(name: str, how: Callable[[Step], Step]) -> Change:
    return lambda definition: with_steps(definition, {name: how(definition.steps[name])})


def _without_edge(model: SagaModel, step: str, dependency: str) -> SagaModel:
    steps = (
        replace(one, depends_on=tuple(name for name in one.depends_on if name != dependency))
        if one.name == step
        else one
        for one in model.steps
    )
    return replace(model, steps=tuple(steps))


def _mixing_up(step: str, other: str, definition: Definition) -> Definition:
    undo = definition.steps[other].compensation
    assert undo is not None
    wrong = partial(instead, undo)
    return with_steps(definition, {step: around_compensation(definition.steps[step], wrong)})


def _losing(step: str, dependency: str, definition: Definition) -> Definition:
    model = _without_edge(definition.model, step, dependency)
    # Both may start now. That the other one takes a moment shows that it is not waited for.
    slow = around_action(definition.steps[dependency], after_a_moment)
    return with_steps(definition, {dependency: slow}, model)
