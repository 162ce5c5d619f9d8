"""Answers about a saga's snapshots from a bucket: its head, and at the same time all that it says is needed."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from sagaz_core.errors import CorruptDataError
from sagaz_core.storage._checks import check_limit, check_moment, read_snapshot_cursor, snapshot_cursor
from sagaz_core.storage._rows import micros, micros_or_none
from sagaz_core.storage._s3_asking import PAGES_AT_ONCE, S3Asking
from sagaz_core.storage._s3_claims import unpacked_claim
from sagaz_core.storage._s3_head import Head
from sagaz_core.storage._s3_keys import data_folder, snapshot_key
from sagaz_core.storage._s3_objects import all_of
from sagaz_core.storage._s3_pages import Asked, Folded, may_have, surely_has
from sagaz_core.storage._s3_window import Found, Unreadable, Window
from sagaz_core.storage.base import Page
from sagaz_core.storage.snapshot_ids import named

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sagaz_core.storage._s3_asking import Raw
    from sagaz_core.storage._s3_claims import Claim
    from sagaz_core.storage.base import SagaSnapshot


class S3Snapshots(S3Asking):
    """What a store answers about the snapshots of one saga."""

    async def get_snapshot(self, snapshot_id: str) -> SagaSnapshot | None:
        """See `SnapshotStorage.get_snapshot`."""
        says = named(snapshot_id)
        if says is None:
            claim = await self._claim_of(snapshot_id)
        else:  # it is that saga's, if that has it, whoever claims it
            works: list[Any] = [self._head(says.saga_id), self._claim_of(snapshot_id)]
            head, claim = await all_of(works)
            snapshot = await self._answer(head, partial(self._got_by_name, snapshot_id, says.seq))
            if snapshot is not None:
                return snapshot
        if isinstance(claim, Unreadable):
            raise CorruptDataError(f"snapshot {snapshot_id!r} cannot be read: {claim.error}") from claim.error
        if claim is None or claim.snapshot_id != snapshot_id:
            return None
        keys = list(map(snapshot_key, claim.large))
        works = [self._head(claim.saga_id), *map(self._large, keys)]
        head, *read = await all_of([*works, *(self._ahead(claim.saga_id, name) for name in claim.pages)])
        large = {snapshot_key(snapshot_id): claim.own, **dict(zip(keys, read, strict=False))}
        pages = dict(zip(claim.pages, read[len(keys) :], strict=True))
        return await self._answer(head, partial(self._got, claim, large, pages))

    async def _got(self, claim: Claim, large: Mapping[str, Any], pages: Raw, head: Head) -> SagaSnapshot | None:
        window = Window(head)
        window.large.update(large)
        found = await self._found(window, claim, pages)
        if found is None or window.rows[found[0]].columns.expired(found[1], micros(self.clock())):
            return None
        return (await self._made(window, [found], pages))[0]

    async def _got_by_name(self, snapshot_id: str, seq: int, head: Head) -> SagaSnapshot | None:
        window = Window(head)
        found = await self._found_by_name(window, snapshot_id, seq)
        if found is None or window.rows[found[0]].columns.expired(found[1], micros(self.clock())):
            return None
        return (await self._made(window, [found]))[0]

    async def _claim_of(self, snapshot_id: str) -> Claim | Unreadable | None:
        try:
            found = await self._objects.get(snapshot_key(snapshot_id))
            return None if found is None else unpacked_claim(found[0])
        except CorruptDataError as error:
            return Unreadable(error)

    async def latest_snapshot(
        self,
        saga_id: str,
        *,
        step: str | None = None,
        phase: str | None = None,
        until: datetime | None = None,
        max_seq: int | None = None,
    ) -> SagaSnapshot | None:
        """See `SnapshotStorage.latest_snapshot`."""
        check_moment(until)
        asked = Asked(step, phase, micros_or_none(until), max_seq, micros(self.clock()))
        return await self._answer(await self._head(saga_id), partial(self._latest, asked))

    async def _latest(self, asked: Asked, head: Head) -> SagaSnapshot | None:
        window = Window(head)
        lines = head.snapshot_pages.lines
        slot = head.index.snapshots.latest(*asked)
        found = None if slot is None else (len(lines), slot)
        left = [at for at, page in enumerate(lines) if may_have(page, asked)]
        while found is None and left:
            some = [left.pop()]
            if left and not surely_has(lines[some[0]], asked):
                some.append(left.pop())
            await self._read_likely(window, some, asked)
            slots = ((at, window.rows[at].columns.latest(*asked)) for at in some)
            found = next(((at, slot) for at, slot in slots if slot is not None), None)
        if found is None and head.snapshot_pages.older:
            raise Folded
        return None if found is None else (await self._made(window, [found]))[0]

    async def list_snapshots(self, saga_id: str, *, limit: int = 100, cursor: str | None = None) -> Page:
        """See `SnapshotStorage.list_snapshots`."""
        check_limit(limit)
        place = read_snapshot_cursor(cursor)
        head = await self._head(saga_id, self._listed.head)
        return await self._answer(head, partial(self._list, place, limit))

    async def _list(self, place: tuple[int, str], limit: int, head: Head) -> Page:
        window = Window(head, self._listed.rows if self._listed.head is head else None)
        numbers, found = [head.snapshot_pages.at(place)], list[Found]()
        while numbers:
            await self._read(window, numbers)
            for at in numbers:
                slots = window.rows[at].columns.page(place, limit - len(found), micros(self.clock()))
                found += ((at, slot) for slot in slots)
                if len(found) > limit:
                    break
            numbers = _pages_for(head, numbers[-1] + 1, limit + 1 - len(found))
        page, more = await self._made(window, found[:limit]), len(found) > limit
        # Who asks for the next page is not sent the head again, nor the pages in which it begins.
        kept = {at: window.rows[at] for at, _ in found[limit - 1 :]}
        self._listed = Window(head, kept) if more else Window(Head(""))
        return Page(page, snapshot_cursor(page[-1]) if more else None)

    async def count_snapshots(self, saga_id: str) -> int:
        """See `SnapshotStorage.count_snapshots`."""
        return await self._answer(await self._head(saga_id), self._count)

    async def _count(self, head: Head) -> int:
        now = micros(self.clock())
        count = head.index.snapshots.served(now)
        some_expired = list[int]()
        for older in head.snapshot_pages.older:
            if older.first_end is not None and older.first_end < now:
                raise Folded
            count += older.length
        for at, page in enumerate(head.snapshot_pages.lines):
            if page.first_end is None or page.first_end >= now:
                count += page.length
            elif page.last_end is None or page.last_end >= now:
                some_expired.append(at)
        for start in range(0, len(some_expired), PAGES_AT_ONCE):
            window, numbers = Window(head), some_expired[start : start + PAGES_AT_ONCE]
            await self._read(window, numbers)
            count += sum(window.rows[at].columns.served(now) for at in numbers)
        return count

    # ---- reading

    async def _made(self, window: Window, some: Sequence[Found], read: Raw | None = None) -> list[SagaSnapshot]:
        """Return the snapshots with their bases; what is not there yet is read at once."""
        pages, keys = window.lacks(some)
        await self._read(window, pages, keys, read)
        if pages:
            await self._read(window, (), window.lacks(some)[1])
        needed = {one for found in some for one in (found, *window.bases(found))}
        return window.snapshots(some, await self._folder(window.head, map(window.entry, needed)))

    async def _ahead(self, saga_id: str, name: str) -> memoryview | None:
        """Return the bytes of what is probably a page, if it is there already."""
        try:
            found = await self._objects.get(f"{data_folder(saga_id)}/{name}")
        except CorruptDataError:
            return None  # if it is needed it is read again, and the error then says of what it is
        return None if found is None else found[0]


def _pages_for(head: Head, number: int, wanted: int) -> list[int]:
    """Return the pages from that number on which have so many snapshots, the head behind them if they have not."""
    lines, found = head.snapshot_pages.lines, list[int]()
    while wanted > 0 and number <= len(lines):
        found.append(number)
        wanted -= lines[number].length if number < len(lines) else 0
        number += 1
    return found
