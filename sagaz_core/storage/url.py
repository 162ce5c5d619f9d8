"""Stores by URL: `memory://`, `sqlite:///path.db`, and the schemes that plugins bring."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sagaz_core.errors import MissingExtraError, UsageError, nearest

if TYPE_CHECKING:
    from sagaz_core.storage.base import SnapshotStorage

Opener = Callable[[str], "SnapshotStorage"]

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_SECRET_NAME = "(?:pass|pwd|secret|token|key|credential|signature|sig|auth)"
_SECRET = re.compile(rf"([?&;#][^=&;#]*{_SECRET_NAME}[^=&;#]*=)[^&;#]*", re.IGNORECASE)


def open_storage(url: str) -> SnapshotStorage:
    """Return the store that the URL names. Its backend is imported now, and touched by its first use.

    Raises `UsageError` for a URL that cannot be read or a scheme that is not known.
    """
    if not isinstance(url, str):
        raise UsageError(f"{url!r:.80} is not a storage URL: give a text such as 'sqlite:///path/to/file.db'")
    scheme, separator, _ = url.partition("://")
    if not separator or not _SCHEME.fullmatch(scheme):
        raise UsageError(
            f"{safe_url(url)!r} is not a storage URL: write scheme://…, such as sqlite:///path/to/file.db or memory://"
        )
    openers = storage_openers()
    opener = openers.get(scheme.lower())
    if opener is None:
        known = ", ".join(f"{name}://" for name in sorted(openers))
        raise UsageError(f"{safe_url(url)!r} has an unknown scheme{nearest(scheme.lower(), openers)}; known: {known}")
    return opener(url)


def storage_openers() -> dict[str, Opener]:
    """Return the opener of every URL scheme that is known, those of plugins included."""
    from sagaz_core.plugins import BUILT_IN, results_by_plugin

    openers: dict[str, Opener] = {}
    origins: dict[str, str] = {}
    for plugin, schemes in results_by_plugin("sagaz_storages"):
        for scheme, opener in schemes.items():
            if origins.get(scheme, BUILT_IN) != BUILT_IN:
                raise UsageError(
                    f"the sagaz plugins {origins[scheme]!r} and {plugin!r} both bring {scheme}:// stores: uninstall one"
                )
            openers[scheme] = opener
            origins[scheme] = plugin
    return openers


def safe_url(url: str) -> str:
    """Return the URL for a message: passwords, and options that look like secrets, are `***`.

    A text that is no URL is treated alike. In doubt too much is hidden: a password may hold any character.
    """
    url = _SECRET.sub(r"\1***", url)
    start = url.find("://") + 3 if "://" in url else 0
    userinfo, at, host = url[start:].rpartition("@")
    user, colon, _ = userinfo.partition(":")
    if not at or not colon or url.startswith("/", start):
        return url
    return f"{url[:start]}{user}:***@{host}"


def is_secret(option: str) -> bool:
    """Whether a URL's option of that name looks like a secret."""
    return re.search(_SECRET_NAME, option, re.IGNORECASE) is not None


def _open_memory(url: str) -> SnapshotStorage:
    from sagaz_core.storage.memory import open_memory

    return open_memory(url)


def _open_sqlite(url: str) -> SnapshotStorage:
    from sagaz_core.storage.sqlite import open_sqlite

    return open_sqlite(url)


def _open_postgres(url: str) -> SnapshotStorage:
    with _needs("PostgreSQL", "postgres", "asyncpg"):
        from sagaz_core.storage.postgres import open_postgres

    return open_postgres(url)


def _open_redis(url: str) -> SnapshotStorage:
    with _needs("Redis", "redis", "redis", "hiredis"):
        from sagaz_core.storage.redis import open_redis

    return open_redis(url)


@contextmanager
def _needs(store: str, extra: str, *drivers: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in drivers:
            raise
        raise MissingExtraError(
            f"{store} snapshots need the {extra} extra: pip install 'pytest-sagaz[{extra}]'"
        ) from error


def _open_file(url: str) -> SnapshotStorage:
    try:
        import fcntl  # noqa: F401 - the store needs its locks, which Windows does not have
    except ImportError as error:
        raise UsageError(f"{safe_url(url)!r} needs file locks, which this system has not: use sqlite:///") from error
    from sagaz_core.storage.file import open_file_store

    return open_file_store(url)


def _open_s3(url: str) -> SnapshotStorage:
    with _needs("S3", "s3", "obstore"):
        import obstore  # noqa: F401 - the store imports it; only its own absence is told as such

        from sagaz_core.storage.s3 import open_s3

    return open_s3(url)


OPENERS: dict[str, Opener] = {
    **dict.fromkeys(("s3", "gs", "az"), _open_s3),
    "file": _open_file,
    "memory": _open_memory,
    "postgresql": _open_postgres,
    "redis": _open_redis,
    "rediss": _open_redis,
    "sqlite": _open_sqlite,
}
"""The stores that are built in."""
