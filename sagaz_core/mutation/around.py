"""What mutants put around a function. It keeps nothing between two calls, where a run may be forked."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from sagaz_core.mutation.places import Place, differences, put, repeat
from sagaz_core.mutation.wrap import Call
from sagaz_core.saga.step import Operation

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from sagaz_core.prove.world import World


class MutantError(Exception):
    """What a mutant raises by itself."""


def instead(other: Operation, operation: Operation, context: Any, result: Any) -> Generator[Call, Any, Any]:
    """Call another one."""
    return (yield Call(other, context, result))


def nothing(operation: Operation, context: Any, result: Any) -> Generator[Call, Any, Any]:
    """Call nothing."""
    return
    yield  # which makes it a generator


def raising(operation: Operation, context: Any, result: Any) -> Generator[Call, Any, Any]:
    """Fail."""
    raise MutantError("this is what the control does")
    yield  # as above


def two_times(world: World | None, operation: Operation, context: Any, result: Any) -> Generator[Call, Any, Any]:
    """Call it, and have its effect again; without a world to do so, call it again."""
    if world is None:
        yield Call(operation, context, result)
        return (yield Call(operation, context, result))
    before = world.save()
    value = yield Call(operation, context, result)
    repeat(world, differences(before, world.save(), world.append_only))
    return value


def swallowed(world: World | None, operation: Operation, context: Any, result: Any) -> Generator[Call, Any, Any]:
    """Call it, take back what it did in the world, and say nothing of its errors."""
    before = world.save() if world is not None else {}
    value = None
    with contextlib.suppress(Exception):  # the user's, whatever it is: that is the mutant
        value = yield Call(operation, context, result)
    if world is not None:
        _put_back(world, differences(before, world.save(), world.append_only))
    return value


def all_but_one(world: World, index: int, operation: Operation, context: Any, result: Any) -> Generator[Call, Any, Any]:
    """Call it, and take back what it did to one of the places that it changed."""
    before = world.save()
    value = yield Call(operation, context, result)
    _put_back(world, differences(before, world.save(), world.append_only)[index : index + 1])
    return value


def _put_back(world: World, places: Sequence[Place]) -> None:
    states = world.save()
    for place in places:
        put(states, place, place.before)
    world.restore(states)


def again_each_time(
    world: World, places: Sequence[Place], operation: Operation, context: Any, result: Any
) -> Generator[Call, Any, Any]:
    """Call it; when it changes nothing, because that is done already, have the changes of these places again."""
    before = world.save()
    value = yield Call(operation, context, result)
    changed = {place.path for place in differences(before, world.save())}
    if not changed.intersection(place.path for place in places):
        repeat(world, places)
    return value


def needing(step: str, operation: Operation, context: Any, result: Any) -> Generator[Call, Any, Any]:
    """Call it only with the result of the step's action."""
    if result is None:
        raise MutantError(f"no result of {step!r}")
    return (yield Call(operation, context, result))


class _Moment:
    """Lets others go first, when it is awaited; a saga that is cancelled before that leaves no coroutine behind."""

    def __await__(self) -> Generator[Any, Any, None]:
        return asyncio.sleep(0).__await__()


_PAUSE = Operation(lambda context: _Moment())


def after_a_moment(operation: Operation, context: Any, result: Any) -> Generator[Call, Any, Any]:
    """Call it when everything else that is ready has begun."""
    yield Call(_PAUSE, context)
    return (yield Call(operation, context))


def _copied(context: dict[str, Any]) -> dict[str, Any]:
    # By the methods of dict: whoever watches what the user's function reads must not take this for it.
    made = type(context).__new__(type(context))
    dict.update(made, dict(dict.items(context)))
    vars(made).update(vars(context))
    return made


GONE = object()


def seeing(key: str, value: Any, operation: Operation, context: Any, result: Any) -> Generator[Call, Any, Any]:
    """Give the function a context of its own in which the key has another value, and keep what it writes there."""
    mine: dict[str, Any]
    real: dict[str, Any]
    if isinstance(context, dict):
        shown: Any = _copied(context)
        mine, real = shown, context
    else:  # a pydantic model
        shown = context.model_copy()
        mine, real = vars(shown), vars(context)
    if value is GONE:
        mine.pop(key, None)
    elif dict.__contains__(mine, key):
        mine[key] = value
    before = dict(dict.items(mine))
    try:
        return (yield Call(operation, shown, result))
    finally:
        real.update({name: now for name, now in dict.items(mine) if before.get(name, GONE) is not now})
        for name in before:
            if not dict.__contains__(mine, name):
                real.pop(name, None)
