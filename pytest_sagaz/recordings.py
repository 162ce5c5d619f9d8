"""Finding recordings: an id in the store, a file, the id of a file in `sagaz_recordings`, or a pattern of these."""

from __future__ import annotations

import asyncio
import glob
import os
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagaz_core.adapters.locate import import_module
from sagaz_core.errors import UnknownSagaError, UsageError
from sagaz_core.recording.base import Recording
from sagaz_core.storage.codec import importing_class
from sagaz_core.storage.jsonform import parse_json
from sagaz_core.storage.url import safe_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_sagaz.settings import Settings
    from sagaz_core.storage.base import SnapshotStorage

_WILD = re.compile(r"[*?[]")
SUFFIX = ".json"
_TOGETHER = 8  # fewer than a store has connections


@dataclass(frozen=True)
class Found:
    """A recording, and where it is from: a file or the store. Only the store may say where its class is (`trusted`)."""

    recording: Recording
    path: Path | None = None
    trusted: bool = False

    @property
    def saga_id(self) -> str:
        """The saga's id."""
        return self.recording.saga_id


def find_all(specs: Sequence[str], settings: Settings) -> list[Found]:
    """Return what each of them names, each saga once. Raises `UsageError`, `UnknownSagaError`, `CodecError`…"""
    found: dict[str, Found] = {}
    for spec in specs:
        for one in find(spec, settings):
            other = found.setdefault(one.saga_id, one)
            if other is not one and other.recording.events != one.recording.events:
                raise UsageError(
                    f"two different recordings are of saga {one.saga_id!r}, {_where(other, settings)} and "
                    f"{_where(one, settings)}: name one of them"
                )
    return list(found.values())


def _where(found: Found, settings: Settings) -> str:
    return str(found.path) if found.path else f"in {safe_url(settings.store.value)}"


def find(spec: str, settings: Settings, *folders: Path) -> list[Found]:
    """Return what one spec names. A path is relative to the `folders`, or to where pytest was started."""
    if not spec or "\0" in spec:
        raise UsageError(f"{spec!r} is not a saga id, a path or a pattern")
    for folder in (*folders, settings.folder):
        path = folder / spec
        if _is(path, os.path.isfile):
            return [_load(path, settings)]
        if _is(path, os.path.isdir) and (os.sep in spec or "/" in spec):
            return _all_of(spec, sorted(path.glob(f"*{SUFFIX}")), settings)
    try:
        return [_by_id(spec, settings)]
    except UnknownSagaError:
        if _WILD.search(spec):
            return _by_pattern(spec, settings, folders)
        if spec.endswith(SUFFIX):
            raise UnknownSagaError(f"there is no recording {spec!r}: check the path") from None
        raise


def _is(path: Path, what: Any) -> bool:
    try:
        return bool(what(path))
    except (OSError, ValueError):  # a name that no file can have
        return False


def _by_id(saga_id: str, settings: Settings) -> Found:
    try:
        return _of_store(asyncio.run(_from_store(settings.open_store(), saga_id)), settings)
    except UnknownSagaError as error:
        for path in _own_files(settings):
            if _id_in(path) == saga_id:
                return _load(path, settings)
        raise error


def _of_store(recording: Recording, settings: Settings) -> Found:
    settings.from_store[id(recording)] = recording
    return Found(recording, trusted=True)


async def _from_store(storage: SnapshotStorage, saga_id: str) -> Recording:
    try:
        return await Recording.from_storage(storage, saga_id, resolve=importing_class)
    finally:
        await storage.close()


def _by_pattern(spec: str, settings: Settings, folders: Sequence[Path]) -> list[Found]:
    paths: list[str] = []
    for folder in (*folders, settings.folder):
        paths = paths or sorted(glob.glob(spec, root_dir=folder, recursive=True))
        paths = [str(folder / path) for path in paths]
    files = [Path(path) for path in paths if os.path.isfile(path) and path.endswith(SUFFIX)]
    if files:
        return _all_of(spec, files, settings)
    found = [_of_store(recording, settings) for recording in asyncio.run(_all_like(settings.open_store(), spec))]
    found += [_load(path, settings) for path in _own_files(settings) if fnmatchcase(_id_in(path) or "", spec)]
    if not found:
        raise UnknownSagaError(
            f"no recording is like {spec!r}, neither a saga in the store {safe_url(settings.store.value)} nor a file"
        )
    return list({one.saga_id: one for one in reversed(found)}.values())[::-1]


async def _all_like(storage: SnapshotStorage, pattern: str) -> list[Recording]:
    """Return the recordings of the store whose ids are like the pattern, some of them read at the same time.

    The store is opened once for all: to connect takes longer than to read.
    """
    try:
        ids = await _ids_like(storage, pattern)
        found: list[Recording] = []
        for first in range(0, len(ids), _TOGETHER):
            reads = [Recording.from_storage(storage, one, resolve=importing_class) for one in ids[first:][:_TOGETHER]]
            for read in await asyncio.gather(*reads, return_exceptions=True):
                if isinstance(read, BaseException):
                    raise read
                found.append(read)
        return found
    finally:
        await storage.close()


async def _ids_like(storage: SnapshotStorage, pattern: str) -> list[str]:
    found: list[str] = []
    cursor: str | None = None
    prefix = _WILD.split(pattern, maxsplit=1)[0]
    while True:
        page = await storage.list_sagas(prefix=prefix, cursor=cursor)
        found += [record.saga_id for record in page.items if fnmatchcase(record.saga_id, pattern)]
        cursor = page.cursor
        if cursor is None:
            return found


def _all_of(spec: str, paths: Sequence[Path], settings: Settings) -> list[Found]:
    if not paths:
        raise UnknownSagaError(f"there is no recording in {spec!r}: it has no {SUFFIX} files")
    return [_load(path, settings) for path in paths]


def _load(path: Path, settings: Settings) -> Found:
    for group in settings.apps:  # a file's classes are found among what is imported
        for module in group.value:
            import_module(module.partition(":")[0])
    return Found(Recording.load(path), path)


def _own_files(settings: Settings) -> Iterator[Path]:
    """Iterate the files of the ini `sagaz_recordings`."""
    for pattern in settings.config.getini("sagaz_recordings"):
        base = settings.config.rootpath
        for path in sorted(glob.glob(pattern, root_dir=base, recursive=True)):
            if (base / path).is_dir():
                yield from sorted((base / path).glob(f"*{SUFFIX}"))
            elif path.endswith(SUFFIX):
                yield base / path


def _id_in(path: Path) -> str | None:
    """Return the id of the saga in the file; one that cannot be read is only an error when it is asked for."""
    try:
        content = parse_json(path.read_bytes())
        return str(content["saga"]["saga_id"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
