"""Connections to one SQLite file: opened at need, kept for the next use, closed before a fork and at the end."""

from __future__ import annotations

import os
import sqlite3
import stat
import sys
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sagaz_core.clock import monotonic
from sagaz_core.errors import SchemaError, StorageError, StoreUnavailableError, UsageError
from sagaz_core.storage._sqlite_statements import APPLICATION_ID, MIGRATIONS, SCHEMA_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Result = TypeVar("Result")
Given = TypeVar("Given")

_getpid = os.getpid
_RETRY_DELAY = 0.005
_SMALLEST = 512
_UNFIT = (UnicodeEncodeError, OverflowError)
_FOREIGN = (sqlite3.Error, UnicodeDecodeError)  # the second where a message quotes what is damaged
_LOCKED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_UNAVAILABLE = {
    sqlite3.SQLITE_READONLY: "it, or the folder it is in, cannot be written to",
    sqlite3.SQLITE_PERM: "access is not permitted",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened: look at the permissions of it and of its folder",
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_IOERR: "the disk gives an error, or has no space left",
    sqlite3.SQLITE_NOMEM: "there is not enough memory",
}
_DAMAGED = {
    sqlite3.SQLITE_NOTADB: "it is not a SQLite database",
    sqlite3.SQLITE_CORRUPT: "it is damaged: restore it, or save what can be read with `sqlite3 FILE .recover`",
}


class _Connection(sqlite3.Connection):
    """A connection that knows the device and number of its file."""

    place: tuple[int, int] | None = None

    if (3, 12) <= sys.version_info < (3, 12, 4):  # they warn of numbered parameters as of named ones (gh-117995)

        def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
            return super().execute(sql, _numbered(parameters) if "?1" in sql else parameters)

        def executemany(self, sql: str, parameters: Any, /) -> sqlite3.Cursor:
            return super().executemany(sql, map(_numbered, parameters) if "?1" in sql else parameters)


def _numbered(row: Sequence[Any]) -> dict[str, Any]:
    return {str(number): value for number, value in enumerate(row, 1)}


