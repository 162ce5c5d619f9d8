"""What is known of all sagas of a folder: the catalog and the table of snapshot ids, and how they are made anew.

Both are told before a saga's file is changed what the change will be, and say only where to look; so a death in the
middle leaves them right. They are not kept safe from a loss of power: after the machine was started again, and when
they are missing or damaged, they are made anew from the sagas' files.
"""

from __future__ import annotations

import errno
import logging
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sagaz_core.errors import CorruptDataError
from sagaz_core.storage._file_catalog import Catalog, Facts, facts_of
from sagaz_core.storage._file_ids import DamagedIndex, IdTable, open_file
from sagaz_core.storage._file_log import locked, not_there, take, unlock
from sagaz_core.storage._file_segment import Segment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sagaz_core.storage._room import Room

logger = logging.getLogger(__name__)

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_MAY_NOT = (errno.EROFS, errno.EACCES, errno.EPERM)


class FileIndex:
    """The index in `folder`, of the sagas' files in `segments`."""

    def __init__(self, folder: str, segments: str, lock_timeout: float, room: Room) -> None:
        self.folder, self._segments, self._timeout, self._room = folder, segments, lock_timeout, room
        self._state = os.path.join(folder, "state")
        self._lock_path = os.path.join(folder, "lock")
        self._made: tuple[int, int] | None = None
        self._lock = -1
        self.ids = IdTable(folder)
        self.catalog: Catalog

    def close(self) -> None:
        """Let go of the files."""
        self._made = None
        if self._lock >= 0:
            self.ids.close()
            self.catalog.close()
            os.close(self._lock)
            self._lock = -1

    def made(self) -> tuple[int, int] | None:
        """Return which index there is; another one was made anew."""
        try:
            found = os.stat(self._state)
        except OSError as error:
            if not not_there(error):
                raise
            return None
        return found.st_ino, found.st_mtime_ns

    def begin(self) -> tuple[int, int]:
        """Take the index's lock, with an index there that is right, and return which one it is."""
        if self._made is None:
            self.ready()
        take(self._lock, self._lock_path, self._timeout)
        try:
            made = self.made()
            if made is None or made != self._made:
                made = self._reopen()
        except BaseException:
            unlock(self._lock)
            raise
        return made

    def end(self) -> None:
        """Give the index's lock back."""
        unlock(self._lock)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the index's lock, with an index there that is right."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    def ready(self) -> None:
        """Have an index that can be asked; there may be none when the folder has no sagas and cannot be written."""
        made = self.made()
        if made is not None and made == self._made:
            return
        if self._lock < 0:
            os.makedirs(self.folder, 0o700, exist_ok=True)
            self._lock = open_file(self._lock_path, create=made is None)
            self.catalog = Catalog(self.folder, self._lock)
        if made is None or not self._this_boot():
            try:
                with locked(self._lock, self._lock_path, self._timeout):
                    self._reopen()
            except OSError as error:
                if made is None or error.errno not in _MAY_NOT:
                    raise
        self._use(made)

    def _reopen(self) -> tuple[int, int]:
        made = self.made()
        if made is None or not self._this_boot():
            self._make()
            made = self.made()
        assert made is not None
        self._use(made)
        return made

    def _use(self, made: tuple[int, int] | None) -> None:
        self.ids.close()
        self.catalog.close()
        self._made = self.made() if made is None else made

    def _this_boot(self) -> bool:
        """Whether the machine was not started again since the index was made."""
        with open(self._state, encoding="utf-8") as file:
            return file.read() == boot_id()

    def trusted(self, ask: Callable[[], object]) -> None:
        """Ask the index, and make it anew when it is damaged."""
        self.ready()
        try:
            ask()
        except DamagedIndex:
            logger.warning("the index in %s is damaged and is made anew", self.folder)
            self.remake()
            ask()

    def remake(self) -> None:
        """Make the index anew."""
        with locked(self._lock, self._lock_path, self._timeout):
            self._make()
            self._use(self.made())

    def _make(self) -> None:
        """Make the index from the sagas' files. Under the lock; those who write sagas meanwhile tell the new one."""
        if self.made() is not None:
            os.unlink(self._state)  # from now on everybody waits for the lock
        self.ids.close()
        self.catalog.close()
        for name in os.listdir(self.folder):
            if name.startswith("ids."):
                os.unlink(os.path.join(self.folder, name))
        started = self._stamp()
        known = {saga_id: (key, facts) for key, saga_id, facts in self._look(self._all(0))}
        # Files that were changed meanwhile, by one who may have died before he could tell.
        known.update({saga_id: (key, facts) for key, saga_id, facts in self._look(self._all(started))})
        self.catalog.replace((key, saga_id, facts) for saga_id, (key, facts) in known.items())
        new = f"{self._state}.new"
        with open(new, "w", encoding="utf-8") as file:
            file.write(boot_id())
        os.replace(new, self._state)

    def _stamp(self) -> int:
        """Return the file system's own time."""
        os.utime(self._lock_path)
        return os.stat(self._lock_path).st_mtime_ns

    def _all(self, since: int) -> Iterator[Segment]:
        for entry in sorted(_entries(self._segments)):
            for path in sorted(_entries(entry)):
                key = _key(path)
                if key is not None and os.stat(path).st_mtime_ns >= since:
                    yield Segment(key, path, self._room)

    def _look(self, segments: Iterator[Segment]) -> Iterator[tuple[bytes, str, Facts | None]]:
        for segment in segments:
            facts: Facts | None = None
            try:
                if segment.refresh():
                    facts = facts_of(segment.index)
            except CorruptDataError as error:
                logger.warning("a saga is indexed as far as it can be read: %s", error)
            for snapshot_id in segment.readable_ids():
                self.ids.claim(snapshot_id, segment.key)
            if segment.saga_id:
                yield segment.key, segment.saga_id, facts
            segment.close()


def boot_id() -> str:
    """Return what tells this run of the machine from others, `""` where that is not known."""
    try:
        with open(_BOOT_ID, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def _entries(folder: str) -> list[str]:
    try:
        return [entry.path for entry in os.scandir(folder)]
    except OSError as error:
        if not_there(error):
            return []
        raise


def _key(path: str) -> bytes | None:
    try:
        return bytes.fromhex("".join(path.split(os.sep)[-2:]))
    except ValueError:
        return None
