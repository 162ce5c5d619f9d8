"""Whose a snapshot's id is: an object for each id, which the first saga has that writes it.

An id that is a UUID, or begins with one as those of recorded sagas do, is nobody else's, in all likelihood. So its
claim may be written at the same time as the head that has the snapshot, which saves a round trip; the head then says
that it is unconfirmed. Who finds that, in another process, sees to it that the claim is there before he tells anybody
of the snapshot, or writes the next head, which does not say it any longer. Thus no snapshot is listed that cannot be
had by its id, whoever died when. Should the id be another one's all the same, what came with it is taken out again.
"""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

from sagaz_core.clock import utc_now
from sagaz_core.errors import CorruptDataError, StoreUnavailableError
from sagaz_core.storage._checks import another_snapshot
from sagaz_core.storage._s3_asking import TRIES, S3Asking
from sagaz_core.storage._s3_changes import undone
from sagaz_core.storage._s3_claims import Claim, packed_claim, unpacked_claim
from sagaz_core.storage._s3_head import Gone, packed_head
from sagaz_core.storage._s3_keys import snapshot_key
from sagaz_core.storage._s3_objects import Changed, all_of
from sagaz_core.storage._s3_pages import SNAPSHOTS
from sagaz_core.storage._s3_rows import OWN
from sagaz_core.storage._s3_window import Window
from sagaz_core.storage._saga_index import News

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sagaz_core.storage._s3_head import Head

_ABANDONED = timedelta(hours=1)
_OF_A_RUN = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(\.[0-9]+)?")


def is_nobody_elses(snapshot_id: str) -> bool:
    """Whether no other snapshot has that id, unless somebody wanted it so."""
    return _OF_A_RUN.fullmatch(snapshot_id) is not None


class S3Claiming(S3Asking):
    """Claims of snapshots' ids."""

    async def _claim(self, claim: Claim, claimed: dict[str, str]) -> bool:
        """Have the snapshot's id for this saga, and put it into `claimed` if that is new. Says no when the saga has it.

        Raises `DuplicateSagaError` when it is that of another snapshot, or its writer may be about to write it. After
        an hour what was claimed and not written is taken for that of a writer that died.
        """
        key, body = snapshot_key(claim.snapshot_id), packed_claim(claim)
        known = None
        for _ in range(TRIES):
            try:
                await self._objects.put(key, body, known=known)
            except Changed:
                found = await self._objects.get(key)
                if found is None:
                    known = None
                    continue
                other, known = unpacked_claim(found[0]), found[1]
                if _same(other, claim):
                    return True
                mine = other[:3] == claim[:3]
                stored = await self._stored(other)
                if stored == claim.seq and other.saga_id == claim.saga_id:
                    return False
                if stored is not None or not (mine or utc_now() - known.written_at >= _ABANDONED):
                    raise another_snapshot(claim) from None
            else:
                claimed[claim.snapshot_id] = key
                return True
        raise StoreUnavailableError(
            f"the store {self._objects.shown} has too many writers of {claim.snapshot_id!r} at once"
        )

    async def _claim_beside(self, claim: Claim, claimed: dict[str, str]) -> bool:
        """Have the snapshot's id for this saga if nobody has claimed it, and say whether that is so; see `_claim`."""
        key = snapshot_key(claim.snapshot_id)
        try:
            await self._objects.put(key, packed_claim(claim))
        except Changed:
            found = await self._objects.get(key)
            return found is not None and _same(unpacked_claim(found[0]), claim)
        claimed[claim.snapshot_id] = key
        return True

    async def _stored(self, claim: Claim) -> int | None:
        """Return the `seq` of the snapshot when its saga has it."""

        async def ask(head: Head) -> int | None:
            window = Window(head)
            found = await self._found(window, claim)
            return None if found is None else window.rows[found[0]].columns.seqs[found[1]]

        return await self._answer(await self._head(claim.saga_id), ask)

    async def _settled(self, head: Head) -> Head:
        """Return the head, or a newer one, when all claims of what it has are there: it may be changed then."""
        for _ in range(TRIES):
            if not await self._confirm(head):
                head.unconfirmed = head.beside = ()
                return head
            await self._undo(head)
            head = await self._head(head.saga_id)
        raise self._too_many(head.saga_id)

    async def _sure(self, head: Head, ids: Iterable[str]) -> None:
        """See to it, before these ids are told of, that the saga has them and all that was written with them.

        Raises `Gone` when it has not.
        """
        if not any(name in head.unconfirmed for name in ids):
            return
        with suppress(StoreUnavailableError):  # who may only read is told of them all the same
            lost = await self._confirm(head)
            if lost:
                await self._undo(head)
                raise Gone(CorruptDataError(f"snapshot {lost[0]!r} of saga {head.saga_id!r} has the id of another one"))

    async def _undo(self, head: Head) -> None:
        """Take out what was written last, as an id of it is another one's: its writer is told so, or has died."""
        change = undone(head)
        with suppress(Changed):  # then somebody else did
            await self._put_head(head, packed_head(head, News(), change), head.version, form=change.form)

    async def _confirm(self, head: Head) -> list[str]:
        """See to it that the saga has the ids that are unconfirmed, and return those that are another one's."""
        names = head.unconfirmed
        sure = await all_of([self._confirm_one(head, name) for name in names]) if names else []
        return [name for name, mine in zip(names, sure, strict=True) if not mine]

    async def _confirm_one(self, head: Head, snapshot_id: str) -> bool:
        with suppress(CorruptDataError):  # it is told to who asks for that snapshot
            found, claim = await self._objects.get(snapshot_key(snapshot_id)), _claim_again(head, snapshot_id)
            return await self._claim_beside(claim, {}) if found is None else _same(unpacked_claim(found[0]), claim)
        return True


def _same(one: Claim, other: Claim) -> bool:
    return one[:3] == other[:3] and one.seq == other.seq


def _claim_again(head: Head, snapshot_id: str) -> Claim:
    """Return the claim of a small snapshot in the head, as its writer had it."""
    columns = head.index.snapshots
    slot = columns.find(snapshot_id)
    assert slot is not None  # what is unconfirmed is in the head
    entry = columns.entry(slot)
    large = [base.snapshot_id for base in map(columns.entry, columns.bases(slot)) if base.place == OWN]
    pages = [f"{SNAPSHOTS}{head.snapshot_pages.number}"]
    return Claim(entry.snapshot_id, head.saga_id, entry.digest, None, large, entry.seq, pages)
