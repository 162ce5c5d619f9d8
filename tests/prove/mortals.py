"""Sagas whose effects are outside of any process: in a SQLite file, or a file of lines, of the run's own folder."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from sagaz_core import Saga, World, action, compensate
from sagaz_core.engine import execution, rollback
from sagaz_core.events import NO_DELTA, StepSucceeded
from sagaz_core.prove.kill import FOLDER_VARIABLE
from sagaz_core.storage.sqlite import SqliteSnapshotStorage

if TYPE_CHECKING:
    from sagaz_core.storage.base import Batch

STEPS = tuple(f"s{number}" for number in range(10))


class Table:
    """Effects as rows. Each has a key, so that doing it twice is the same as once."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "outside.db"

    def __call__(self, sql: str, *values: Any) -> list[Any]:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("PRAGMA synchronous=OFF")  # what dies is the process, not the machine
            connection.execute("CREATE TABLE IF NOT EXISTS effects (key TEXT PRIMARY KEY, times INTEGER)")
            return connection.execute(sql, values).fetchall()

    def do(self, key: str) -> None:
        self("INSERT OR IGNORE INTO effects VALUES (?, 1)", key)

    def do_again(self, key: str) -> None:
        self("INSERT INTO effects VALUES (?, 1) ON CONFLICT DO UPDATE SET times = times + 1", key)

    def undo(self, key: str) -> None:
        self("DELETE FROM effects WHERE key = ?", key)

    def rows(self) -> dict[str, int]:
        return dict(self("SELECT key, times FROM effects"))

    # As a fake whose state is outside of every process.

    def snapshot(self) -> dict[str, int]:
        return self.rows()

    def restore(self, rows: dict[str, int]) -> None:
        self("DELETE FROM effects")
        for key, times in rows.items():
            self("INSERT INTO effects VALUES (?, ?)", key, times)


def table() -> Table:
    return Table(Path(os.environ.get("OUTSIDE") or os.environ[FOLDER_VARIABLE]))


def table_world(folder: Path) -> World:
    world = World()
    world.probe("effects", Table(folder).rows)
    return world


