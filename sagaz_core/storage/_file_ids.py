"""Which saga a snapshot is of, by its id: a hash table in files that only grow, in memory of constant size.

A table has levels, each eight times as large as the one before. An id has one bucket in each level and is in the first
that had room for it, so that finding one reads a bucket in each level that is full there: two or three of 512 bytes.
A slot says where an id may be, never that it is there: who finds it asks the saga.
"""

from __future__ import annotations

import errno
import os
import struct
from hashlib import blake2b
from zlib import crc32

from sagaz_core.storage._file_log import not_there

_SLOT = struct.Struct("<28sI")
_SLOTS = 16
_BUCKET = _SLOT.size * _SLOTS
_FIRST_LEVEL = 256
_FILLED_LEVELS = 2
_FREE = bytes(_SLOT.size)
_DELETED = b"\xff" * _SLOT.size
_ALL_ONES = 2**32 - 1
_NOT_TO_BE_WRITTEN = (errno.EACCES, errno.EPERM, errno.EROFS)


class DamagedIndex(Exception):  # noqa: N818 - it is never told: the index is made anew
    """The index does not say what was written."""


class IdTable:
    """The table in `folder`. It is changed under the lock of the index."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._levels: list[int] = []

    def close(self) -> None:
        """Let go of the files."""
        while self._levels:
            os.close(self._levels.pop())

    def sagas(self, snapshot_id: str) -> list[bytes]:
        """Return the keys of the sagas that the snapshot may be of."""
        name, found = _name(snapshot_id), list[bytes]()
        level, bucket = 0, b""
        while not bucket.endswith(_FREE):
            bucket = self._bucket(level, name) or bytes(_BUCKET)
            found += _keys(bucket, name)
            level += 1
        return found

    def claim(self, snapshot_id: str, key: bytes) -> list[bytes]:
        """Say that the snapshot may be of this saga, and return the keys of the others that it may be of."""
        name, found = _name(snapshot_id), list[bytes]()
        mine, room, level = name + key, -1, 0
        while True:
            bucket = self._bucket(level, name) or bytes(_BUCKET)
            found += _keys(bucket, name)
            if room < 0:
                room, room_level = _room(bucket), level
            if bucket.endswith(_FREE):
                break
            level += 1
        if key in found:
            return [other for other in found if other != key]
        if room < 0:
            room, room_level = 0, level + 1
        slot = mine + crc32(mine).to_bytes(4, "little")
        os.pwrite(self._level(room_level, create=True), slot, _at(room_level, name) + room)
        return found

    def remove(self, snapshot_id: str, key: bytes) -> None:
        """Say it no longer."""
        name = _name(snapshot_id)
        for level in range(64):
            bucket = self._bucket(level, name)
            for start in range(0, len(bucket), _SLOT.size):
                if bucket[start : start + 28] == name + key:
                    os.pwrite(self._level(level, create=True), _DELETED, _at(level, name) + start)
                    return
            if not bucket or bucket.endswith(_FREE):
                return

    def sync(self) -> None:
        """Have all of it on the disk itself."""
        for fd in self._levels:
            os.fdatasync(fd)

    def _bucket(self, level: int, name: bytes) -> bytes:
        """Return the bytes of the bucket, padded with free slots; none where there is no such level."""
        fd = self._level(level, create=False)
        return os.pread(fd, _BUCKET, _at(level, name)).ljust(_BUCKET, b"\0") if fd >= 0 else b""

    def _level(self, level: int, *, create: bool) -> int:
        while len(self._levels) <= level:
            path = os.path.join(self._folder, f"ids.{len(self._levels)}")
            try:
                if create and not os.path.exists(path) and len(self._levels) <= _FILLED_LEVELS:
                    _fill(path, _FIRST_LEVEL * _BUCKET << 3 * len(self._levels))
                self._levels.append(open_file(path, create=create))
            except OSError as error:
                if create or not not_there(error):
                    raise
                return -1
        return self._levels[level]


def open_file(path: str, *, create: bool) -> int:
    """Open the file for reading and writing, or for reading where one may not write."""
    flags = os.O_CLOEXEC | (os.O_CREAT if create else 0)
    try:
        return os.open(path, flags | os.O_RDWR, 0o600)
    except OSError as error:
        # Only what is there and may not be written: what is not there may be made by another process at this moment.
        if create or error.errno not in _NOT_TO_BE_WRITTEN:
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _fill(path: str, size: int) -> None:
    """Have the blocks of the file: where they are allocated by each write, each fsync of anything waits for them."""
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        for at in range(0, size, 1 << 17):
            os.pwrite(fd, bytes(1 << 17), at)
    finally:
        os.close(fd)


def _room(bucket: bytes) -> int:
    """Return where the bucket's first slot is that can be written, -1 when it is full."""
    if _DELETED in bucket:
        for start in range(0, _BUCKET, _SLOT.size):
            if bucket[start : start + _SLOT.size] in (_FREE, _DELETED):
                return start
    start = -(-len(bucket.rstrip(b"\0")) // _SLOT.size) * _SLOT.size
    return start if start < _BUCKET else -1


def _name(snapshot_id: str) -> bytes:
    return blake2b(snapshot_id.encode("utf-8", "surrogatepass"), digest_size=12).digest()


def _at(level: int, name: bytes) -> int:
    return int.from_bytes(name, "little") % (_FIRST_LEVEL << 3 * level) * _BUCKET


def _keys(bucket: bytes, name: bytes) -> list[bytes]:
    """Return the keys that go with the name. Raises `DamagedIndex`, also for the bucket's other slots."""
    found, is_there = [], name in bucket
    for both, checksum in _SLOT.iter_unpack(bucket):
        if crc32(both) == checksum:
            if is_there and both.startswith(name):
                found.append(both[12:])
        elif checksum == 0 and both == _FREE[:28]:
            break
        elif checksum != _ALL_ONES or both != _DELETED[:28]:
            raise DamagedIndex
    return found
