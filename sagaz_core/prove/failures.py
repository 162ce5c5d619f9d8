"""The plans that failed before, kept in `.sagaz/failures.db` so that they are tried first the next time.

As Hypothesis' example database: a help, never a result. A file that cannot be read or written is as good as none.
"""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from sagaz_core.errors import PlanError
from sagaz_core.faults.plan import FaultPlan

if TYPE_CHECKING:
    from collections.abc import Iterable

logger = logging.getLogger(__name__)

FILE = Path(".sagaz", "failures.db")
MAX_PLANS = 100
_BUSY_SECONDS = 5.0
_TABLE = "CREATE TABLE IF NOT EXISTS failures (saga TEXT, plan TEXT, PRIMARY KEY (saga, plan)) WITHOUT ROWID"


class Failures:
    """The failed plans of sagas, by the saga's name, in one SQLite file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def of(self, saga: str) -> list[FaultPlan]:
        """Return the saga's plans that failed when they were last run, at most 100."""
        if not self.path.is_file():
            return []
        try:
            with closing(sqlite3.connect(self.path, timeout=_BUSY_SECONDS)) as database:
                query = "SELECT plan FROM failures WHERE saga = ? ORDER BY length(plan), plan LIMIT ?"
                rows = database.execute(query, (saga, MAX_PLANS)).fetchall()
        except sqlite3.Error as error:
            logger.info("the failed plans in %s cannot be read: %s", self.path, error)
            return []
        found = []
        for (text,) in rows:
            try:
                found.append(FaultPlan.parse(str(text)))
            except PlanError:
                continue  # of a version that had other kinds
        return found

    def keep(self, saga: str, plans: Iterable[FaultPlan]) -> None:
        """Keep these plans as the ones that fail, in place of what was kept of the saga."""
        rows = [(saga, str(plan)) for plan in plans if plan][:MAX_PLANS]
        if not rows and not self.path.is_file():
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=_BUSY_SECONDS)) as database, database:
                database.execute(_TABLE)
                database.execute("DELETE FROM failures WHERE saga = ?", (saga,))
                database.executemany("INSERT OR IGNORE INTO failures VALUES (?, ?)", rows)
        except (sqlite3.Error, OSError) as error:
            logger.info("the failed plans cannot be kept in %s: %s", self.path, error)
