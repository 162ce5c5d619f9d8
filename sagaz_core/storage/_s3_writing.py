"""Writing to a bucket: objects that nothing belongs to yet, and then the head, if it is still the one that was read."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sagaz_core.clock import new_id
from sagaz_core.errors import (
    CodecError,
    CorruptDataError,
    DuplicateSagaError,
    StorageError,
    StoreUnavailableError,
    UsageError,
)
from sagaz_core.storage._checks import check_batch, contested
from sagaz_core.storage._network import says_nothing
from sagaz_core.storage._rows import summary_from_row, summary_row
from sagaz_core.storage._s3_asking import TRIES
from sagaz_core.storage._s3_changes import changed
from sagaz_core.storage._s3_claiming import S3Claiming
from sagaz_core.storage._s3_claims import Claim
from sagaz_core.storage._s3_head import Gone, Head, packed_head, unpacked_head
from sagaz_core.storage._s3_keys import data_folder
from sagaz_core.storage._s3_objects import Changed, all_of
from sagaz_core.storage._s3_pages import Folded
from sagaz_core.storage._s3_rows import CLAIMED, SMALL, EventRows, entries, needs_claim, place_of
from sagaz_core.storage._saga_index import Elsewhere, News
from sagaz_core.storage.base import Batch, checked_id

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from sagaz_core.storage._s3_changes import Change, Read


class S3Writing(S3Claiming):
    """What a store does with batches."""

    async def write(self, batch: Batch) -> None:
        """See `SnapshotStorage.write`."""
        check_batch(batch)
        if says_nothing(batch):
            return
        saga_id = checked_id(batch.saga_id)
        head = self._known.get(saga_id)
        fresh = False
        if head is None:
            # Who brings the record begins the saga: should it be there already, the condition of the write tells.
            fresh = batch.saga is None
            head = await self._head(saga_id) if fresh else Head(saga_id)
        claimed: dict[str, str] = {}
        for _ in range(TRIES):
            try:
                read = await self._pages_of(head, batch)
                news = head.index.news(batch, _elsewhere(read))
                if not news and fresh:
                    return
                if news and await self._written(head, news, read, claimed):
                    return
            except (CodecError, DuplicateSagaError, UsageError) as error:
                self._known.pop(saga_id, None)
                if fresh or not isinstance(error, DuplicateSagaError):
                    find = head.index.snapshots.find
                    await self._objects.delete([key for name, key in claimed.items() if find(name) is None])
                    raise
            except (Folded, Gone) as reason:
                if fresh or isinstance(reason, Folded):
                    head = await self._again(head, reason)
                    continue
            head, fresh = await self._head(saga_id), True
        raise self._too_many(saga_id)

    async def _pages_of(self, head: Head, batch: Batch) -> Read:
        """Return the pages, by name, in which something of the batch is, or would be: what comes late or again."""
        events, snapshots = head.event_pages, head.snapshot_pages
        event_places = {events.at((event.seq, "")) for event in batch.events} - {len(events.lines)}
        places = {snapshots.at((one.seq, one.snapshot_id)) for one in batch.snapshots} - {len(snapshots.lines)}
        if not event_places and not places:  # as nearly always
            return {}
        works: list[Any] = [self._event_rows(head, events.lines[at]) for at in sorted(event_places)]
        works += (self._snapshot_rows(head, snapshots.lines[at]) for at in sorted(places))
        names = [events.lines[at].name for at in sorted(event_places)]
        names += (snapshots.lines[at].name for at in sorted(places))
        return dict(zip(names, await all_of(works), strict=True))

    async def _written(self, head: Head, news: News, read: Read, claimed: dict[str, str]) -> bool:
        """Write the news, or say that the head is not what it was. `claimed` takes in claims that are new."""
        before = head.version
        change = changed(head, news, read)
        try:
            if not await self._put_before(head, news, change, claimed) or head.version != before:
                return False
            body = packed_head(head, news, change)
            version = await self._put_head(head, body)
        except Changed:
            self._known.pop(head.saga_id, None)
            return False
        if head.version != before:
            self._known.pop(head.saga_id, None)
        elif change.anew or change.replaced:
            self._remember(unpacked_head(head.saga_id, memoryview(body), version))
        else:
            head.held, head.version = bytes(change.held), version
            head.index.says(news.record, news.summary and summary_from_row(summary_row(news.summary)))
            head.add(change.events, change.snapshots)
            self._remember(head)
        await self._objects.delete([f"{data_folder(head.saga_id)}/{name}" for name in change.replaced])
        return True

    async def _put_before(self, head: Head, news: News, change: Change, claimed: dict[str, str]) -> bool:
        """Write what must be there before the head, mostly nothing, and say whether the ids are the saga's."""
        claims = _claims(head, news, change)
        if not (claims or change.objects or change.numbered):
            return True
        folder = data_folder(head.saga_id)
        works: list[Coroutine[Any, Any, Any]] = [self._claim(claim, claimed) for claim in claims]
        works += (self._objects.put(f"{folder}/{name}", body, always=True) for name, body in change.objects.items())
        works += (self._put_numbered(folder, name, body, change) for name, body in change.numbered.items())
        works += (self._check_whose(claim) for claim in claims)
        found = await all_of(works)
        return all(found[: len(claims)])

    async def _put_numbered(self, folder: str, name: str, body: bytes, change: Change) -> None:
        """Write the page. Where a writer that died left another one of that name, it is written under a new name."""
        try:
            await self._objects.put(f"{folder}/{name}", body)
        except Changed:
            with suppress(CorruptDataError):
                found = await self._objects.get(f"{folder}/{name}")
                if found is not None and found[0] == body:
                    return
            other = new_id()
            await self._objects.put(f"{folder}/{other}", body, always=True)
            change.rename(name, other)
            change.replaced.append(name)

    async def write_many(self, batches: Sequence[Batch]) -> Sequence[Exception | None]:
        """See `SnapshotStorage.write_many`. Batches of one saga go one after the other, those of several at once."""
        by_saga: dict[str, list[int]] = {}
        in_turn = contested(batches)
        for number, batch in enumerate(batches):
            by_saga.setdefault("" if in_turn else batch.saga_id, []).append(number)
        results: list[Exception | None] = [None] * len(batches)

        async def write_in_order(numbers: list[int]) -> None:
            for number in numbers:
                try:
                    await self.write(batches[number])
                except StoreUnavailableError:
                    raise
                except (UsageError, CodecError, StorageError) as error:
                    results[number] = error

        await all_of([write_in_order(numbers) for numbers in by_saga.values()])
        return results


