"""The outside that a saga acts on, as far as the user lets us see it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Any, NamedTuple
from uuid import UUID

from sagaz_core.errors import SagazError, UsageError
from sagaz_core.prove.alike import alike, equal, parts_of

Reading = dict[str, Any]


class Change(NamedTuple):
    """One place of the world that differs: its probe and path, and the values (`MISSING` when there was none)."""

    where: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.where}: {_short(self.before)} -> {_short(self.after)}"


class _Missing:
    def __repr__(self) -> str:
        return "(nothing)"


ATOMS = frozenset(
    {str, int, float, bool, bytes, type(None), Decimal, UUID, datetime, date, time, timedelta, complex, frozenset}
)
"""Types whose values are never copied: nothing in them can change."""

MISSING = _Missing()

_DEEPEST = 20
"""How many names a place has at most, below which objects are not looked into."""


class AppendOnly(frozenset[tuple[str, ...]]):
    """The paths of what may grow, among them those that match a pattern."""

    _patterns: tuple[str, ...]

    def __new__(cls, paths: Iterable[tuple[str, ...]], patterns: tuple[str, ...] = ()) -> AppendOnly:
        made = super().__new__(cls, paths)
        made._patterns = patterns
        return made

    def __contains__(self, path: object) -> bool:
        if super().__contains__(path):
            return True
        where = ".".join(map(str, path)) if isinstance(path, tuple) else ""
        return any(fnmatchcase(where, pattern) for pattern in self._patterns)


@dataclass(frozen=True, slots=True)
class _Probe:
    read: Callable[[], Any]
    append_only: bool


class World:
    """What is compared before and after a run. Empty, it is no witness, and the ledger alone judges.

    `probe` reads something of the real outside; `fake` registers an object of the test's own, whose state can also be
    put back, so that each run begins in the same world.
    """

    def __init__(self) -> None:
        self._probes: dict[str, _Probe] = {}
        self._fakes: dict[str, Any] = {}
        self._append_only: dict[str, frozenset[str]] = {}
        self._growing: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self._probes or self._fakes)

    @property
    def restorable(self) -> bool:
        """Whether everything in it can be put back."""
        return not self._probes and bool(self._fakes)

    @property
    def append_only(self) -> AppendOnly:
        """What may grow: the probes by their names, and the fakes' attributes with the fake's name before them."""
        probes = {(name,) for name, probe in self._probes.items() if probe.append_only}
        return AppendOnly(
            probes | {(name, key) for name, keys in self._append_only.items() for key in keys}, self._growing
        )

    def probe(self, name: str, read: Callable[[], Any], *, append_only: bool = False) -> None:
        """Compare what `read()` returns (plain data; it may be async). `append_only` data, such as an audit log, may
        grow: only what was there before is compared.
        """
        self._check_new(name)
        self._probes[name] = _Probe(read, append_only)

    def fake(self, fake: Any, name: str | None = None, *, append_only: Iterable[str] = ()) -> Any:
        """Register a fake and return it. Its state is what its `snapshot()` returns and `restore(state)` takes, or else
        its attributes, or its items if it is a dict, list or set. The attributes (or keys) named in `append_only` may
        grow.
        """
        label = name or type(fake).__name__
        self._check_new(label)
        self._fakes[label] = fake
        self._append_only[label] = frozenset(append_only)
        return fake

    def may_grow(self, *patterns: str) -> None:
        """Declare as append-only the places that match one of the patterns, as a change shows them: `aws.sqs.mail/*`.

        What is new there is no change, and of what was there before only what is gone or replaced. Raises `UsageError`
        for a pattern that begins with no name of a probe or fake.
        """
        names = (*self._probes, *self._fakes)
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern.split(".")[0]) for name in names):
                known = ", ".join(map(repr, names)) or "nothing yet"
                raise UsageError(f"may_grow({pattern!r}) begins with no name of the world, which has {known}")
        self._growing += patterns

    def _check_new(self, name: str) -> None:
        if name in self._probes or name in self._fakes:
            raise UsageError(f"the world has a probe or fake named {name!r} already: give this one another name")

    async def read(self) -> Reading:
        """Return what every probe and fake shows now, copied."""
        reading: Reading = {}
        for name, probe in self._probes.items():
            try:
                value = probe.read()
                value = await value if inspect.isawaitable(value) else value
                reading[name] = _copied(value)
            except SagazError:
                raise
            except Exception as error:  # the user's code
                raise UsageError(
                    f"the probe {name!r} cannot be read ({type(error).__name__}: {error}): let it return plain data"
                ) from error
        for name, fake in self._fakes.items():
            reading[name] = _state_of(name, fake)
        return reading

    def save(self) -> dict[str, Any]:
        """Return the state of all fakes, copied."""
        return {name: _state_of(name, fake) for name, fake in self._fakes.items()}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Put the fakes' states back to what `save` returned."""
        for name, state in saved.items():
            self.put_back(name, _copied(state))

    @property
    def probes(self) -> tuple[str, ...]:
        """The names of the probes."""
        return tuple(self._probes)

    @property
    def fakes(self) -> tuple[str, ...]:
        """The names of the fakes."""
        return tuple(self._fakes)

    def has(self, thing: Any) -> bool:
        """Whether it is one of the fakes."""
        return any(fake is thing for fake in self._fakes.values())

    def state_of(self, name: str) -> Any:
        """Return the state of one fake, not copied."""
        return _state_now(self._fakes[name])

    def put_back(self, name: str, state: Any) -> None:
        """Put one fake into a state, which becomes the fake's own. Raises `UsageError`."""
        try:
            _put_back(self._fakes[name], state)
        except Exception as error:  # the user's restore()
            raise UsageError(
                f"the fake {name!r} cannot be put back ({type(error).__name__}: {error}): let restore(state) take what "
                f"snapshot() gives"
            ) from error

    def with_snapshot(self) -> dict[str, Any]:
        """Return the fakes that say themselves what their state is."""
        return {name: fake for name, fake in self._fakes.items() if _says_its_state(fake)}

    def not_put_back(self, saved: Mapping[str, Any]) -> str:
        """Say which fake is not in the state that was just put back, or return `""`."""
        where = next((change.where for change in self.changes(dict(saved), self.save())), "").split(".")[0]
        return where and not_what_it_was(where)

    def without_append_only(self, name: str, state: Any) -> Any:
        """Return a fake's state without what may grow."""
        grown = self._append_only.get(name)
        if grown and isinstance(state, Mapping):
            state = {key: value for key, value in state.items() if key not in grown}
        return _without(name, state, self._growing) if self._growing else state

    def changes(self, before: Reading, after: Reading) -> tuple[Change, ...]:
        """Return where two readings differ."""
        found: list[Change] = []
        for name, value in before.items():
            probe = self._probes.get(name)
            now = after[name]
            if probe is not None and probe.append_only:
                now = _only_what_was(value, now)
            for key in self._append_only.get(name, ()):
                if isinstance(now, Mapping) and key in now and key in value:
                    now = {**now, key: _only_what_was(value[key], now[key])}
            _compare(name, value, now, found)
        return tuple(change for change in found if not (self._growing and self._has_grown(change)))

    def _has_grown(self, change: Change) -> bool:
        if not any(fnmatchcase(change.where, pattern) for pattern in self._growing):
            return False
        return change.before is MISSING or alike(change.before, _only_what_was(change.before, change.after))


