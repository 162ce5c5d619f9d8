"""Append-only files of checksummed frames, written by many processes, each of which may die in the middle.

A frame is a header (mark, the sizes of what follows, a checksum of these), a head (with its checksum) and a body, whose
parts the head tells the digests of. So a size can be trusted, or is known to be damaged: a frame that is cut short is
one whose writer died, and is cut off by the next writer; everything else that does not fit is damage.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

from sagaz_core.clock import monotonic
from sagaz_core.errors import StorageError, StoreUnavailableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

_MARK = b"SgZ1"
_HEADER = struct.Struct("<4sIII")
_SUM = struct.Struct("<I")
_LARGEST = 2**32 - 1
_WINDOW = 1 << 16
_RETRY_DELAY = 0.002
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR)
_WHY = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than is allowed",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "access is not permitted",
    errno.EPERM: "access is not permitted",
    errno.EIO: "the disk gives an error",
    errno.EMFILE: "too many files are open",
    errno.ENFILE: "too many files are open",
}


class Damaged(Exception):  # noqa: N818 - it is told as an error by those who know what the file is
    """A frame that was whole once is not what was written. `at` is its first byte."""

    def __init__(self, at: int) -> None:
        super().__init__(at)
        self.at = at


class Frame(NamedTuple):
    """A frame as it is found: its head, where its body begins, and where it ends."""

    head: bytes
    body: int
    end: int


def framed(head: bytes, body: bytes = b"") -> bytes:
    """Return the bytes of a frame."""
    if len(head) > _LARGEST or len(body) > _LARGEST:
        raise UsageError(f"a batch of {len(head) + len(body):,} bytes cannot be stored in a file: write it in parts")
    header = _HEADER.pack(_MARK, len(head), len(body), 0)[:12]
    return b"".join((header, _SUM.pack(crc32(header)), head, _SUM.pack(crc32(head)), body))


def body_offset(head: bytes) -> int:
    """Return where in the frame the body begins."""
    return _HEADER.size + len(head) + _SUM.size


def head_offset(frame: Frame) -> int:
    """Return where in the file the frame's head begins."""
    return frame.body - _SUM.size - len(frame.head)


def frames(fd: int, start: int, size: int) -> Iterator[Frame]:
    """Yield the whole frames from `start` on, without reading their bodies. Raises `Damaged`."""
    window = _Window(fd, size)
    while start + _HEADER.size <= size:
        header = window.read(start, _HEADER.size)
        mark, head_size, body_size, checksum = _HEADER.unpack(header)
        if mark != _MARK or crc32(header[:12]) != checksum:
            if _only_zeros(fd, start, size):  # what a power cut leaves of an append
                return
            raise Damaged(start)
        body = start + _HEADER.size + head_size + _SUM.size
        end = body + body_size
        if end > size:
            return
        head = window.read(start + _HEADER.size, head_size + _SUM.size)
        if crc32(head[:-4]) != _SUM.unpack(head[-4:])[0]:
            raise Damaged(start)
        yield Frame(head[:-4], body, end)
        start = end


class _Window:
    """Reads small parts of a file that follow each other, in few calls."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd, self._size = fd, size
        self._start, self._held = 0, b""

    def read(self, start: int, count: int) -> bytes:
        at = start - self._start
        if at < 0 or at + count > len(self._held):
            self._start, at = start, 0
            self._held = os.pread(self._fd, min(max(count, _WINDOW), self._size - start), start)
        found = self._held[at : at + count]
        if len(found) < count:
            raise Damaged(start)
        return found


def _only_zeros(fd: int, start: int, size: int) -> bool:
    while start < size:
        part = os.pread(fd, min(_WINDOW, size - start), start)
        if not part or part.strip(b"\0"):
            return False
        start += len(part)
    return True


def append(fd: int, end: int, frame: bytes, *, sync: bool) -> None:
    """Write the frame at `end`, all of it or nothing, and to the disk itself when `sync`."""
    written = 0
    try:
        while written < len(frame):
            written += os.pwrite(fd, frame[written:] if written else frame, end + written)
        if sync:
            os.fdatasync(fd)
    except BaseException:
        os.ftruncate(fd, end)  # what is not acknowledged must not be found later
        raise


@contextmanager
def locked(fd: int, path: str, timeout: float, *, shared: bool = False) -> Iterator[None]:
    """Hold the file's lock, which every process that changes the file takes. It goes with the process."""
    take(fd, path, timeout, shared=shared)
    try:
        yield
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)


def take(fd: int, path: str, timeout: float, *, shared: bool = False) -> None:
    """Take the file's lock. Raises `StoreUnavailableError` when another one holds it for longer than `timeout`."""
    deadline = None
    while not try_lock(fd, shared=shared):
        if deadline is None:
            deadline = monotonic() + timeout
        elif monotonic() > deadline:
            raise StoreUnavailableError(
                f"{path} was locked by another process for more than {timeout:g} s: "
                f"find out what holds it, or raise ?lock_timeout"
            )
        time.sleep(_RETRY_DELAY)


def try_lock(fd: int, *, shared: bool = False) -> bool:
    """Take the file's lock if nobody holds it, and say whether it was taken."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(fd: int) -> None:
    """Give the file's lock back. A file that was closed has none."""
    if fd >= 0:
        fcntl.flock(fd, fcntl.LOCK_UN)


def not_there(error: OSError) -> bool:
    """Whether the error says that there is no such file."""
    return error.errno in _NOT_THERE


def unavailable(error: OSError, path: str) -> StorageError:
    """Return the error for a store whose files could not be used."""
    if isinstance(error, StorageError):
        return error
    why = _WHY.get(error.errno or 0, error.strerror or str(error))
    return StoreUnavailableError(f"the store {path} cannot be used: {why} ({error.filename or 'while writing'})")


def sync_folder(folder: str) -> None:
    """Have the names in the folder on the disk itself."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