def _elsewhere(read: Read) -> Elsewhere:
    found = Elsewhere()
    for rows in read.values():
        for entry in entries(rows):
            if isinstance(rows, EventRows):
                found.events[entry.seq] = entry
            else:
                found.snapshots[entry.snapshot_id] = entry
    return found


def _claims(head: Head, news: News, change: Change) -> list[Claim]:
    """Return the claims of those new snapshots that need one: with large data, and where their bases are."""
    columns, pages = head.index.snapshots, head.snapshot_pages
    pairs = zip(news.snapshots, news.snapshot_data, strict=True)
    some, claims = [pair for pair in pairs if needs_claim(head.saga_id, pair[0])], list[Claim]()
    new_large = [entry for entry, _ in some if entry.size > SMALL]
    for entry, data in some:
        large, where = list[str](), [change.pages_of[entry.snapshot_id]]
        if entry.base_seq is not None:
            place = place_of(entry)
            bases = map(columns.entry, columns.bases_of_new(entry))
            large += (base.snapshot_id for base in bases if base.place == CLAIMED)
            large += (one.snapshot_id for one in new_large if one.seq >= entry.base_seq and place_of(one) < place)
            where += (page.name for page in pages.lines[pages.at((entry.base_seq, "")) : pages.at(place)])
        own = data if entry.size > SMALL else None
        claims.append(Claim(entry.snapshot_id, head.saga_id, entry.digest, own, large, entry.seq, where))
    return claims