def as_world(given: Any) -> World:
    """Return what was given as a world. Raises `UsageError` if it is none."""
    if isinstance(given, World):
        return given
    raise UsageError(
        f"what was given as the world is of type {type(given).__name__!r}: give a World, and register fakes in it by "
        f"world.fake(…)"
    )


def _state_of(name: str, fake: Any) -> Any:
    try:
        return _copied(_state_now(fake))
    except Exception as error:  # what is in it is the user's
        advice = (
            "let snapshot() return plain data" if _says_its_state(fake) else "give it snapshot() and restore(state)"
        )
        raise UsageError(f"the fake {name!r} cannot be copied ({type(error).__name__}: {error}): {advice}") from error


def not_what_it_was(name: str) -> str:
    """Say that a fake does not take its own state."""
    return (
        f"the fake {name!r} is not what it was after its own state was put back: let restore(state) take what "
        f"snapshot() gives"
    )


def _copied(value: Any) -> Any:
    """Return a deep copy. Most of what fakes hold is plain, and copied far faster than `copy.deepcopy` does it."""
    try:
        return _copied_plain(value, set())
    except _NotPlainError:
        return copy.deepcopy(value)


def plain_copy(value: Any) -> Any:
    """Return a copy of plain data, and `None` of anything else."""
    try:
        return _copied_plain(value, set())
    except _NotPlainError:
        return None


