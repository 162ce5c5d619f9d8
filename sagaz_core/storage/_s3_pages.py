"""What a saga's head says of its pages, in some hundred bytes each: which of them a question has to be put to.

A page is an object with records of one kind that came one after the other. It is never changed: what is to change is
written under another name, and the head then says so.
"""

from __future__ import annotations

from bisect import bisect_right
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar
from zlib import crc32

from sagaz_core.storage._checks import LONG_AGO
from sagaz_core.storage._rows import SnapshotEntry, micros, micros_or_none
from sagaz_core.storage._s3_keys import SNAPSHOTS as CLAIMS
from sagaz_core.storage._s3_keys import data_folder, hashed, own_name
from sagaz_core.storage._s3_rows import OWN, Item, Place, is_apart

if TYPE_CHECKING:
    from collections.abc import Sequence


EVENTS, SNAPSHOTS = "e", "s"
"""The letters of kinds of pages, with which their names begin."""

_end = attrgetter("end")


class EventPage(NamedTuple):
    """Of a page of events: those from the end of the page before it, and before `end`, are in there.

    `first` is the lowest `seq`, `earliest` the earliest time, in microseconds.
    """

    name: str
    digest: bytes
    length: int
    end: Place
    first: int
    earliest: int


class Part(NamedTuple):
    """Some snapshots of a page, which begin with one whose data are in an object of its own: `name` says in which,
    and `claimed` whether that is the one of the snapshot's id.

    The part before the first such one has the name `b""`. `steps` has two bytes for each step's name. `base` is the
    lowest `seq` that is needed to read the one that it begins with; an earlier release wrote neither.
    """

    steps: bytes
    name: bytes = b""
    seq: int = 0
    moment: int = 0
    base: int | None = None
    claimed: bool = True

    def key(self, saga_id: str) -> str:
        """Return the key of the object."""
        return f"{CLAIMS if self.claimed else data_folder(saga_id)}/{self.name.hex()}"


class SnapshotPage(NamedTuple):
    """The same of a page of snapshots.

    `first_end` and `last_end` are the times at which the first and the last one expire, `None` is never. `base` is the
    lowest `seq` that is needed to read them. `phases` has two bytes for each phase.
    """

    name: str
    digest: bytes
    length: int
    end: Place
    first: int
    earliest: int
    first_end: int | None
    last_end: int | None
    base: int | None
    phases: bytes
    parts: tuple[Part, ...]


AnyPage = TypeVar("AnyPage", EventPage, SnapshotPage)


class Older(NamedTuple):
    """An object that has what is said of the first pages, when the head has no room for it; see `SnapshotPage`."""

    name: str
    digest: bytes
    length: int
    end: Place
    first_end: int | None = None


class Folded(Exception):  # noqa: N818 - it is what happened, and always handled
    """What is asked for may be in a page that only an `Older` object tells of."""


class Pages(NamedTuple, Generic[AnyPage]):
    """All pages of one kind in order. `number` is that of the next one.

    Those that are `older` come before the others. `unfolded` are objects that were read, and are not needed any more.
    """

    number: int = 0
    lines: tuple[AnyPage, ...] = ()
    older: tuple[Older, ...] = ()
    unfolded: tuple[str, ...] = ()

    def at(self, place: Place) -> int:
        """Return which page has what is at the place; the number of pages stands for the head. Raises `Folded`."""
        if self.older and place < self.older[-1].end:
            raise Folded
        return bisect_right(self.lines, place, key=_end)

    def all(self) -> tuple[AnyPage, ...]:
        """Return all of them. Raises `Folded`."""
        if self.older:
            raise Folded
        return self.lines

    @property
    def length(self) -> int:
        """How many records they have."""
        return sum(older.length for older in self.older) + sum(page.length for page in self.lines)


class Asked(NamedTuple):
    """What `SnapshotStorage.latest_snapshot` was asked; times are in microseconds."""

    step: str | None
    phase: str | None
    until: int | None
    max_seq: int | None
    now: int


def may_have(page: SnapshotPage, asked: Asked) -> bool:
    """Whether what was asked for may be in the page."""
    return (
        (asked.max_seq is None or page.first <= asked.max_seq)
        and (asked.until is None or page.earliest <= asked.until)
        and (page.last_end is None or page.last_end >= asked.now)
        and (asked.phase is None or _has(page.phases, asked.phase))
        and (asked.step is None or any(_has(part.steps, asked.step) for part in page.parts))
    )


