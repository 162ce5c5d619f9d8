"""Requests to an object store: what they raise as errors of the store, and no secret in any message."""

from __future__ import annotations

import asyncio
import os
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotModifiedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import from_url

from sagaz_core.clock import utc_now
from sagaz_core.errors import CorruptDataError, SchemaError, StorageError, StoreUnavailableError, UsageError
from sagaz_core.storage._rows import digest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
    from datetime import datetime

Result = TypeVar("Result")

_AT_ONCE = 32
_IN_A_LISTING = 1000
FORMAT = 3
"""That of heads, with snapshots that can only be found by who knows that their ids name the saga. Heads of the formats
before are read too; all else is of the first one.
"""
_MARKS = [b"SgS%d" % form for form in range(1, FORMAT + 1)]
_NEWEST = _MARKS[-1]
_LEAD = 12
_NO_BUCKET = re.compile("NoSuchBucket|ContainerNotFound")  # the second is what Azure says
_ELSEWHERE = re.compile("PermanentRedirect|AuthorizationHeaderMalformed|[Rr]eceived redirect")
_NOT_PERMITTED = "access is not permitted: look at the credentials and the bucket's policy"
_STATUS = re.compile(r"status code: (\d{3}[A-Za-z ]*)")


class Version(NamedTuple):
    """Which of an object's states it is: what a write may be conditional on."""

    e_tag: str | None
    version: str | None
    written_at: datetime


class Changed(Exception):  # noqa: N818 - it is what happened, and always handled
    """The object is not what the write was conditional on."""


class Unchanged(Exception):  # noqa: N818 - as above
    """The object is the one that is known."""


