"""Room on a disk for what would take memory: pages of a file that has no name, and is gone with the process."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING
from weakref import ref

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PAGE = 4096
_CHUNK_PAGES = 16
_CHUNK = PAGE * _CHUNK_PAGES


class OutOfRoom(OSError):  # noqa: N818 - it is hardly ever told: what was to be there stays in memory
    """There is no such file, or it could not be written."""


class Room:
    """A file in the first of these folders that lets one be made, `None` being the system's for temporary files.

    It is there as long as `Pages` are in it.
    """

    __slots__ = ("_file", "_folders")

    def __init__(self, folders: Sequence[str | None]) -> None:
        self._folders = folders
        self._file: Callable[[], _File | None] = lambda: None

    def file(self) -> _File:
        """Return the file. Raises `OutOfRoom`."""
        file = self._file()
        if file is None:
            file = _File(_nameless(self._folders))
            self._file = ref(file)
        return file


class _File:
    """Chunks of a file, which are given to whom asks.

    It is read and written with calls, and is not mapped into memory: so a full disk is an error and no signal, and a
    process that was forked off changes nothing when it lets go of it.
    """

    __slots__ = ("__weakref__", "_chunks", "_free", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._chunks, self._free = 0, list[int]()

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self.fd)

    def take(self) -> int:
        """Return the number of a chunk that nobody has."""
        if self._free:
            return self._free.pop()
        self._chunks += 1
        return self._chunks - 1

    def give_back(self, chunks: list[int]) -> None:
        """Have those chunks for others."""
        self._free += chunks


class Pages:
    """Pages in a room, by number, which are given back when nobody has this any more. Raises `OutOfRoom`."""

    __slots__ = ("_chunks", "_file")

    def __init__(self, room: Room) -> None:
        self._chunks: list[int] = []
        self._file = room.file()

    def __del__(self) -> None:
        if self._chunks:
            self._file.give_back(self._chunks)

    def read(self, number: int, size: int) -> bytes:
        """Return what was written into the page first."""
        return os.pread(self._file.fd, size, self._at(number))

    def write(self, number: int, data: bytes, start: int = 0) -> None:
        """Write into the page, which may be the one behind all others. Raises `OutOfRoom`."""
        if number == _CHUNK_PAGES * len(self._chunks):
            self._chunks.append(self._file.take())
        fd, at, written = self._file.fd, self._at(number) + start, 0
        try:
            while written < len(data):
                written += os.pwrite(fd, data[written:] if written else data, at + written)
        except OSError as error:
            raise OutOfRoom(error.errno, error.strerror) from error

    def _at(self, number: int) -> int:
        return self._chunks[number // _CHUNK_PAGES] * _CHUNK + number % _CHUNK_PAGES * PAGE


def _nameless(folders: Sequence[str | None]) -> int:
    """Return a new file without a name. Raises `OutOfRoom`."""
    import tempfile  # takes longer to import than a store to open

    for folder in folders:
        with suppress(OSError), tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            return os.dup(file.fileno())
    raise OutOfRoom(errno.ENOENT, "there is no folder for temporary files")
