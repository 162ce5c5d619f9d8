"""What user code looks at of the context that it is given.

A value that was read counts as a whole. What an extension in C reads of the dict behind its back is not seen; that is
found out by leaving out what was not seen to be read (see `Effects.check_unread`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sagaz_core.saga.context import SagaContext


class Looked:
    """What a call looked at. `touched` keys are those read or written; `everything`: at the context as a whole."""

    __slots__ = ("everything", "reads", "touched", "undone")

    def __init__(self) -> None:
        self.reads: set[str] = set()
        self.touched: set[str] = set()
        self.everything = False
        self.undone = False


class Undone(Mapping[str, Any]):
    """What the compensations returned; it notices that somebody looks."""

    def __init__(self, looked: Looked, results: Mapping[str, Any]) -> None:
        self._looked = looked
        self._results = results

    def __getitem__(self, key: str) -> Any:
        self._looked.undone = True
        return self._results[key]

    def __iter__(self) -> Iterator[str]:
        self._looked.undone = True
        return iter(self._results)

    def __len__(self) -> int:
        self._looked.undone = True
        return len(self._results)

    # What the mapping proxy of a run has beside.

    def __reversed__(self) -> Iterator[str]:
        return reversed(dict(self))

    def __or__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return {**self, **other} if isinstance(other, Mapping) else NotImplemented

    def __ror__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return {**other, **self} if isinstance(other, Mapping) else NotImplemented

    def copy(self) -> dict[str, Any]:
        """Return them as a dict of its own."""
        return dict(self)

    def __repr__(self) -> str:
        return f"mappingproxy({dict(self)!r})"


class WatchedContext(SagaContext):
    """A context that notes which keys are read and written, and whether it is looked at as a whole."""

    looked = Looked()  # of the class: one that the call makes itself shows nothing


def _reading(name: str) -> Any:
    method = getattr(dict, name)

    def read(self: WatchedContext, key: str, *default: Any) -> Any:
        self.looked.reads.add(key)
        return method(self, key, *default)

    return read


def _writing(name: str) -> Any:
    method = getattr(dict, name)

    def write(self: WatchedContext, key: str, *value: Any) -> None:
        self.looked.touched.add(key)
        method(self, key, *value)

    return write


def _updating(name: str) -> Any:
    method = getattr(dict, name)

    def update(self: WatchedContext, *others: Any, **more: Any) -> Any:
        given = dict(*others, **more)
        self.looked.touched.update(given)
        return method(self, given)

    return update


def _looking(name: str) -> Any:
    method = getattr(dict, name)

    def look(self: WatchedContext, *arguments: Any) -> Any:
        self.looked.everything = True
        return method(self, *arguments)

    return look


for _names, _watched in (
    ("__getitem__ get __contains__ pop setdefault", _reading),
    ("__setitem__ __delitem__", _writing),
    ("update __ior__", _updating),
    ("keys values items copy popitem clear", _looking),
    ("__iter__ __len__ __reversed__ __repr__ __eq__ __ne__ __or__ __ror__ __reduce_ex__", _looking),
):
    for _name in _names.split():
        setattr(WatchedContext, _name, _watched(_name))
