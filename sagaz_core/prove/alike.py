"""Whether two values are the same, where a copy of one is not equal to it: an object of a class without `__eq__`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any


def alike(one: Any, other: Any) -> bool:
    """Say whether two values are equal, or are made of the same parts."""
    return _alike(one, other, set())


def parts_of(value: Any) -> Mapping[str, Any] | None:
    """Return the attributes of an object that does not say itself what it is equal to, or None for another value."""
    kind = type(value)
    own: object = kind.__eq__
    if isinstance(value, type) or (own is not object.__eq__ and not is_dataclass(kind)):
        return None
    slots = (name for base in kind.__mro__ for name in _names(vars(base).get("__slots__", ())))
    return {
        **{name: getattr(value, name) for name in slots if hasattr(value, name)},
        **getattr(value, "__dict__", {}),
    }


def _names(slots: Any) -> tuple[str, ...]:
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def _alike(one: Any, other: Any, seen: set[tuple[int, int]]) -> bool:
    if one is other or equal(one, other):
        return True
    if type(one) is not type(other):
        return False
    pair = (id(one), id(other))
    if pair in seen:
        return True  # it holds itself; what differs is found elsewhere
    seen.add(pair)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_alike(value, other[key], seen) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(_alike(a, b, seen) for a, b in zip(one, other, strict=True))
    parts, others = parts_of(one), parts_of(other)
    return parts is not None and others is not None and _alike(parts, others, seen)


def equal(one: Any, other: Any) -> bool:
    """Say whether two values say that they are equal."""
    try:
        return bool(one == other)
    except Exception:  # user data: a broken __eq__ is a difference
        return False
