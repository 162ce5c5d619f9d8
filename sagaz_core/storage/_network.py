"""What stores behind a network have in common: a URL's options, connections to have, and trying again."""

from __future__ import annotations

import asyncio
import math
import os
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from sagaz_core._within import Within
from sagaz_core.clock import monotonic
from sagaz_core.errors import DuplicateSagaError, StorageError, StoreUnavailableError, UsageError, nearest, quoted
from sagaz_core.storage.url import safe_url

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
    from urllib.parse import SplitResult

    from sagaz_core.storage.base import Batch

Result = TypeVar("Result")

_FIRST_DELAY = 0.02
_LONGEST_DELAY = 0.5
_LONGEST = 1e9  # what drivers make of more overflows


class LostConnectionError(Exception):
    """The server could not be reached, or the connection broke; what was asked may have been done or not."""


class Pool:
    """At most `size` connections of one event loop; who comes when all are taken waits.

    A connection is given back as it is, with nothing sent to reset or to try it: a store leaves no session state
    behind, and does again what fails on a stale one. The one that was used last is taken first.
    """

    __slots__ = ("_connect", "_free", "_idle", "ready")

    def __init__(self, size: int, connect: Callable[[], Awaitable[Any]]) -> None:
        self._connect = connect
        self._free = asyncio.Semaphore(size)
        self._idle: list[Any] = []
        self.ready = False
        """Whether the store's schema was looked at."""

    async def take(self) -> Any:
        """Return a connection that nobody else has, a new one if need be."""
        await self._free.acquire()
        if self._idle:
            return self._idle.pop()
        try:
            return await self._connect()
        except BaseException:
            self._free.release()
            raise

    def give_back(self, connection: Any | None) -> None:
        """Take a connection back, or `None` in the place of one that is of no use any more."""
        if connection is not None:
            self._idle.append(connection)
        self._free.release()

    def empty(self) -> list[Any]:
        """Return the connections that nobody has, for the caller to close."""
        idle, self._idle = self._idle, []
        return idle


async def persistently(url: str, timeout: float, work: Callable[[], Awaitable[Result]]) -> Result:
    """Return what `work` returns; when it raises `LostConnectionError` it is begun anew, for `timeout` seconds.

    Raises `StoreUnavailableError` after them. `work` must be such that doing it twice is doing it once.
    """
    deadline = monotonic() + timeout
    delay = _FIRST_DELAY
    lost: LostConnectionError | None = None
    try:
        with Within(timeout) as scope:
            while True:
                try:
                    return await work()
                except LostConnectionError as error:
                    lost = error
                    if monotonic() + delay >= deadline:
                        break
                await asyncio.sleep(delay)
                delay = min(2 * delay, _LONGEST_DELAY)
    except TimeoutError as error:
        if not scope.expired:
            raise
        if lost is None:
            raise StoreUnavailableError(
                f"the store {safe_url(url)} did not answer within {timeout:g} s: look at the server, or raise ?timeout"
            ) from error
    raise StoreUnavailableError(f"the store {safe_url(url)} cannot be reached: {one_line(lost)}") from lost


def one_line(error: BaseException | None) -> str:
    """Return the error's message for a message of ours."""
    return " ".join(str(error).split()) or type(error).__name__


def unavailable(error: Exception) -> bool:
    """Whether the error is of the whole store, and not of what it was given."""
    return isinstance(error, StorageError) and not isinstance(error, DuplicateSagaError)


def says_nothing(batch: Batch) -> bool:
    """Whether there is nothing to write."""
    return not (batch.saga or batch.events or batch.snapshots or batch.summary)


# ---- URLs


def split_url(url: str, *, many_hosts: bool = False) -> SplitResult:
    """Return the parts of the URL. Raises `UsageError` when its port is none, or one of `many_hosts` with commas."""
    try:
        parts = urlsplit(url)
        hosts = parts.netloc.rpartition("@")[2]
        servers = hosts.split(",") if many_hosts else [hosts]
        if len(servers) > 1 and "" in servers:
            raise ValueError("a comma without a host")
        for server in servers:
            _ = urlsplit(f"//{server}").port
    except ValueError:
        reason = "its host or port cannot be read"  # not as `error` says it, which may quote a piece of a password
        raise UsageError(f"{safe_url(url)!r} is not a storage URL: {reason}; {_ENCODE}") from None
    if parts.fragment:
        raise UsageError(f"{safe_url(url)!r} is not a storage URL: it has a #; {_ENCODE}")
    return parts


_ENCODE = "percent-encode special characters, in a password above all"


def url_options(url: str, known: Mapping[str, object], others: Iterable[str] = ()) -> dict[str, str]:
    """Return the options of the URL that are `known` or among `others`. Raises `UsageError` that names any other."""
    found = dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))
    names = [*known, *others]
    for name in found:
        if name not in names:
            raise UsageError(
                f"{safe_url(url)!r} has the unknown option {name!r}{nearest(name, names)}; known: {quoted(known)}"
            )
    return found


def seconds(url: str, name: str, text: str) -> float:
    """Return the option's value as seconds. Raises `UsageError`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= _LONGEST:
        raise UsageError(f"{safe_url(url)!r} gives {name} as {text!r}: give seconds, such as {name}=5")
    return value


def one_of(url: str, name: str, text: str, known: Sequence[str]) -> None:
    """Raise `UsageError` when the option's value is not among those that are known."""
    if text not in known:
        values = f"{', '.join(known[:-1])} or {known[-1]}"
        raise UsageError(f"{safe_url(url)!r} gives {name} as {text!r}: give {values}")


def readable(url: str, options: Mapping[str, str], names: Iterable[str]) -> None:
    """Raise `UsageError` when a file that one of these options names cannot be read.

    The drivers find that out when they connect, and say it as they say that the server is not there.
    """
    for name in names:
        path = options.get(name)
        try:
            if path:
                os.close(os.open(path, os.O_RDONLY))
        except (OSError, ValueError) as error:
            why = "it has a NUL" if path and "\0" in path else getattr(error, "strerror", None) or error
            raise UsageError(f"{safe_url(url)!r} gives {name} as {path!r}, which cannot be read: {why}") from None


def count(url: str, name: str, text: str, least: int = 1) -> int:
    """Return the option's value as a number. Raises `UsageError`."""
    if not text.isdecimal() or len(text) > 6 or int(text) < least:
        raise UsageError(f"{safe_url(url)!r} gives {name} as {text!r}: give a number from {least} on")
    return int(text)
