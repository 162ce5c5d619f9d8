"""Whose a snapshot's id is that names no saga: an object for each such id, which the first saga has that writes it.

An id that names its saga and `seq`, as the engine gives them, needs none: it is found in that saga, and two writers of
one saga find each other out by its head. To write such a snapshot is one request, and there is nothing between.
"""

from __future__ import annotations

from datetime import timedelta
from functools import partial

from sagaz_core.clock import utc_now
from sagaz_core.errors import StoreUnavailableError
from sagaz_core.storage._checks import another_snapshot
from sagaz_core.storage._s3_asking import TRIES, S3Asking
from sagaz_core.storage._s3_claims import Claim, packed_claim, unpacked_claim
from sagaz_core.storage._s3_head import Head
from sagaz_core.storage._s3_keys import snapshot_key
from sagaz_core.storage._s3_objects import Changed
from sagaz_core.storage._s3_window import Window
from sagaz_core.storage.snapshot_ids import named

_ABANDONED = timedelta(hours=1)


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
                mine = other[:3] == claim[:3]
                if mine and other.seq == claim.seq:
                    return True
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

    async def _stored(self, claim: Claim) -> int | None:
        """Return the `seq` of the snapshot when its saga has it."""

        async def ask(head: Head) -> int | None:
            window = Window(head)
            found = await self._found(window, claim)
            return None if found is None else window.rows[found[0]].columns.seqs[found[1]]

        return await self._answer(await self._head(claim.saga_id), ask)

    async def _check_whose(self, claim: Claim) -> None:
        """Raise `DuplicateSagaError` when the snapshot's id names a saga, and that saga has it."""
        says = named(claim.snapshot_id)
        if says is None:
            return
        name = claim.snapshot_id
        if await self._answer(await self._head(says.saga_id), partial(self._has, name, says.seq)):
            raise another_snapshot(claim)

    async def _has(self, snapshot_id: str, seq: int, head: Head) -> bool:
        return await self._found_by_name(Window(head), snapshot_id, seq) is not None
