"""The states that a world was seen in, each by a number, and the fakes put into any of them.

A state is kept as bytes, a fake at a time: encoding is the isolation, and what did not change is neither kept twice nor
put back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sagaz_core.errors import SagazError, UsageError
from sagaz_core.prove.world import not_what_it_was
from sagaz_core.storage.codec import decode, encode, importing_class

if TYPE_CHECKING:
    from sagaz_core.prove.world import Change, Reading, World


class NotForkableError(SagazError):
    """The saga, its context or its world cannot be copied; the message says what, and why."""


class LyingFakeError(NotForkableError):
    """A fake is not what it says; the message names it. What it shows is worth nothing."""


class Worlds:
    """Numbers for the states of a world of fakes. `current` is the one that the fakes are in.

    Two states that differ only in the order of keys, or in what is append-only, have the same `key`. Not `ordered`,
    keys have one order always: for a saga whose steps may run in several.
    """

    def __init__(self, world: World | None, *, ordered: bool = True) -> None:
        self.world = world
        self._ordered = ordered
        self._fakes = tuple(world.fakes) if world is not None else ()
        self._blobs: list[tuple[bytes, ...]] = []
        self._numbers: dict[tuple[bytes, ...], int] = {}
        self._keys: list[int] = []
        self._key_numbers: dict[tuple[bytes, ...], int] = {}
        self._whole_keys: dict[int, int] = {}
        self._whole_numbers: dict[tuple[bytes, ...], int] = {}
        self._proved: set[str] = set()
        self._changes: dict[tuple[int, int], tuple[Change, ...]] = {}
        self.current = -1
        self.current = self.look()

    def look(self) -> int:
        """Return the number of the state that the fakes are in now. Raises `NotForkableError`."""
        world = self.world
        states = [] if world is None else [(name, world.state_of(name)) for name in self._fakes]
        if not self._ordered:
            states = [(name, _ordered(state)) for name, state in states]
        found = tuple([_encoded(name, state) for name, state in states])
        number = self._numbers.get(found)
        if number is None:
            number = self._numbers[found] = len(self._blobs)
            self._blobs.append(found)
            self._keys.append(self._key_of(states))
        self.current = number
        return number

    def _key_of(self, states: list[tuple[str, Any]]) -> int:
        world = self.world
        if world is None:
            return 0
        parts = [encode(_ordered(world.without_append_only(name, state))) for name, state in states]
        return self._key_numbers.setdefault(tuple(parts), len(self._key_numbers))

    def key(self, number: int) -> int:
        """Return the number that all states share which are the same but for order and append-only data."""
        return self._keys[number]

    def whole_key(self, number: int) -> int:
        """Return the number that all states share which are the same but for order, with append-only data."""
        found = self._whole_keys.get(number)
        if found is None:
            parts = tuple([encode(_ordered(_decoded(blob))) for blob in self._blobs[number]])
            found = self._whole_keys[number] = self._whole_numbers.setdefault(parts, len(self._whole_numbers))
        return found

    def put(self, number: int) -> None:
        """Put the fakes into this state. Raises `NotForkableError` for a fake that does not take its own state."""
        if number == self.current or self.world is None:
            return
        now, wanted = self._blobs[self.current], self._blobs[number]
        for name, is_now, blob in zip(self._fakes, now, wanted, strict=True):
            if is_now == blob:
                continue
            try:
                self.world.put_back(name, _decoded(blob))
            except UsageError as error:
                raise LyingFakeError(str(error)) from error
            if name not in self._proved:
                self._prove(name, blob)
        self.current = number

    def _prove(self, name: str, blob: bytes) -> None:
        assert self.world is not None
        self._proved.add(name)
        got = _encoded(name, self.world.state_of(name))
        if got != blob and _ordered(_decoded(got)) != _ordered(_decoded(blob)):
            raise LyingFakeError(not_what_it_was(name))

    def reading(self, number: int) -> Reading:
        """Return the state as `World.read` gives it."""
        return {name: _decoded(blob) for name, blob in zip(self._fakes, self._blobs[number], strict=True)}

    def changes(self, before: int, after: int) -> tuple[Change, ...]:
        """Return where two states differ."""
        if self.world is None or self._keys[before] == self._keys[after]:
            return ()
        found = self._changes.get((before, after))
        if found is None:
            found = self.world.changes(self.reading(before), self.reading(after))
            self._changes[before, after] = found
        return found


def _encoded(name: str, state: Any) -> bytes:
    try:
        return encode(state, name)
    except SagazError as error:
        raise NotForkableError(f"the world cannot be copied: {error}") from error


def _decoded(blob: bytes) -> Any:
    return decode(blob, resolve=importing_class)


_NOT_ORDERED = frozenset({dict, list, tuple})


def _ordered(value: Any) -> Any:
    """Return it with the keys of its dicts in one order."""
    kind = type(value)
    if kind is dict:
        try:
            keys = sorted(value)
        except TypeError:  # of several types
            keys = sorted(value, key=lambda key: (type(key).__name__, repr(key)))
        return {key: v if type(v := value[key]) not in _NOT_ORDERED else _ordered(v) for key in keys}
    return kind(map(_ordered, value)) if kind is list or kind is tuple else value
