"""A state's bytes as a snapshot keeps them: compressed against the snapshot before it, and checked. Above all stores.

A *frame* is what stands in `SagaSnapshot.data`:

    mark, kind      one byte each
    digest          8 bytes (BLAKE2b) of kind, base and payload
    owner           4 bytes (BLAKE2b) of the digest and all other fields of the snapshot
    base            a difference only: the digest of the frame that it is one from
    payload         the state, or a Zstandard frame (level 3, without its magic number) of it

A *keyframe* stands alone. The others are differences from the frame before them: Zstandard with the bytes of that state
as a raw-content dictionary. There is a keyframe every 16 snapshots, and wherever the one before is not surely there.

Differences from the frame before, and not from the keyframe: over a saga of ten steps with a context of 1 KB those take
169 bytes a snapshot on average, from the keyframe 339, and from the frame with the lowest bit of its number cleared
(four reads instead of fifteen) 223; at 100 KB 2,441, 2,613 and 2,494. The frames between a keyframe and a snapshot lie
together in every store and are small, so that they come with the one that is asked for, in the same round trip.

As a base is known by its digest, which covers the digest of its own base, each frame is sure of all that it is made of.

In this process's memory nothing is damaged: there `data` is the state itself, which is known by how the codec's data
begins and by its length.
"""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

from sagaz_core.errors import DamagedSnapshotError
from sagaz_core.storage._checks import LONG_AGO
from sagaz_core.storage.codec import MAX_BYTES, is_whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sagaz_core.storage.base import Base, SagaSnapshot

KEYFRAME_EVERY: Final = 16
_MARK: Final = 0x04  # encoded data begins with another byte
_MARK_BEFORE: Final = 0x02  # of frames whose owner does not have `retention_until` in it
_PLAIN, _KEYFRAME, _DIFFERENCE = range(3)
_DIGEST: Final = slice(2, 10)
_OWNER: Final = slice(10, 14)
_BASE: Final = slice(14, 22)
_LARGEST: Final = MAX_BYTES + 64  # with the codec's header
_LEVEL: Final = 3
_SMALL: Final = 17  # bits of a state's size
_WINDOW: Final = 27  # bits: what every reader takes
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def standalone(snapshot: SagaSnapshot, state: bytes) -> SagaSnapshot:
    """Return the snapshot with this state (encoded) as its data, needing no other."""
    return _sealed(snapshot, _KEYFRAME, b"", _compressed(state, b""), None)


class FrameWriter:
    """Makes the frames of one run's snapshots, which are to be stored in the order in which they are made.

    Give `compress=False` for keyframes alone that hold the state as it is.
    """

    __slots__ = ("_before", "_compress", "_number", "_state")

    def __init__(self, *, compress: bool = True) -> None:
        self._compress = compress
        self._before: SagaSnapshot | None = None
        self._state = b""
        self._number = 0

    def frame(self, snapshot: SagaSnapshot, state: bytes) -> SagaSnapshot:
        """Return the snapshot with this state (encoded) as its data."""
        if not self._compress:
            return _sealed(snapshot, _PLAIN, b"", state, None)
        before = self._before
        if before is None or self._number == KEYFRAME_EVERY or not _will_last(before, snapshot):
            made = standalone(snapshot, state)
            self._number = 0
        else:
            first = before.seq if before.base_seq is None else before.base_seq
            made = _sealed(snapshot, _DIFFERENCE, before.data[_DIGEST], _compressed(state, self._state), first)
        self._before, self._state = made, state
        self._number += 1
        return made

    def begin_again(self) -> None:
        """Make a keyframe next: the last snapshot may not be in the store."""
        self._before = None


def _will_last(before: SagaSnapshot, snapshot: SagaSnapshot) -> bool:
    """Whether the one before is kept until this one is written: not if it is about to expire, or comes after it."""
    if (before.seq, before.snapshot_id) >= (snapshot.seq, snapshot.snapshot_id):
        return False
    if before.retention_until is None:
        return True
    return snapshot.created_at - before.created_at < (before.retention_until - before.created_at) / 2


def state_bytes(snapshot: SagaSnapshot) -> bytes:
    """Return the encoded state that the snapshot holds, read with its bases, or that it is.

    Raises `DamagedSnapshotError`, also when the damage is in a snapshot that this one is based on, or that is missing.
    """
    if is_whole(snapshot.data):
        return snapshot.data
    chain = [_opened(snapshot)]
    while chain[-1].base:
        chain.append(_base_of(chain[-1], snapshot))
    state = b""
    for frame in reversed(chain):
        state = _state_of(frame, state, snapshot)
    return state


