"""Reading what a head names, and answering while others write: it may just have been replaced."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from sagaz_core.errors import CorruptDataError, StoreUnavailableError
from sagaz_core.storage._rows import digest
from sagaz_core.storage._s3_claims import unpacked_claim
from sagaz_core.storage._s3_core import S3Core
from sagaz_core.storage._s3_folding import unfolded
from sagaz_core.storage._s3_head import Gone
from sagaz_core.storage._s3_keys import SNAPSHOTS as CLAIMS
from sagaz_core.storage._s3_keys import data_folder
from sagaz_core.storage._s3_objects import all_of
from sagaz_core.storage._s3_pages import (
    EVENTS,
    SNAPSHOTS,
    Asked,
    EventPage,
    Folded,
    SnapshotPage,
    large_since,
    likely_large,
)
from sagaz_core.storage._s3_rows import EventRows, SnapshotRows, event_rows, snapshot_rows
from sagaz_core.storage._s3_window import Unreadable, Window

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from sagaz_core.storage._s3_claims import Claim
    from sagaz_core.storage._s3_head import Head
    from sagaz_core.storage._s3_rows import Entry
    from sagaz_core.storage._s3_window import Found

    Raw = Mapping[str, memoryview | None]

Answer = TypeVar("Answer")

TRIES = 50
PAGES_AT_ONCE = 8


class S3Asking(S3Core):
    """What heads name, and answers that are of one head as a whole."""

    async def _answer(self, head: Head, ask: Callable[[Head], Awaitable[Answer]]) -> Answer:
        """Return what is answered from the head, or from a newer one."""
        for _ in range(TRIES):
            try:
                return await ask(head)
            except (Folded, Gone) as reason:
                head = await self._again(head, reason)
        raise self._too_many(head.saga_id)

    async def _again(self, head: Head, reason: Folded | Gone) -> Head:
        """Return the head to ask again: a newer one, or the same with all that is said of its pages."""
        if isinstance(reason, Folded):
            try:
                await self._unfold(head)
            except Gone as gone:
                reason = gone
            else:
                return head
        return await self._newer(head, reason)

    async def _unfold(self, head: Head) -> None:
        """Have in the head all that is said of its pages. Raises `CorruptDataError` and `Gone`."""
        folder = data_folder(head.saga_id)
        names = [older.name for older in (*head.event_pages.older, *head.snapshot_pages.older)]
        try:
            found = await all_of([self._objects.get(f"{folder}/{name}") for name in names])
        except CorruptDataError as error:
            raise _folded_away(head, error) from error
        bodies = dict[str, memoryview]()
        for older, one in zip((*head.event_pages.older, *head.snapshot_pages.older), found, strict=True):
            if one is None or digest(one[0]) != older.digest:
                raise Gone(_folded_away(head, "what is said of them is gone: restore it"))
            bodies[older.name] = one[0]
        events, snapshots = head.event_pages, head.snapshot_pages
        try:
            head.event_pages = unfolded(EVENTS, events, [bodies[older.name] for older in events.older])
            head.snapshot_pages = unfolded(SNAPSHOTS, snapshots, [bodies[older.name] for older in snapshots.older])
        except CorruptDataError as error:
            raise _folded_away(head, error) from error
        if self._listed.head is head:
            self._listed = Window(head)  # its pages have other numbers now

    async def _newer(self, head: Head, gone: Gone) -> Head:
        """Return the head that there is now. Raises the error when it is still the same."""
        newer = await self._head(head.saga_id, head)
        if newer is head:
            raise gone.error
        return newer

    def _too_many(self, saga_id: str) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"the store {self._objects.shown} has too many writers of saga {saga_id!r} at once"
        )

    # ---- snapshots

    async def _found(self, window: Window, claim: Claim, read: Raw | None = None) -> Found | None:
        """Return where the snapshot is. Where its claim does not say so, or wrongly, all pages are looked at."""
        pages = window.head.snapshot_pages
        last = len(pages.lines)
        slot = window.rows[last].columns.find(claim.snapshot_id)
        if slot is not None:
            return last, slot
        at = last if claim.seq is None else pages.at((claim.seq, claim.snapshot_id))
        likely = [at] if at < last else []
        found = await self._found_in(window, claim, likely, read)
        others = [at for at in reversed(range(len(pages.all()))) if at not in likely] if found is None else []
        for start in range(0, len(others), PAGES_AT_ONCE):
            if found is not None:
                break
            found = await self._found_in(window, claim, others[start : start + PAGES_AT_ONCE], read)
        return found

    async def _found_in(self, window: Window, claim: Claim, numbers: Sequence[int], read: Raw | None) -> Found | None:
        await self._read(window, numbers, (), read)
        slots = ((at, window.rows[at].columns.find(claim.snapshot_id)) for at in numbers)
        found = next(((at, slot) for at, slot in slots if slot is not None), None)
        if found is None:
            for at in numbers:
                window.rows.pop(at)
        return found

    async def _found_by_name(self, window: Window, snapshot_id: str, seq: int) -> Found | None:
        """Return where the saga's snapshot is that is of the `seq` which its id names. What it needs is read, too."""
        pages = window.head.snapshot_pages
        at = pages.at((seq, snapshot_id))
        if at < len(pages.lines):
            await self._read_likely(window, [at], Asked(None, None, None, seq, 0))
        slot = window.rows[at].columns.find(snapshot_id)
        return None if slot is None else (at, slot)

    async def _read_likely(self, window: Window, numbers: Sequence[int], asked: Asked) -> None:
        """Have these pages in the window, and what those of their snapshots most likely need that are asked for."""
        lines = window.head.snapshot_pages.lines
        parts = [part for at in numbers for part in likely_large(lines[at], asked)]
        base, before = lines[numbers[0]].base, range(0)
        if base is not None:
            before = window.pages(numbers[0], base)[-1:]
            parts += (part for at in before for part in large_since(lines[at], base))
        await self._read(window, [*numbers, *before], [part.key(window.head.saga_id) for part in parts])

    async def _read(
        self, window: Window, pages: Iterable[int], keys: Iterable[str] = (), read: Raw | None = None
    ) -> None:
        """Have pages and large data in the window. What was `read` ahead of its pages is not read again."""
        head = window.head
        numbers = sorted({at for at in pages if at not in window.rows})
        names = [key for key in dict.fromkeys(keys) if key not in window.large]
        works: list[Any] = [self._snapshot_rows(head, head.snapshot_pages.lines[at], read) for at in numbers]
        found = await all_of([*works, *map(self._large, names)])
        window.rows.update(zip(numbers, found, strict=False))
        window.large.update(zip(names, found[len(numbers) :], strict=True))

    async def _large(self, key: str) -> bytes | Unreadable | None:
        """Return the data that are in a snapshot's own object, if there are any."""
        try:
            found = await self._objects.get(key)
            if found is None:
                return None
            return unpacked_claim(found[0]).own if key.startswith(CLAIMS) else bytes(found[0])
        except CorruptDataError as error:
            return Unreadable(error)

    # ---- pages

    async def _event_rows(self, head: Head, page: EventPage) -> EventRows:
        rows: EventRows = _read(event_rows, head, page, await self._page(head, page))
        return rows

    async def _snapshot_rows(self, head: Head, page: SnapshotPage, read: Raw | None = None) -> SnapshotRows:
        """Return the page's snapshots. What was `read` ahead by its name is not read again, if it is the page."""
        data = read.get(page.name) if read is not None else None
        if data is None or digest(data) != page.digest:
            data = await self._page(head, page)
        rows: SnapshotRows = _read(snapshot_rows, head, page, data)
        return rows

    async def _page(self, head: Head, page: EventPage | SnapshotPage) -> memoryview:
        """Return the page's bytes. Raises `CorruptDataError` and `Gone`."""
        try:
            found = await self._objects.get(f"{data_folder(head.saga_id)}/{page.name}")
        except CorruptDataError as error:
            raise _damaged(head, page, error) from error
        if found is None:
            raise Gone(_damaged(head, page, "their page is gone: restore it"))
        if digest(found[0]) != page.digest:
            raise Gone(_damaged(head, page, "their page is damaged, another one is in its place: restore it"))
        return found[0]

    async def _folder(self, head: Head, entries: Iterable[Entry]) -> dict[str, memoryview]:
        """Return the objects of the saga that hold the entries' data, by name."""
        names = sorted({entry.place[0] for entry in entries if not isinstance(entry.place, int)})
        try:
            found = await all_of([self._objects.get(f"{data_folder(head.saga_id)}/{name}") for name in names])
        except CorruptDataError as error:
            raise CorruptDataError(f"saga {head.saga_id!r} cannot be read as a whole: {error}") from error
        read = {name: one[0] for name, one in zip(names, found, strict=True) if one is not None}
        if len(read) < len(names):
            raise Gone(CorruptDataError(f"saga {head.saga_id!r} is damaged: objects with data of it are gone"))
        return read


def _read(rows: Callable[[memoryview], Any], head: Head, page: EventPage | SnapshotPage, data: memoryview) -> Any:
    try:
        return rows(data)
    except CorruptDataError as error:
        raise _damaged(head, page, error) from error


def _folded_away(head: Head, why: object) -> CorruptDataError:
    return CorruptDataError(f"the first records of saga {head.saga_id!r} cannot be read, the last ones can: {why}")


def _damaged(head: Head, page: EventPage | SnapshotPage, why: object) -> CorruptDataError:
    kind = "events" if isinstance(page, EventPage) else "snapshots"
    return CorruptDataError(
        f"{page.length} {kind} of saga {head.saga_id!r} from {page.first} on cannot be read, the others can: {why}"
    )
