"""What is in the object of an id that does not say whose it is: this, where its row is, and its data if large."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import ormsgpack

from sagaz_core.errors import CorruptDataError
from sagaz_core.storage._packed_rows import packed

if TYPE_CHECKING:
    from collections.abc import Sequence


class Claim(NamedTuple):
    """Says that a snapshot's id is this saga's, whether the snapshot was written then or not.

    `own` are its data when they are large, `large` the ids of those of its bases whose data are. `pages` are those that
    have its row and its bases, most likely. An earlier release wrote no `seq` and no pages.
    """

    snapshot_id: str
    saga_id: str
    digest: bytes
    own: bytes | None
    large: Sequence[str] = ()
    seq: int | None = None
    pages: Sequence[str] = ()


def packed_claim(claim: Claim) -> bytes:
    """Return the claim as bytes. Raises `UsageError` for what cannot be stored."""
    return packed(list(claim))


def unpacked_claim(data: memoryview) -> Claim:
    """Do the inverse of `packed_claim`. Raises `CorruptDataError`."""
    try:
        return Claim(*ormsgpack.unpackb(data))
    except (ormsgpack.MsgpackDecodeError, TypeError) as error:
        raise CorruptDataError(f"what its object says is damaged: {error}") from error