class Objects:
    """The objects below a prefix of a bucket. `shown` is the URL for messages, `timeout` is in seconds."""

    def __init__(
        self, url: str, shown: str, config: dict[str, Any], client: dict[str, Any], timeout: float, retries: int
    ) -> None:
        self.shown, self._timeout, self._pid = shown, timeout, os.getpid()
        self._threads: ThreadPoolExecutor | None = None
        limit = timedelta(seconds=timeout)
        retry = {"max_retries": retries, "retry_timeout": limit, "backoff": {"max_backoff": limit / 4}}
        client = {"timeout": limit, "connect_timeout": limit, **client}
        try:
            self._store: Any = from_url(url, config=config, client_options=client, retry_config=retry)  # type: ignore[call-overload] # any of its stores
        except (BaseError, ValueError, TypeError) as error:
            raise UsageError(f"{shown!r} cannot be opened: {_first_line(error)}") from None

    async def get(self, key: str, *, known: Version | None = None) -> tuple[memoryview, Version] | None:
        """Return the object's bytes, not copied, and version; `None` when there is none. Raises `CorruptDataError`.

        Raises `Unchanged`, and nothing is sent but that, when it is still the `known` one.
        """
        try:
            stored, meta = await self._request(self._get, key, known and known.e_tag)
        except FileNotFoundError:
            return None
        except NotModifiedError:
            raise Unchanged from None
        except (AlreadyExistsError, PreconditionError) as error:  # of what was not conditional
            raise self._unavailable(self._why(str(error))) from None
        data = memoryview(stored)[_LEAD:]
        if stored[:3] == _NEWEST[:3] and stored[3:4].isdigit() and stored[3:4] > _NEWEST[3:]:
            raise SchemaError(f"the store {self.shown} was written by a newer release: upgrade pytest-sagaz")
        if stored[:4] not in _MARKS or digest(data) != stored[4:_LEAD]:
            raise CorruptDataError(f"the object {key} of {self.shown} is damaged: restore it")
        return data, Version(meta["e_tag"], meta["version"], meta["last_modified"])

    async def put(
        self, key: str, data: bytes, *, known: Version | None = None, always: bool = False, form: int = 1
    ) -> Version:
        """Write the object if there is none, or if it is still the `known` one, or `always`. Raises `Changed`."""
        mode: Any = "overwrite" if always else "create"
        if known is not None:
            mode = {name: value for name, value in zip(known._fields[:2], known[:2], strict=True) if value is not None}
        try:
            result = await self._request(self._put, key, data, form, mode)
        except (AlreadyExistsError, PreconditionError):
            raise Changed from None
        except FileNotFoundError:
            raise Changed from None  # what it was conditional on is gone
        return Version(result["e_tag"], result["version"], utc_now())

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete the objects, those that are not there too."""
        for start in range(0, len(keys), _IN_A_LISTING):
            try:
                await self._request(self._store.delete, list(keys[start : start + _IN_A_LISTING]))
            except FileNotFoundError:
                continue

    async def keys(self, folder: str, *, after: str | None = None) -> AsyncIterator[str]:
        """Iterate the keys in the folder in order, those after `after`, one request for each thousand."""
        stream = self._store.list(folder, offset=after, chunk_size=_IN_A_LISTING)
        while part := await self._request(next, stream, ()):
            for meta in part:
                yield meta["path"]

    async def size(self) -> int:
        """Return how many bytes all objects take up."""
        total = 0
        stream = self._store.list(chunk_size=_IN_A_LISTING)
        while part := await self._request(next, stream, ()):
            total += sum(meta["size"] for meta in part)
        return total

    def close(self) -> None:
        """Let go of the threads; they are made again when they are needed."""
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False)

    def _get(self, key: str, e_tag: str | None) -> tuple[bytes, Any]:
        result = self._store.get(key, options={"if_none_match": e_tag} if e_tag else None)
        return bytes(result.bytes()), result.meta

    def _put(self, key: str, data: bytes, form: int, mode: Any) -> Any:
        body = b"".join((_MARKS[form - 1], digest(data), data))
        return self._store.put(key, body, mode=mode, use_multipart=False)

    async def _request(self, work: Callable[..., Result], *given: Any) -> Result:
        """Do the work in a thread of ours.

        The driver's own coroutines end in threads of its runtime, which take the whole process down when the
        interpreter ends at that moment.
        """
        if self._pid != os.getpid():
            raise StorageError(f"the store {self.shown} was opened before a fork: open it in the child, or use spawn")
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_AT_ONCE, "sagaz-s3")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, *given)
        except (AlreadyExistsError, NotModifiedError, PreconditionError):
            raise
        except FileNotFoundError as error:
            if _NO_BUCKET.search(str(error)):
                raise self._unavailable(self._why(str(error))) from None
            raise
        except (PermissionDeniedError, UnauthenticatedError):
            raise self._unavailable(_NOT_PERMITTED) from None
        except (BaseError, OSError) as error:
            raise self._unavailable(self._why(str(error))) from None

    def _why(self, text: str) -> str:
        if _NO_BUCKET.search(text):
            return "there is no such bucket"
        if "BadScheme" in text:
            return "its endpoint is without TLS: say allow_http=true if that is meant"
        if _ELSEWHERE.search(text):
            return "the bucket is in another region: look at the options region and endpoint"
        status = _STATUS.search(text)
        if status and status[1][:3] in ("401", "403"):
            return _NOT_PERMITTED
        if status:
            patience = "" if status[1][0] == "4" and status[1][:3] != "429" else f", for as long as {self._timeout:g} s"
            return f"it answered {status[1].strip()}{patience}"
        if "timed out" in text or "Timeout" in text:
            return f"it did not answer within {self._timeout:g} s"
        if "Connect" in text or "sending request" in text:
            return "it cannot be reached: look at the endpoint and the network"
        return "a request failed"

    def _unavailable(self, why: str) -> StoreUnavailableError:
        return StoreUnavailableError(f"the store {self.shown} cannot be used: {why}")


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200]


async def all_of(works: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Return the results, of at most `_AT_ONCE` requests at the same time. When one raises all others end first."""
    turn = asyncio.Semaphore(_AT_ONCE)

    async def one(work: Coroutine[Any, Any, Result]) -> Result:
        async with turn:
            return await work

    try:
        results = await asyncio.gather(*map(one, works), return_exceptions=True)
    finally:
        for work in works:
            work.close()  # one that was cancelled before its turn, else Python warns of it
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results  # type: ignore[return-value] # none of them is an exception
