"""What all parts of the file store have: its folder, the files of sagas that are open, and the locks of these."""

from __future__ import annotations

import os
from collections import OrderedDict
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING
from urllib.parse import quote

from sagaz_core.clock import utc_now
from sagaz_core.errors import CorruptDataError, SchemaError, StorageError, UsageError, nearest
from sagaz_core.storage._file_catalog import Facts
from sagaz_core.storage._file_index import FileIndex
from sagaz_core.storage._file_log import not_there, take, unavailable, unlock
from sagaz_core.storage._file_replays import Replays
from sagaz_core.storage._file_segment import Segment, segment_key
from sagaz_core.storage._room import Room

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime


FORMAT = 1
_OPEN_AT_ONCE = 128
_FSYNC = ("always", "never")


class _Using:
    """Has a store for this thread, and tells what its files raise as errors of the store."""

    __slots__ = ("_create", "_storage")

    def __init__(self, storage: FileCore, create: bool) -> None:
        self._storage, self._create = storage, create

    def __enter__(self) -> bool:
        storage = self._storage
        storage._lock.acquire()
        try:
            return storage._marked or storage._check_marked(self._create)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._storage._lock.release()
        if isinstance(error, OSError) and not isinstance(error, StorageError):
            raise unavailable(error, self._storage.path) from error


class FileCore:
    """The folder of a store, and what this process has open of it."""

    def __init__(self, path: str | os.PathLike[str], *, fsync: str = "always", lock_timeout: float = 5.0) -> None:
        self.path = os.path.abspath(os.fspath(path))
        if "\0" in self.path:
            raise UsageError(f"{self.path!r} cannot be a folder: it has a NUL")
        if fsync not in _FSYNC:
            raise UsageError(f"fsync={fsync!r} is not known{nearest(fsync, _FSYNC)}: give always or never")
        if not 0 <= lock_timeout < float("inf"):
            raise UsageError(f"lock_timeout={lock_timeout} is not a time: give seconds, 0 or more")
        self.url = f"file://{quote(Path(self.path).as_posix(), safe='/:')}"
        self.clock: Callable[[], datetime] = utc_now
        self._sync = fsync == "always"
        self._timeout = lock_timeout
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = RLock()
        self._marked = False
        self._sagas = os.path.join(self.path, "sagas")
        self._segments: OrderedDict[bytes, Segment] = OrderedDict()
        folder = os.path.join(self.path, "index")
        self._room = Room([folder, None])
        self._index = FileIndex(folder, self._sagas, self._timeout, self._room)
        self._replays = Replays(os.path.join(self.path, "replays"))

    def _using(self, *, create: bool = False) -> _Using:
        """Have the folder for this thread, and say whether there is a store in it."""
        if self._pid != os.getpid():
            self._leave_inherited()
        return _Using(self, create)

    def _leave_inherited(self) -> None:
        """Have files of one's own after a fork: a lock would be shared with the parent."""
        segments, index, replays = self._segments, self._index, self._replays
        self._begin()
        for segment in segments.values():
            segment.close()
        index.close()
        replays.close()

    def _check_marked(self, create: bool) -> bool:
        path = os.path.join(self.path, "sagaz")
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read(100)
        except OSError as error:
            if not not_there(error):
                raise
            self._check_free(path)
            if not create:
                return False
            self._create(path)
            text = f"{FORMAT}\n"
        if not text.strip().isdecimal():
            raise StorageError(f"{path} cannot be read: it is not a version")
        if int(text) > FORMAT:
            raise SchemaError(
                f"the store {self.path} has format {int(text)}, this release reads up to {FORMAT}: upgrade pytest-sagaz"
            )
        self._marked = True
        return True

    def _check_free(self, path: str) -> None:
        """Raise `StorageError` for what holds something else, or lost the file that says that it is a store."""
        try:
            names = os.listdir(self.path)
        except FileNotFoundError:
            return
        if any(not name.startswith("sagaz") for name in names) and not os.path.exists(path):
            raise StorageError(f"the folder {self.path} is not empty and no store: use a folder of its own")

    def _create(self, path: str) -> None:
        os.makedirs(self.path, 0o700, exist_ok=True)
        new = f"{path}.{os.getpid()}"
        with open(new, "w", encoding="utf-8") as file:
            file.write(f"{FORMAT}\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)

    def _segment(self, saga_id: str) -> Segment:
        segment = self._segment_of(segment_key(saga_id))
        segment.asked = saga_id
        return segment

    def _segment_of(self, key: bytes) -> Segment:
        segment = self._segments.get(key)
        if segment is None:
            if len(self._segments) >= _OPEN_AT_ONCE:
                self._segments.popitem(last=False)[1].close()
            name = key.hex()
            segment = self._segments[key] = Segment(key, os.path.join(self._sagas, name[:2], name[2:]), self._room)
        else:
            self._segments.move_to_end(key)
        return segment

    def _begin_change(self, segment: Segment, *, create: bool, whole: bool = True) -> bool:
        """Take the lock of a saga's file, read it up to its end, and say whether there is one.

        Raises `CorruptDataError` for a damaged one, unless it needs not be `whole`: then it is read as far as it goes.
        """
        passed_over = () if whole else (CorruptDataError,)
        while True:
            if segment.fd < 0:
                with suppress(*passed_over):
                    segment.refresh()
            if segment.fd < 0:
                if not create:
                    return False
                segment.create()
                continue
            opened = segment.opened
            segment.check_writable()
            take(segment.fd, segment.path, self._timeout)
            try:
                with suppress(*passed_over):
                    segment.refresh()
                if segment.fd >= 0 and segment.opened == opened:  # else it was deleted or written anew while we waited
                    if whole:
                        segment.cut_off()
                    return True
            except BaseException:
                unlock(segment.fd)
                raise

    @contextmanager
    def _changing(self, segment: Segment) -> Iterator[bool]:
        """Hold the lock of a saga's file, and say whether there is a saga."""
        there = self._begin_change(segment, create=False)
        try:
            yield there and bool(segment.saga_id)
        finally:
            unlock(segment.fd)

    def _known(self, start: str, there: bool) -> Iterator[tuple[str, Facts | None]]:
        if not there:
            return
        self._index.trusted(self._refresh_catalog)
        sagas = self._index.catalog.sagas
        for saga_id in self._index.catalog.ids(start):
            yield saga_id, sagas[saga_id][1]

    def _refresh_catalog(self) -> None:
        catalog = self._index.catalog
        catalog.refresh()
        if catalog.wasteful and os.access(self.path, os.W_OK):
            with self._index.changing():
                catalog.refresh()
                catalog.compact()
            catalog.refresh()
