"""A shop in a folder of its own: its sagas, their recordings, and pytest runs there."""

from __future__ import annotations

import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

# A run in this process forgets at its end what it imported, but a package keeps its modules as attributes: those that
# are here before stay, so that no run has half of the modules twice.
import pytest_sagaz.collection
import pytest_sagaz.given
import pytest_sagaz.session  # noqa: F401
import sagaz_core.replay.replay
import sagaz_core.storage.sqlite
import sagaz_core.virtual_time  # noqa: F401

if TYPE_CHECKING:
    from pathlib import Path

SHOP = '''
"""Sagas to record. Nothing of the outside is real: what happened is in the lists of `Outside`."""

from sagaz_core import Saga, StepRejected, action, compensate


class Outside:
    def __init__(self):
        self.stock, self.charges, self.closed = [], [], set()

    def do(self, what, order_id):
        if (id(what), order_id) in self.closed:
            raise StepRejected("undone before")
        if order_id not in what:
            what.append(order_id)

    def undo(self, what, order_id):
        self.closed.add((id(what), order_id))
        if order_id in what:
            what.remove(order_id)



class Order(Saga):
    saga_name = "order"

    def __init__(self, outside=None):
        super().__init__()
        self.outside = outside or Outside()

    @action("reserve", timeout=5, retries=1, in_doubt="compensate")
    async def reserve(self, ctx):
        self.outside.do(self.outside.stock, ctx["order_id"])
        return {"reservation": f"R-{ctx['order_id']}"}

    @compensate("reserve")
    async def release(self, ctx):
        self.outside.undo(self.outside.stock, ctx["order_id"])

    @action("charge", timeout=5, in_doubt="compensate")
    async def charge(self, ctx):
        self.outside.do(self.outside.charges, ctx["order_id"])
        return {"total": ctx["quantity"] * ctx["price"]}

    @compensate("charge")
    async def refund(self, ctx):
        self.outside.undo(self.outside.charges, ctx["order_id"])

    @action("ship")
    async def ship(self, ctx):
        return {"parcel": f"P-{ctx['reservation']}"}


class Careless(Order):
    """Leaves a charge behind when the reply to it is lost."""

    saga_name = "careless"

    @action("charge")
    async def charge(self, ctx):
        return await super().charge(ctx)
'''

RECORD = """
import asyncio, importlib, json, sys
from sagaz_core import Recording, ReplayConfig, open_storage


async def main(spec, saga_id, context, store):
    module, _, name = spec.partition(":")
    storage = open_storage(store)
    saga = getattr(importlib.import_module(module), name)()
    saga.snapshot_storage, saga.replay_config = storage, ReplayConfig()
    await saga.run(context, saga_id=saga_id)
    recording = await Recording.from_storage(storage, saga_id)
    await storage.close()
    return recording
"""

CONTEXT = {"order_id": "1", "quantity": 2, "price": 7}
STORE = "sqlite:///.sagaz/sagaz.db"
QUICK = ["reserve@before", "reserve@after", "reserve@undo-fail", "charge@before", "charge@after", "charge@undo-fail"]
QUICK += ["ship@before", "ship@after", "end@before"]

_RECORDED: dict[tuple[str, ...], dict[str, bytes]] = {}


class Shop:
    """A folder with sagas in `shop.py`, and pytest runs in it."""

    def __init__(self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pytester = pytester
        self.path: Path = pytester.path
        self.monkeypatch = monkeypatch
        self.apart = False
        self.without = ["randomly", "hypothesispytest", "asyncio", "anyio"]
        self.write("shop", SHOP)
        pytester.makeini("[pytest]\nfilterwarnings = error\nxfail_strict = true\n")

    def write(self, module: str, source: str) -> None:
        """Write a module, given by its path without the suffix."""
        path = self.path / f"{module}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in path.parent.glob(f"__pycache__/{path.stem}.*"):  # a source of one size and second looks unchanged
            stale.unlink()
        path.write_text(textwrap.dedent(source), encoding="utf-8")

    def ini(self, lines: str) -> None:
        """Write the ini file, with warnings as errors."""
        self.pytester.makeini(f"[pytest]\nfilterwarnings = error\n{textwrap.dedent(lines)}")

    def record(
        self,
        saga: str = "shop:Order",
        saga_id: str = "ORDER-1",
        context: dict[str, object] | None = None,
        store: str = STORE,
        out: str = "",
    ) -> None:
        """Record one run of the saga, in a process of its own; `out` is a file to write it to as well."""
        key = (self.path.joinpath("shop.py").read_text(), saga, saga_id, repr(context))
        fresh = store == STORE and not out and not (self.path / ".sagaz").exists()
        if fresh and key in _RECORDED:
            (self.path / ".sagaz").mkdir()
            for name, content in _RECORDED[key].items():
                (self.path / name).write_bytes(content)
            return
        script = f"{RECORD}\nrecording = asyncio.run(main({saga!r}, {saga_id!r}, {context or CONTEXT!r}, {store!r}))\n"
        if out:
            script += f"recording.save({out!r})\n"
        result = self.pytester.run(sys.executable, "-c", script)
        assert result.ret == 0, result.stderr.str()
        if fresh:
            _RECORDED[key] = {f".sagaz/{path.name}": path.read_bytes() for path in (self.path / ".sagaz").iterdir()}

    def run(self, *args: str) -> pytest.RunResult:
        """Run pytest in the folder, in this process, or (`apart`) in one of its own as workers are in any case."""
        run = self.pytester.runpytest_subprocess if self.apart else self.pytester.runpytest_inprocess
        return run(*(option for name in self.without for option in ("-p", f"no:{name}")), *args)

    def replay(self, *args: str, saga_id: str = "ORDER-1") -> pytest.RunResult:
        """Run `pytest --sagaz-replay=<id>`."""
        return self.run(f"--sagaz-replay={saga_id}", *args)

    def ids(self, *args: str) -> list[str]:
        """Return the node ids that a run would have."""
        result = self.run("--collect-only", "-q", *args)
        return [line for line in result.outlines if "::" in line]

    def files(self) -> set[str]:
        """Return every file below the folder, without byte code."""
        paths = (path.relative_to(self.path).as_posix() for path in self.path.rglob("*") if path.is_file())
        return {path for path in paths if "__pycache__" not in path}


def error_of(result: pytest.RunResult) -> str:
    """Return the one line of a usage error; anything else than that fails."""
    assert result.ret == pytest.ExitCode.USAGE_ERROR, result.stdout.str() + result.stderr.str()
    lines = [line for line in result.errlines if line.strip()]
    assert len(lines) == 1, lines
    assert lines[0].startswith("ERROR: ")
    return lines[0].removeprefix("ERROR: ")