class Connections:
    """The connections of one store. A call takes one and gives it back, so each is used by one thread at a time.

    SQLite forbids to carry a connection, even an idle one, through a fork: idle ones are closed before it, and those
    that a fork below Python left in the child are put aside, never used or closed there.
    """

    def __init__(self, path: str, busy_timeout: float) -> None:
        self.path = path
        self._busy_timeout = busy_timeout
        self._idle = _Idle()
        _living.add(self._idle)
        # A connection that is dropped without close() is a ResourceWarning from Python 3.13 on.
        weakref.finalize(self, self._idle.close)

    def rows(self, statement: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        """Return all rows that the statement gives; none when there is no database (then none is made)."""
        connection = self._idle.take() or self._take(create=False)
        if connection is None:
            return []
        try:
            found = connection.execute(statement, values).fetchall()
        except _FOREIGN as error:
            raise self._failed(connection, error) from error
        except _UNFIT as error:
            raise self._unfit(connection, error) from error
        self._idle.put(connection)
        return found

    def read(self, work: Callable[[sqlite3.Connection], Result], otherwise: Result) -> Result:
        """Return what `work` returns, or `otherwise` when there is no database (then none is made)."""
        connection = self._take(create=False)
        return otherwise if connection is None else self._use(connection, work)

    def change(self, work: Callable[[sqlite3.Connection], Result], otherwise: Result) -> Result:
        """Do as `read` does, in a transaction: `work` is done wholly, or not at all when it raises."""
        connection = self._take(create=False)
        return otherwise if connection is None else self._use(connection, lambda c: _in_transaction(c, work))

    def write(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Do as `change` does, and make the database if there is none."""
        connection = self._take(create=True)
        assert connection is not None
        return self._use(connection, lambda c: _in_transaction(c, work))

    def close(self) -> None:
        """Close the idle connections. The next use opens one again."""
        self._idle.close()

    def _use(self, connection: _Connection, work: Callable[[sqlite3.Connection], Result]) -> Result:
        try:
            result = work(connection)
        except _FOREIGN as error:
            raise self._failed(connection, error) from error
        except _UNFIT as error:
            raise self._unfit(connection, error) from error
        except BaseException:
            self._idle.put(connection)
            raise
        self._idle.put(connection)
        return result

    def _failed(self, connection: _Connection, error: Exception) -> StorageError:
        connection.close()
        return self._translated(error)

    def _unfit(self, connection: _Connection, error: Exception) -> UsageError:
        self._idle.put(connection)
        return UsageError(f"SQLite cannot store this text or number: {error}")

    def _take(self, create: bool) -> _Connection | None:
        connection = self._idle.take()
        if connection is not None and not create:
            return connection
        if connection is not None and connection.place != _place(self.path):
            # The file was deleted or replaced: what is written to the old one would be lost.
            connection.close()
            self._idle.close()
            connection = None
        try:
            return connection or self._opened(create)
        except _FOREIGN as error:
            raise self._translated(error) from error
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise StoreUnavailableError(f"the store {self.path} cannot be used: {error.strerror or error}") from error

    def _opened(self, create: bool) -> _Connection | None:
        try:
            found = os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            if not create:
                return None
            _create_file(self.path)
        else:
            if stat.S_ISDIR(found.st_mode):
                raise StorageError(f"the store {self.path} is a folder: name a file in it")
            if 0 < found.st_size < _SMALLEST:  # SQLite would take it for an empty database, and write over it
                raise StorageError(f"the store {self.path} cannot be read: {_DAMAGED[sqlite3.SQLITE_NOTADB]}")
        deadline = monotonic() + self._busy_timeout
        while True:
            connection = self._connected("mode=rw")
            try:
                ready = self._prepared(connection, create)
            except sqlite3.Error as error:
                connection.close()
                # Switching to WAL and recovering a log fail at once when another process does, whatever the timeout.
                if _primary(error) in _LOCKED and monotonic() < deadline:
                    time.sleep(_RETRY_DELAY)
                    continue
                if not create and _primary(error) in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
                    return self._opened_unchangeable(error)
                raise
            except BaseException:
                connection.close()
                raise
            if ready:
                connection.place = _place(self.path)
                return connection
            connection.close()
            return None

    def _opened_unchangeable(self, error: sqlite3.Error) -> _Connection | None:
        """Open a database in a folder where no log can be made. Only right when there is no log either."""
        if os.path.exists(f"{self.path}-wal") or not os.access(self.path, os.R_OK):
            raise error
        connection = self._connected("mode=ro&immutable=1")
        try:
            if self._prepared(connection, create=False):
                return connection
        except BaseException:
            connection.close()
            raise
        connection.close()
        return None

    def _connected(self, options: str) -> _Connection:
        return sqlite3.connect(
            f"{Path(self.path).as_uri()}?{options}",
            uri=True,
            timeout=self._busy_timeout,
            isolation_level=None,
            check_same_thread=False,
            factory=_Connection,
        )

    def _prepared(self, connection: sqlite3.Connection, create: bool) -> bool:
        """Whether the database has our tables, at the end; `create` makes them."""
        connection.execute("PRAGMA synchronous=NORMAL")
        version = self._version_now(connection)
        if create:
            connection.execute("PRAGMA journal_mode=WAL")
        if version < SCHEMA_VERSION and (version or create):
            _in_transaction(connection, self._migrate)
            version = SCHEMA_VERSION
        return version > 0

    def _migrate(self, connection: sqlite3.Connection) -> None:
        # Another process may have done it between the look and the lock.
        for version in range(self._version(connection) + 1, SCHEMA_VERSION + 1):
            for statement in MIGRATIONS[version]:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version={version}")
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")

    def _version_now(self, connection: sqlite3.Connection) -> int:
        # Its parts are read in one transaction, or another process's first start may fall between them.
        connection.execute("BEGIN")
        try:
            return self._version(connection)
        finally:
            connection.execute("ROLLBACK")

    def _version(self, connection: sqlite3.Connection) -> int:
        """Return the version of our tables in it, 0 for an empty database."""
        application: int = connection.execute("PRAGMA application_id").fetchone()[0]
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        if application != APPLICATION_ID:
            if application or version or connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
                raise StorageError(f"the store {self.path} is a database of another application: use a file of its own")
            return 0
        if version > SCHEMA_VERSION:
            raise SchemaError(
                f"the store {self.path} has schema {version}, this release reads up to {SCHEMA_VERSION}: "
                f"upgrade pytest-sagaz"
            )
        return version

    def _translated(self, error: Exception) -> StorageError:
        code = _primary(error)
        if code in _LOCKED:
            return StoreUnavailableError(
                f"the store {self.path} was locked by another process for more than {self._busy_timeout:g} s: "
                f"find out what holds it, or raise ?busy_timeout"
            )
        if code in _UNAVAILABLE:
            return StoreUnavailableError(f"the store {self.path} cannot be used: {_UNAVAILABLE[code]} ({error})")
        if code in _DAMAGED:
            return StorageError(f"the store {self.path} cannot be read: {_DAMAGED[code]}")
        return StorageError(f"the store {self.path} failed: {error}")


class _Idle:
    """Connections that nobody uses now, and the process that they belong to."""

    __slots__ = ("__weakref__", "_connections", "_pid")

    def __init__(self) -> None:
        self._connections: list[_Connection] = []
        self._pid = _getpid()

    def take(self) -> _Connection | None:
        if self._pid != _getpid():
            self._leave_inherited()
        try:
            return self._connections.pop()
        except IndexError:
            return None

    def put(self, connection: _Connection) -> None:
        self._connections.append(connection)

    def close(self) -> None:
        if self._pid != _getpid():
            self._leave_inherited()
        while self._connections:
            self._connections.pop().close()

    def _leave_inherited(self) -> None:
        self._pid = _getpid()
        _inherited.extend(self._connections)
        self._connections.clear()


_living: weakref.WeakSet[_Idle] = weakref.WeakSet()
_inherited: list[_Connection] = []


def _close_all() -> None:
    for idle in list(_living):
        idle.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_close_all)


def _in_transaction(connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], Result]) -> Result:
    connection.execute("BEGIN IMMEDIATE")
    try:
        result = work(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return result


def in_one_look(connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], Result]) -> Result:
    """Let `work` read the database as it is at one moment."""
    connection.execute("BEGIN")
    try:
        return work(connection)
    finally:
        connection.execute("ROLLBACK")


def in_part(
    connection: sqlite3.Connection,
    what: Given,
    work: Callable[[sqlite3.Connection, Given], object],
    refusals: tuple[type[Exception], ...],
) -> Exception | None:
    """Do the work within the transaction, wholly or not at all, and return the refusal that it raised."""
    connection.execute("SAVEPOINT part")
    try:
        work(connection, what)
    except refusals as error:
        connection.execute("ROLLBACK TO part")
        connection.execute("RELEASE part")
        return UsageError(f"SQLite cannot store this text or number: {error}") if isinstance(error, _UNFIT) else error
    connection.execute("RELEASE part")
    return None


def _primary(error: Exception) -> int:
    if isinstance(error, UnicodeDecodeError):
        return sqlite3.SQLITE_CORRUPT
    code: Any = getattr(error, "sqlite_errorcode", 0)
    return int(code or 0) & 0xFF


def _place(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _create_file(path: str) -> None:
    _create_folder(os.path.dirname(path))
    # SQLite gives its log the same permissions.
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))


def _create_folder(folder: str) -> None:
    if os.path.isdir(folder):
        return
    _create_folder(os.path.dirname(folder))
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        if not os.path.isdir(folder):
            raise
