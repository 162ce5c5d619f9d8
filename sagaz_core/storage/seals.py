"""A checksum with each event, of its data and of what is stored beside them. Above all stores, as frames are.

A *sealed* event's data are a mark (one byte), a CRC-32 (four) of all of the event, and what was encoded.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final
from zlib import crc32

from sagaz_core.errors import CorruptDataError
from sagaz_core.storage.base import StoredEvent

_SEALED: Final = 0x03
_ENCODED: Final = 0xC1  # what was stored without a seal begins so
_BODY: Final = 5
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def sealed(saga_id: str, seq: int, at: datetime, kind: str, step: str | None, body: bytes) -> StoredEvent:
    """Return the event with these encoded data, and their checksum."""
    data = b"%c%b%b" % (_SEALED, _checksum(saga_id, seq, at, kind, step, body), body)
    return StoredEvent(saga_id, seq, at, kind, step, data)


def opened(event: StoredEvent) -> bytes:
    """Return the encoded data of a stored event. Raises `CorruptDataError` that names it when it was changed."""
    saga_id, seq, at, kind, step, data = event
    if data[:1] == bytes((_ENCODED,)):
        return data
    body = data[_BODY:]
    if not data or data[0] != _SEALED or data[1:_BODY] != _checksum(saga_id, seq, at, kind, step, body):
        raise CorruptDataError(
            f"event {seq} of saga {saga_id!r} is damaged, or what is stored beside it: its checksum is "
            f"wrong; its snapshots can still be read"
        )
    return body


def _checksum(saga_id: str, seq: int, at: datetime, kind: str, step: str | None, body: bytes) -> bytes:
    since = at - _EPOCH
    said = f"{saga_id}\0{seq}\0{since.days} {since.seconds} {since.microseconds}\0{kind}\0{step}"
    return crc32(body, crc32(said.encode("utf-8", "surrogatepass"))).to_bytes(4, "big")
