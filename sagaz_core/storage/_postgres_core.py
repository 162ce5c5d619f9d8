"""What all parts of the PostgreSQL store have: connections, and statements for its schema."""

from __future__ import annotations

import re
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from sagaz_core.clock import utc_now
from sagaz_core.errors import UsageError
from sagaz_core.storage._postgres_connections import Connection, Connections

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime


_SCHEMA_NAME = re.compile(r"[^\W\d]\w*")
_LONGEST_NAME = 63  # bytes: PostgreSQL cuts off the rest
Result = TypeVar("Result")
_NO_TRANSACTION: AbstractAsyncContextManager[object] = nullcontext()


class PostgresCore:
    """The connections of a store."""

    def __init__(
        self,
        dsn: str,
        *,
        schema: str = "public",
        timeout: float = 10.0,
        pool_size: int = 10,
        prepared: bool = True,
        url: str = "",
    ) -> None:
        if not _SCHEMA_NAME.fullmatch(schema) or len(schema.encode()) > _LONGEST_NAME:
            raise UsageError(
                f"{schema!r:.80} is not a schema: give a name of letters, digits and _, of at most 63 bytes"
            )
        self.url = url or dsn
        self.clock: Callable[[], datetime] = utc_now
        self._connections = Connections(self.url, dsn, schema, timeout, pool_size, prepared=prepared)
        self._text = self._connections.text

    async def _read(self, work: Callable[[Connection], Awaitable[Result]], otherwise: Result) -> Result:
        return await self._connections.read(work, otherwise)

    async def _change(self, work: Callable[[Connection], Awaitable[Result]]) -> Result:
        return await self._connections.write(work)

    def _savepoint(self) -> AbstractAsyncContextManager[object]:
        """What a statement runs in that may fail, and after which others run."""
        return _NO_TRANSACTION

    async def _rows(self, statement: str, *values: Any) -> list[Any]:
        none: list[Any] = []
        return await self._read(lambda c: c.fetch(self._text(statement), *values), none)