class Done:
    """An action: a row of that key."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __call__(self, ctx: Any) -> None:
        table().do(self.key)


class Undone(Done):
    """Its compensation."""

    def __call__(self, ctx: Any) -> None:
        table().undo(self.key)


def chain(name: str, steps: tuple[str, ...] = STEPS) -> Saga[Any]:
    saga: Saga[Any] = Saga(name)
    for step in steps:
        saga.add_step(step, Done(step), Undone(step), in_doubt="compensate")
    return saga


def ten_steps() -> Saga[Any]:
    return chain("ten")


class Sound(Saga):
    """Reserve, charge (with retries, and a value from the step before) and tell."""

    saga_name = "sound"

    @action("reserve")
    async def reserve(self, ctx: Any) -> dict[str, Any]:
        table().do("reserved")
        return {"reservation": f"R-{ctx['order']}"}

    @compensate("reserve")
    async def release(self, ctx: Any) -> None:
        table().undo("reserved")

    @action("charge", timeout=5, retries=2, in_doubt="compensate")
    def charge(self, ctx: Any) -> dict[str, Any]:
        table().do(f"charged {ctx['reservation']}")
        return {"receipt": (1, ctx["reservation"])}

    @compensate("charge")
    async def refund(self, ctx: Any) -> None:
        table().undo(f"charged {ctx['reservation']}")

    @action("tell")
    async def tell(self, ctx: Any) -> dict[str, Any]:
        return {"told": ctx["receipt"][1]}


class Twice(Sound):
    """Charges again when it is run again."""

    saga_name = "twice"

    @action("charge", in_doubt="compensate")
    def charge(self, ctx: Any) -> dict[str, Any]:
        table().do_again(f"charged {ctx['reservation']}")
        return {"receipt": (1, ctx["reservation"])}


class Draws(Saga):
    """Keeps its row under an id that each run draws."""

    saga_name = "draws"

    @action("draw")
    async def draw(self, ctx: Any) -> dict[str, Any]:
        return {"id": str(uuid4())}

    @action("put", in_doubt="compensate")
    async def put(self, ctx: Any) -> None:
        table().do(ctx["id"])

    @compensate("put")
    async def take(self, ctx: Any) -> None:
        table().undo(ctx["id"])


class DrawsAgain(Draws):
    """Draws an id of each attempt."""

    @action("put", in_doubt="compensate")
    async def put(self, ctx: Any) -> None:
        table().do(f"{uuid4()}")


class Tells(Sound):
    """Tells outside, which nothing takes back."""

    saga_name = "tells"

    @action("tell")
    async def tell(self, ctx: Any) -> dict[str, Any]:
        table().do("told")
        return {"told": True}


class Forgetful(Sound):
    """Keeps in memory what a later step needs."""

    saga_name = "forgetful"

    @action("reserve")
    async def reserve(self, ctx: Any) -> dict[str, Any]:
        self.kept = ctx["order"]
        return await super().reserve(ctx)

    @action("tell")
    async def tell(self, ctx: Any) -> dict[str, Any]:
        return {"told": self.kept}


class Flaky(Sound):
    """Fails once, by itself."""

    saga_name = "flaky"

    @action("charge", retries=1)
    def charge(self, ctx: Any) -> dict[str, Any]:
        if not table().rows().get("tried"):
            table().do("tried")
            raise ConnectionError("not now")
        return super().charge(ctx)


class Fails(Sound):
    saga_name = "fails"

    @action("tell")
    async def tell(self, ctx: Any) -> dict[str, Any]:
        raise RuntimeError("nobody there")


class Wide(Saga):
    """One step, two beside each other, and one."""

    saga_name = "wide"

    @action("a")
    async def a(self, ctx: Any) -> None:
        table().do("a")

    @compensate("a")
    async def undo_a(self, ctx: Any) -> None:
        table().undo("a")

    @action("b", depends_on=["a"])
    async def b(self, ctx: Any) -> None:
        table().do("b")

    @compensate("b")
    async def undo_b(self, ctx: Any) -> None:
        table().undo("b")

    @action("c", depends_on=["a"])
    async def c(self, ctx: Any) -> None:
        table().do("c")

    @compensate("c")
    async def undo_c(self, ctx: Any) -> None:
        table().undo("c")

    @action("d", depends_on=["b", "c"])
    async def d(self, ctx: Any) -> None:
        table().do("d")


class Pivot(Saga):
    saga_name = "pivot"

    @action("hold")
    async def hold(self, ctx: Any) -> None:
        table().do("held")

    @compensate("hold")
    async def let_go(self, ctx: Any) -> None:
        table().undo("held")

    @action("commit", pivot=True, in_doubt="compensate")
    async def commit(self, ctx: Any) -> None:
        table().do("committed")

    @compensate("commit")
    async def take_back(self, ctx: Any) -> None:
        table().undo("committed")

    @action("send")
    async def send(self, ctx: Any) -> None:
        table().do("sent")


class Endless(Sound):
    saga_name = "endless"

    @action("tell")
    def tell(self, ctx: Any) -> dict[str, Any]:
        while True:
            pass


class Waiting(Sound):
    """Says in a pipe that it is there, and is until it is killed."""

    saga_name = "waiting"

    @action("tell")
    def tell(self, ctx: Any) -> dict[str, Any]:
        with open(os.environ["OUTSIDE"] + "/pipe", "w") as pipe:
            pipe.write("here\n")
            pipe.flush()
            while True:
                signal.pause()


class Reaching(Sound):
    """Swallows what it gets when it tries the network."""

    saga_name = "reaching"

    @action("tell")
    async def tell(self, ctx: Any) -> dict[str, Any]:
        import socket

        with suppress(OSError):
            socket.create_connection(("127.0.0.1", 9))
        return {"told": ""}


class Dies(Sound):
    saga_name = "dies"

    @action("tell")
    async def tell(self, ctx: Any) -> dict[str, Any]:
        print("out of memory", flush=True)
        os._exit(7)


# ---- engines and stores that are broken: each is patched in the process that it runs in, and in no other


def _is_to_be_killed() -> bool:
    # The tests' own process makes the saga too, to see what it is made of.
    return "pytest" not in sys.modules


def resume_that_skips() -> Saga[Any]:
    """A step that was under way is taken for done."""

    async def resume(self: Any) -> None:
        for name, attempt in list(self.state.running.items()):
            self.journal.emit(StepSucceeded, name, attempt, None, NO_DELTA, "run")
        await original(self)

    original = execution.Execution.resume
    if _is_to_be_killed():
        execution.Execution.resume = resume  # type: ignore[method-assign]
    return chain("skips", STEPS[:3])


def resume_that_undoes_again() -> Saga[Any]:
    """What is undone already is undone again."""

    def steps_to_undo(run: Any) -> list[str]:
        return [*reversed(run.model.order)]

    if _is_to_be_killed():
        rollback.steps_to_undo = steps_to_undo
    return chain("undoes", STEPS[:3])


def store_that_drops() -> Saga[Any]:
    """The store says that it has written the end of a step, and has not."""

    async def write(self: Any, batch: Batch) -> None:
        if not any(event.kind == StepSucceeded.__name__ and event.step == "s1" for event in batch.events):
            await original(self, batch)

    original = SqliteSnapshotStorage.write
    if _is_to_be_killed():
        SqliteSnapshotStorage.write = write  # type: ignore[method-assign]
    return chain("drops", STEPS[:3])
