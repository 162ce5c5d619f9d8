"""What all parts of the store in a bucket have: its URL, and the heads of sagas."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

from sagaz_core.clock import utc_now
from sagaz_core.errors import CorruptDataError, UsageError
from sagaz_core.storage._s3_head import Head, unpacked_head
from sagaz_core.storage._s3_keys import SAGAS, STEM, ordered, saga_key, saga_of_key
from sagaz_core.storage._s3_objects import FORMAT, Objects, Unchanged, all_of
from sagaz_core.storage._s3_window import Window
from sagaz_core.storage.base import checked_id
from sagaz_core.storage.url import is_secret, safe_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from datetime import datetime

    from sagaz_core.storage._s3_objects import Version

_KNOWN_AT_ONCE = 256
HEADS_AT_ONCE = 64


class S3Core:
    """The bucket of a store, and the heads that it has."""

    def __init__(self, url: str, *, timeout: float = 10.0, retries: int = 10) -> None:
        where, config, client = _read_url(url)
        if not 0 < timeout < float("inf"):
            raise UsageError(f"timeout={timeout} is not a time: give seconds, more than 0")
        shown = {name: value for name, value in config.items() if not is_secret(name)}
        shown |= {"timeout": f"{timeout:g}"} if timeout != 10 else {}
        shown |= {name: str(value).lower() for name, value in client.items()}
        self.url = f"{where}?{urlencode(shown)}" if shown else where
        self.clock: Callable[[], datetime] = utc_now
        self._objects = Objects(where, safe_url(where), config, client, timeout, retries)
        self._known: OrderedDict[str, Head] = OrderedDict()
        self._listed = Window(Head(""))

    def _remember(self, head: Head) -> None:
        self._known[head.saga_id] = head
        self._known.move_to_end(head.saga_id)
        if len(self._known) > _KNOWN_AT_ONCE:
            self._known.popitem(last=False)

    async def _head(self, saga_id: str, known: Head | None = None) -> Head:
        """Return the saga's head; the `known` one, if it is that and was not changed."""
        try:
            key = saga_key(checked_id(saga_id))
        except UsageError:
            return Head(saga_id)  # no saga has such an id
        version = known.version if known is not None and known.saga_id == saga_id else None
        try:
            found = await self._objects.get(key, known=version)
        except Unchanged:
            assert known is not None  # else nothing could be unchanged
            return known
        except CorruptDataError as error:
            raise CorruptDataError(f"saga {saga_id!r} cannot be read: {error}") from error
        return Head(saga_id) if found is None else unpacked_head(saga_id, *found)

    async def _put_head(self, head: Head, body: bytes) -> Version:
        """Write the head if there is still the one that was read. Raises `Changed`."""
        return await self._objects.put(saga_key(head.saga_id), body, known=head.version, form=FORMAT)

    async def _heads(
        self, prefix: str, cursor: str | None, wanted: int
    ) -> AsyncIterator[tuple[str, Head | CorruptDataError]]:
        """Iterate the sagas behind the cursor in order of id, with the head or what is wrong with it.

        `wanted` of them are read at once.
        """
        part: list[str] = []
        size = max(1, min(wanted, HEADS_AT_ONCE))
        async for saga_id in self._ids(prefix, cursor):
            part.append(saga_id)
            if len(part) == size:
                for pair in await all_of([self._head_or_damage(name) for name in part]):
                    yield pair
                part.clear()
        for pair in await all_of([self._head_or_damage(name) for name in part]):
            yield pair

    async def _head_or_damage(self, saga_id: str) -> tuple[str, Head | CorruptDataError]:
        try:
            return saga_id, await self._head(saga_id)
        except CorruptDataError as error:
            return saga_id, error

    async def _ids(self, prefix: str, cursor: str | None) -> AsyncIterator[str]:
        after = None
        if cursor is not None and cursor >= prefix:
            after = f"{SAGAS}/{ordered(cursor)}"
        elif len(prefix) > 1:
            after = f"{SAGAS}/{ordered(prefix)[:-1]}"  # the key of the prefix itself is behind this
        together: list[str] = []  # keys of ids that are too long to be told apart, or ordered, by them
        async for key in self._objects.keys(SAGAS, after=after):
            saga_id = saga_of_key(key)
            if together and (saga_id is not None or _stem(key) != _stem(together[0])):
                for name in await self._in_order(together):
                    if name.startswith(prefix) and (cursor is None or name > cursor):
                        yield name
                together.clear()
            if saga_id is None:
                together.append(key)
            elif saga_id.startswith(prefix) and (cursor is None or saga_id > cursor):
                yield saga_id
            elif saga_id > prefix and not saga_id.startswith(prefix):
                return
        for name in await self._in_order(together):
            if name.startswith(prefix) and (cursor is None or name > cursor):
                yield name

    async def _in_order(self, keys: Sequence[str]) -> list[str]:
        found = await all_of([self._objects.get(key) for key in keys])
        return sorted(unpacked_head(key, *one).saga_id for key, one in zip(keys, found, strict=True) if one)


def _read_url(url: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return the URL of bucket and prefix, the driver's options and those of its HTTP client."""
    where, _, query = url.partition("?")
    scheme, _, location = where.partition("://")
    bucket, _, prefix = location.partition("/")
    if not bucket:
        raise UsageError(f"{safe_url(url)!r} names no bucket: write {scheme}://bucket/prefix")
    if "#" in where:  # the driver would leave out what follows
        raise UsageError(f"{safe_url(url)!r} has a # in the bucket or the prefix: write it as %23")
    if len(prefix) > 256 or any(part in ("", ".", "..") for part in prefix.rstrip("/").split("/") if prefix):
        raise UsageError(f"{safe_url(url)!r} has a prefix that is no path of at most 256 characters")
    config: dict[str, Any] = dict(parse_qsl(query, keep_blank_values=True))
    client = {}
    if "allow_http" in config:
        text = config.pop("allow_http")
        if text not in ("true", "false"):
            raise UsageError(f"{safe_url(url)!r} gives allow_http as {text!r}: give true or false")
        client["allow_http"] = text == "true"
    return where.rstrip("/"), config, client


def _stem(key: str) -> str:
    return key[: len(SAGAS) + 1 + STEM]


def sound(found: Head | CorruptDataError) -> Head:
    if isinstance(found, CorruptDataError):
        raise found
    return found
