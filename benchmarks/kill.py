"""What it costs to kill a saga of ten steps at every durable boundary, and to take it up again.

   python benchmarks/kill.py [ROUNDS]        3 rounds by default; the best is shown

Each boundary is two processes: one that is killed, and one that goes on from the store. The effects are rows of a
SQLite table, with a key, that a world looks at; nothing may be lost and nothing be there twice.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from sagaz_core import FaultPlan, Saga, World
from sagaz_core.prove.kill import FOLDER_VARIABLE, kill_everywhere

STEPS = [f"s{number}" for number in range(10)]


def outside(folder: str | Path, sql: str, *values: Any) -> list[Any]:
    with closing(sqlite3.connect(Path(folder) / "outside.db")) as connection, connection:
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("CREATE TABLE IF NOT EXISTS effects (key TEXT PRIMARY KEY)")
        return connection.execute(sql, values).fetchall()


class Effect:
    def __init__(self, sql: str, key: str) -> None:
        self.sql, self.key = sql, key

    def __call__(self, ctx: Any) -> None:
        outside(os.environ[FOLDER_VARIABLE], self.sql, self.key)


def ten_steps() -> Saga[Any]:
    saga: Saga[Any] = Saga("ten")
    for step in STEPS:
        do, undo = (
            Effect("INSERT OR IGNORE INTO effects VALUES (?)", step),
            Effect("DELETE FROM effects WHERE key = ?", step),
        )
        saga.add_step(step, do, undo, in_doubt="compensate")
    return saga


def world(folder: Path) -> World:
    made = World()
    made.probe("effects", lambda: outside(folder, "SELECT key FROM effects ORDER BY key"))
    return made


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    sys.path.insert(0, str(Path(__file__).parent))  # where the other processes find this
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} processors, the best of {rounds} rounds\n")
    print(f"{'':44} {'boundaries':>10} {'seconds':>8} {'ms each':>8} {'not sound':>10}")
    forward, back = FaultPlan(), FaultPlan.parse("end@before")
    for title, plans in (("forward", [forward]), ("the rollback from the end", [back]), ("both", [forward, back])):
        best, killed = float("inf"), None
        for _ in range(rounds):
            began = time.perf_counter()
            killed = kill_everywhere("kill:ten_steps", plans=plans, world=world)
            best = min(best, time.perf_counter() - began)
        assert killed is not None
        count = len(killed.outcomes)
        print(f"  {title:42} {count:10} {best:8.2f} {best / count * 1000:8.1f} {len(killed.failures):10}")


if __name__ == "__main__":
    main()