def check_expired(snapshot: SagaSnapshot) -> None:
    """Raise `DamagedSnapshotError` for one that looks expired, but was changed. 14 bytes of its data are enough.

    One that a store keeps as a base alone, with `LONG_AGO` for its end, has been changed by the store. What is no frame
    cannot be checked.
    """
    data = snapshot.data
    if data[:1] != bytes((_MARK,)) or len(data) < _OWNER.stop or snapshot.retention_until == LONG_AGO:
        return
    if data[_OWNER] != _owner(snapshot, data[_DIGEST], snapshot.base_seq):
        raise _damaged(snapshot, "is damaged: what is stored beside it is not of this snapshot, or was changed")


class _Frame:
    """A frame taken apart, its digest checked."""

    __slots__ = ("base", "kind", "payload", "snapshot_id")

    def __init__(self, snapshot_id: str, data: bytes) -> None:
        self.snapshot_id = snapshot_id
        if len(data) < _BASE.start or data[0] not in (_MARK, _MARK_BEFORE) or data[1] > _DIFFERENCE:
            raise ValueError("it does not begin as a snapshot does")
        self.kind = data[1]
        end = _BASE.stop if self.kind == _DIFFERENCE else _BASE.start
        self.base, self.payload = data[_BASE.start : end], data[end:]
        if data[_DIGEST] != _digest(self.kind, self.base, self.payload):
            raise ValueError("its checksum is wrong")


def _opened(snapshot: SagaSnapshot) -> _Frame:
    data = snapshot.data
    try:
        frame = _Frame(snapshot.snapshot_id, data)
        if data[0] == _MARK_BEFORE:
            snapshot = snapshot._replace(retention_until=None)
        if data[_OWNER] != _owner(snapshot, data[_DIGEST], snapshot.base_seq):
            raise ValueError("what is stored beside it is not of this snapshot, or was changed")
    except ValueError as error:
        raise _damaged(snapshot, f"is damaged: {error}") from error
    return frame


def _base_of(frame: _Frame, snapshot: SagaSnapshot) -> _Frame:
    """Return the frame that this one is a difference from."""
    wrong = ""
    for base in reversed(snapshot.bases):
        if base.data[_DIGEST] != frame.base:
            continue
        try:
            return _Frame(base.snapshot_id, base.data)
        except ValueError as error:
            wrong = f"{base.snapshot_id!r} is damaged: {error}"
    if not wrong:
        unsound = next((base for base in snapshot.bases if not _sound(base)), None)
        wrong = "one is missing" if unsound is None else f"{unsound.snapshot_id!r} is damaged"
    raise _damaged(snapshot, f"cannot be read: of the snapshots that it is based on {wrong}")


def _sound(base: Base) -> bool:
    try:
        _Frame(base.snapshot_id, base.data)
    except ValueError:
        return False
    return True


def _damaged(snapshot: SagaSnapshot, what: str) -> DamagedSnapshotError:
    readable = tuple(_readable(snapshot.bases))
    still = f"{readable[-1]!r} can" if readable else "those before it may"
    return DamagedSnapshotError(
        f"snapshot {snapshot.snapshot_id!r} of saga {snapshot.saga_id!r} {what}; "
        f"{still} still be read, and what was journaled says how it went on",
        snapshot.snapshot_id,
        readable,
    )


def _readable(bases: tuple[Base, ...]) -> Iterator[str]:
    """Yield the ids of those that can be read with nothing but each other."""
    good: set[bytes] = {b""}
    for base in bases:
        try:
            frame = _Frame(base.snapshot_id, base.data)
        except ValueError:
            continue
        if frame.base in good:
            good.add(base.data[_DIGEST])
            yield base.snapshot_id


# ---- bytes


def _sealed(snapshot: SagaSnapshot, kind: int, base: bytes, payload: bytes, base_seq: int | None) -> SagaSnapshot:
    digest = _digest(kind, base, payload)
    data = b"".join((bytes((_MARK, kind)), digest, _owner(snapshot, digest, base_seq), base, payload))
    return snapshot._replace(data=data, base_seq=base_seq, bases=())


def _digest(kind: int, base: bytes, payload: bytes) -> bytes:
    return blake2b(b"%c%b%b" % (kind, base, payload), digest_size=8).digest()