def surely_has(page: SnapshotPage, asked: Asked) -> bool:
    """Whether one that may be there is there."""
    both = asked.until is not None and asked.max_seq is not None and page.end[0] > asked.max_seq
    some_expired = page.first_end is not None and page.first_end < asked.now
    return asked.step is None and asked.phase is None and not both and not some_expired


def likely_large(page: SnapshotPage, asked: Asked) -> list[Part]:
    """Return the parts with the large data, most likely, of what was asked for, and of what it is based on."""
    some = [
        part
        for part in page.parts
        if (asked.step is None or _has(part.steps, asked.step))
        and (asked.until is None or part.moment <= asked.until)
        and (asked.max_seq is None or part.seq <= asked.max_seq)
    ]
    some = [part for part in (some[-1:] if asked.step is None else some[-2:]) if part.name]
    spans = [(part.seq if part.base is None else part.base, part.seq) for part in some]
    return [part for part in page.parts if part.name and any(first <= part.seq <= last for first, last in spans)]


def large_since(page: SnapshotPage, seq: int) -> list[Part]:
    """Return the parts with large data of snapshots that are not below that `seq`."""
    return [part for part in page.parts if part.name and part.seq >= seq]


def _has(hashes: bytes, text: str) -> bool:
    wanted = _short(text)
    return any(hashes[at : at + 2] == wanted for at in range(0, len(hashes), 2))


def _short(text: str) -> bytes:
    return (crc32(text.encode("utf-8", "surrogatepass")) & 0xFFFF).to_bytes(2, "big")


# ---- making them


def event_page(name: str, digest: bytes, some: Sequence[Item], end: Place) -> EventPage:
    """Return what is to be said of a page of these events."""
    return EventPage(name, digest, len(some), end, some[0].entry.seq, min(micros(one.entry.at) for one in some))


def snapshot_page(name: str, digest: bytes, some: Sequence[Item], end: Place) -> SnapshotPage:
    """Return what is to be said of a page of these snapshots."""
    found: list[SnapshotEntry] = [one.entry for one in some]
    ends = [micros_or_none(entry.retention_until) for entry in found]
    return SnapshotPage(
        *(name, digest, len(found), end, found[0].seq, min(micros(entry.created_at) for entry in found)),
        min((at for at in ends if at is not None), default=None),
        None if None in ends else max(at for at in ends if at is not None),
        min((e.base_seq for e in found if e.base_seq is not None and e.retention_until != LONG_AGO), default=None),
        b"".join(sorted({_short(entry.phase) for entry in found})),
        tuple(_parts(found)),
    )


def _parts(found: Sequence[SnapshotEntry]) -> list[Part]:
    parts, steps = list[Part](), set[bytes]()
    begun = Part(b"")
    for entry in found:
        if is_apart(entry):
            if steps:
                parts.append(begun._replace(steps=b"".join(sorted(steps))))
            own, base = entry.place == OWN, entry.seq if entry.base_seq is None else entry.base_seq
            name = own_name(entry.snapshot_id, entry.digest) if own else hashed(entry.snapshot_id)
            begun = Part(b"", bytes.fromhex(name), entry.seq, micros(entry.created_at), base, not own)
            steps = set()
        steps.add(_short(entry.step_name))
    return [*parts, begun._replace(steps=b"".join(sorted(steps)))]


# ---- as plain values


def pages_row(pages: Pages[Any]) -> list[Any]:
    """Return the pages as plain values."""
    return [pages.number, [line_row(page) for page in pages.lines], [line_row(older) for older in pages.older]]


def line_row(page: EventPage | SnapshotPage | Older) -> list[Any]:
    """Return what is said of the page as plain values."""
    row: list[Any] = [*page[:3], *page.end, *page[4:]]
    if isinstance(page, SnapshotPage):
        row[-1] = [[part.steps] if not part.name else list(part) for part in page.parts]
    return row


def pages_from_row(kind: str, row: list[Any]) -> Pages[Any]:
    """Do the inverse of `pages_row`."""
    number, lines, older = row
    return Pages(number, tuple(line_from_row(kind, line) for line in lines), tuple(map(_older, older)))


def line_from_row(kind: str, row: list[Any]) -> Any:
    """Do the inverse of `line_row` for a page of that kind."""
    name, digest, length, seq, snapshot_id, *rest = row
    if kind == EVENTS:
        return EventPage(name, digest, length, (seq, snapshot_id), *rest)
    rest[-1] = tuple(Part(*part) for part in rest[-1])
    return SnapshotPage(name, digest, length, (seq, snapshot_id), *rest)


def _older(row: list[Any]) -> Older:
    name, digest, length, seq, snapshot_id, *rest = row
    return Older(name, digest, length, (seq, snapshot_id), *rest)