class _NotPlainError(Exception):
    """There is something in the value that is not plain data, or that is in it twice."""


def _copied_plain(value: Any, seen: set[int]) -> Any:
    kind = type(value)
    if kind in ATOMS:
        return value
    if id(value) in seen:
        raise _NotPlainError
    seen.add(id(value))
    if kind is dict and ATOMS.issuperset(map(type, value)):
        return {key: one if type(one) in ATOMS else _copied_plain(one, seen) for key, one in value.items()}
    if kind is list:
        return [one if type(one) in ATOMS else _copied_plain(one, seen) for one in value]
    if kind is set and ATOMS.issuperset(map(type, value)):
        return value.copy()
    raise _NotPlainError


def _says_its_state(fake: Any) -> bool:
    return callable(getattr(fake, "snapshot", None)) and callable(getattr(fake, "restore", None))


def _state_now(fake: Any) -> Any:
    if _says_its_state(fake):
        return fake.snapshot()
    return fake if isinstance(fake, (dict, list, set)) else vars(fake)


def _put_back(fake: Any, state: Any) -> None:
    restore = getattr(fake, "restore", None)
    if callable(restore):
        restore(state)
    elif isinstance(fake, (dict, set)):
        fake.clear()
        fake.update(state)
    elif isinstance(fake, list):
        fake[:] = state
    else:
        vars(fake).clear()
        vars(fake).update(state)


def _without(where: str, state: Any, patterns: tuple[str, ...]) -> Any:
    """Return a state without the places that match."""
    if not isinstance(state, Mapping):
        return state
    return {
        key: _without(f"{where}.{key}", value, patterns)
        for key, value in state.items()
        if not any(fnmatchcase(f"{where}.{key}", pattern) for pattern in patterns)
    }


def _only_what_was(before: Any, now: Any) -> Any:
    if isinstance(before, Sequence) and isinstance(now, Sequence):
        return now[: len(before)]
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        return {key: value for key, value in now.items() if key in before}
    if isinstance(before, (set, frozenset)) and isinstance(now, (set, frozenset)):
        return now & before
    if isinstance(before, (int, float)) and isinstance(now, (int, float)):
        return min(before, now)
    return now


def _compare(where: str, before: Any, after: Any, found: list[Change]) -> None:
    if before is after or (type(before) is dict and type(after) is dict and equal(before, after)):
        return
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key, value in before.items():
            now = after.get(key, MISSING)
            if now is value or (type(now) is type(value) and type(value) in ATOMS and now == value):
                continue  # as almost everything is, wherever two worlds are compared
            _compare(f"{where}.{key}", value, now, found)
        for key in after:
            if key not in before:
                _compare(f"{where}.{key}", MISSING, after[key], found)
    elif type(before) in ATOMS or type(after) in ATOMS or before is MISSING or after is MISSING:
        if not equal(before, after):
            found.append(Change(where, before, after))
    elif not alike(before, after):
        one, other = parts_of(before), parts_of(after)
        if type(before) is type(after) and one and other and where.count(".") < _DEEPEST:
            _compare(where, one, other, found)
        else:
            found.append(Change(where, before, after))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