def _owner(snapshot: SagaSnapshot, digest: bytes, base_seq: int | None) -> bytes:
    names = "\0".join((snapshot.snapshot_id, snapshot.saga_id, snapshot.saga_name, snapshot.step_name))
    how = "\0".join((snapshot.phase, snapshot.status))
    at: Any = (snapshot.created_at - _EPOCH) // _MICROSECOND
    if snapshot.retention_until is not None:
        at = f"{at} {(snapshot.retention_until - _EPOCH) // _MICROSECOND}"
    said = f"{names}\0{how}\0{snapshot.step_index:d} {snapshot.seq:d} {at} {base_seq}"
    if snapshot.completed_steps:  # what was stored before there were any has none
        said = "\0".join((said, *snapshot.completed_steps))
    if snapshot.tags:
        said = "\0".join((said, "", *(text for tag in snapshot.tags for text in tag)))
    return blake2b(digest + said.encode("utf-8", "surrogatepass"), digest_size=4).digest()


def _compressed(state: bytes, before: bytes) -> bytes:
    import zstandard  # reading an event or a record does without

    size = len(state).bit_length()
    if not before:
        made: bytes = _of_thread.compressor(size).compress(state)
        return made
    words = zstandard.ZstdCompressionDict(before, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    how = _parameters(size, len(before).bit_length())
    return zstandard.ZstdCompressor(dict_data=words, compression_params=how).compress(state)


class _OfThread(threading.local):
    """What needs no dictionary is used again: to make it takes five times as long as a state of 1 KB.

    A thread has its own, as they let others run while they work. What is made for large states is large itself.
    """

    def __init__(self) -> None:
        self._compressors: dict[int, Any] = {}
        self._decompressor: Any = None

    def compressor(self, size: int) -> Any:
        """Return one for states of that many bits of size."""
        found = self._compressors.get(size)
        if found is None:
            import zstandard

            found = zstandard.ZstdCompressor(compression_params=_parameters(size, 0))
            if size <= _SMALL:
                self._compressors[size] = found
        return found

    def decompressor(self) -> Any:
        """Return one for frames that stand alone."""
        if self._decompressor is None:
            import zstandard

            self._decompressor = zstandard.ZstdDecompressor(format=zstandard.FORMAT_ZSTD1_MAGICLESS)
        return self._decompressor


_of_thread = _OfThread()


@lru_cache(maxsize=256)
def _parameters(size: int, words: int) -> Any:
    """Return the compressor's settings for that many bits of size: to find them costs as much as to compress 1 KB.

    Those of the level are for files, in which what matches is near. A state matches the one before it, whatever its
    size, and has its initial context twice. So the window reaches over both states, and the table of hashes has a
    place for each 8 bytes of the dictionary: Zstandard takes in no more of one than 8 bytes for each place
    (`ZSTD_loadDictionaryContent` in its zstd_compress.c).
    """
    import zstandard

    sizes = {"source_size": 1 << size, "dict_size": 1 << words if words else 0}
    usual = zstandard.ZstdCompressionParameters.from_level(_LEVEL, **sizes)
    return zstandard.ZstdCompressionParameters.from_level(
        _LEVEL,
        **sizes,
        window_log=max(usual.window_log, min(max(size, words) + 1, _WINDOW)),
        hash_log=max(usual.hash_log, words - 3),
        format=zstandard.FORMAT_ZSTD1_MAGICLESS,
        write_checksum=False,
        write_content_size=True,
        write_dict_id=False,
    )


def _state_of(frame: _Frame, before: bytes, snapshot: SagaSnapshot) -> bytes:
    """Return the state that the frame is of. What would be larger than any state is refused before it is unpacked."""
    if frame.kind == _PLAIN:
        return frame.payload
    import zstandard

    form = zstandard.FORMAT_ZSTD1_MAGICLESS
    try:
        size = zstandard.get_frame_parameters(frame.payload, format=form).content_size
        if not 0 < size <= _LARGEST:
            raise _damaged(snapshot, f"is damaged: a state of {size:,} bytes")
        if before:
            words = zstandard.ZstdCompressionDict(before, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
            reader = zstandard.ZstdDecompressor(dict_data=words, format=form)
        else:
            reader = _of_thread.decompressor()
        state: bytes = reader.decompress(frame.payload, max_output_size=size, allow_extra_data=False)
        return state
    except zstandard.ZstdError as error:
        raise _damaged(snapshot, f"is damaged: {error}") from error
