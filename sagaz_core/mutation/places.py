"""The places of a world of fakes: which of them a call changed, and putting one of them right or wrong."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from numbers import Number
from typing import TYPE_CHECKING, Any, NamedTuple

from sagaz_core.prove.world import MISSING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from sagaz_core.prove.world import World

Path = tuple[Any, ...]
States = Mapping[str, Any]


class Place(NamedTuple):
    """One place that a call changed, with its values (`MISSING` when there was none)."""

    path: Path
    before: Any
    after: Any

    def __str__(self) -> str:
        return ".".join(map(str, self.path))


def differences(before: States, after: States, append_only: Collection[Path] = ()) -> list[Place]:
    """Return the places that differ between two states of the fakes; what is append-only is not looked at."""
    return list(_differences((), before, after, append_only))


def _differences(path: Path, before: Any, after: Any, append_only: Collection[Path]) -> Iterator[Place]:
    if path in append_only:
        return
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in [*before, *(key for key in after if key not in before)]:
            yield from _differences((*path, key), before.get(key, MISSING), after.get(key, MISSING), append_only)
    elif before is not after and not _equal(before, after):
        yield Place(path, before, after)


def put(states: dict[str, Any], place: Place, value: Any) -> None:
    """Set the place to a value in these states, or take it away. A place that is nowhere any more is left alone."""
    holder: Any = states
    for key in place.path[:-1]:
        holder = holder.get(key, MISSING) if isinstance(holder, Mapping) else MISSING
    if not isinstance(holder, MutableMapping):
        return
    if value is MISSING:
        holder.pop(place.path[-1], None)
    else:
        holder[place.path[-1]] = value


def value_at(states: States, place: Place) -> Any:
    """Return what is at the place in these states."""
    found: Any = states
    for key in place.path:
        found = found.get(key, MISSING) if isinstance(found, Mapping) else MISSING
    return found


def again(place: Place, now: Any) -> Any:
    """Return what `now` becomes when the change of the place happens once more; itself where that changes nothing."""
    before, after = place.before, place.after
    if _is_number(now) and type(before) is type(after) is type(now):
        return now + (after - before)
    if isinstance(now, list) and isinstance(before, list) and isinstance(after, list):
        return [*now, *after[len(before) :]] if after[: len(before)] == before else now
    return now


def _is_number(value: Any) -> bool:
    return isinstance(value, Number) and not isinstance(value, bool)


def repeatable(place: Place) -> bool:
    """Whether it can be told that the change of this place happened twice."""
    return not _equal(again(place, place.after), place.after)


def repeat(world: World, places: Collection[Place]) -> None:
    """Have the changes of these places happen once more in the world, as it is now."""
    states = world.save()
    for place in places:
        now = value_at(states, place)
        put(states, place, again(place, now))
    world.restore(states)


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:  # user data: a broken __eq__ is a difference
        return False
