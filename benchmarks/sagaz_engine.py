"""What a step costs: ours beside the engine of the `sagaz` package, run directly, in one process.

    python benchmarks/sagaz_engine.py [ROUNDS]        100 rounds by default

A saga of 10 steps that do next to nothing, and a context of about 1 KB: in a chain, and as a DAG of one step, eight
beside each other, and one. "captured" is with a snapshot before each step, in memory: of the package only the
imperative engine takes snapshots, only of chains, and keeps objects where ours are encoded. µs a step are the best of 5
times ROUNDS sagas; what it takes to make a saga is not counted. Importing the package sends INFO and above of all
loggers to stderr; that is undone here, and for "as imported" it is formatted and forgotten.
"""

from __future__ import annotations

import asyncio
import gc
import io
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import sagaz
import sagaz.core.replay
import sagaz.core.saga
from sagaz.core.storage.backends.memory_snapshot import InMemorySnapshotStorage as TheirStorage

from sagaz_core.adapters.sagaz import SagazAdapter
from sagaz_core.engine.run import RunOptions
from sagaz_core.saga.base import Saga
from sagaz_core.saga.config import ReplayConfig
from sagaz_core.storage.memory import InMemorySnapshotStorage

if TYPE_CHECKING:
    from sagaz_core.interceptor import Proceed, StepCall

STEPS = 10
CONTEXT = {f"key_{number:02}": "x" * 40 for number in range(19)} | {"order": 1, "total": 99.5, "items": [1, 2, 3]}
CHAIN = {f"step_{number}": [f"step_{number - 1}"] if number else [] for number in range(STEPS)}
WIDE = {
    "step_0": [],
    **{f"step_{number}": ["step_0"] for number in range(1, STEPS - 1)},
    f"step_{STEPS - 1}": [f"step_{number}" for number in range(1, STEPS - 1)],
}


class Nowhere(io.TextIOBase):
    """Takes text as a terminal does, and forgets it."""

    def write(self, text: str) -> int:
        return len(text)


NOWHERE = logging.StreamHandler(Nowhere())
NOWHERE.setFormatter(logging.Formatter("%(asctime)s - %(name)s - %(levelname)s - %(message)s"))
Shape = dict[str, list[str]]
Run = Callable[[], Awaitable[object]]


async def act(ctx: Any) -> dict[str, Any]:
    return {"done": True}


async def undo(*_: Any) -> None:
    return None


class Passing:
    """An interceptor that only passes the call on."""

    async def intercept(self, call: StepCall, proceed: Proceed) -> Any:
        return await proceed()


# Each returns what makes one run; only awaiting that is timed.


def ours(shape: Shape, storage: InMemorySnapshotStorage | None = None, watched: bool = False) -> Callable[[], Run]:
    saga: Saga[Any] = Saga(
        "ours",
        snapshot_storage=storage,
        replay_config=ReplayConfig(compression=None) if storage else None,
        interceptors=(Passing(),) if watched else (),
    )
    for name, others in shape.items():
        # Steps that run beside each other may not write one key.
        saga.add_step(name, act if shape is CHAIN else undo, undo, depends_on=others)
    return lambda: lambda: saga.run(CONTEXT)


def declarative(shape: Shape) -> Callable[[], Run]:
    saga = sagaz.Saga(name="theirs")
    for name, others in shape.items():
        saga.add_step(name, act if shape is CHAIN else undo, undo, depends_on=others)
    return lambda: lambda: saga.run(CONTEXT)


def imperative(shape: Shape, storage: Any = None) -> Callable[[], Run]:
    def made() -> Run:  # an instance can be run once
        strategy = sagaz.core.replay.SnapshotStrategy.BEFORE_EACH_STEP
        config = sagaz.core.replay.ReplayConfig(enable_snapshots=storage is not None, snapshot_strategy=strategy)
        saga = sagaz.core.saga.Saga(name="theirs", replay_config=config, snapshot_storage=storage)
        saga.context.data.update(CONTEXT)
        for name, others in shape.items():
            adding = saga.add_step(name, act, undo, dependencies=None if shape is CHAIN else set(others))
            try:
                adding.send(None)
            except StopIteration:
                continue
        return saga.execute

    return made


def adapted(shape: Shape, storage: InMemorySnapshotStorage | None = None) -> Callable[[], Run]:
    adapter, saga = SagazAdapter(), sagaz.Saga(name="theirs")
    for name, others in shape.items():
        saga.add_step(name, act if shape is CHAIN else undo, undo, depends_on=others)
    options = RunOptions(
        interceptors=(Passing(),), storage=storage, replay_config=ReplayConfig(compression=None) if storage else None
    )
    return lambda: lambda: adapter.run(saga, CONTEXT, options=options)


def logging_to_nowhere(make: Callable[[], Run]) -> Callable[[], Run]:
    root = logging.getLogger()

    def made() -> Run:
        run = make()

        async def logged() -> None:
            root.addHandler(NOWHERE)
            root.setLevel(logging.INFO)
            try:
                await run()
            finally:
                root.removeHandler(NOWHERE)
                root.setLevel(logging.WARNING)

        return logged

    return made


async def best(make: Callable[[], Run], rounds: int) -> float:
    """Return µs a step."""
    fastest = float("inf")
    for _ in range(5):
        runs = [make() for _ in range(rounds)]
        gc.collect()
        gc.disable()
        began = time.perf_counter()
        for run in runs:
            await run()
        fastest = min(fastest, time.perf_counter() - began)
        gc.enable()
    return fastest / rounds / STEPS * 1e6


def main() -> None:
    logging.getLogger().handlers.clear()
    logging.getLogger().setLevel(logging.WARNING)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    print(f"µs a step; sagaz {version('sagaz')}, Python {sys.version.split()[0]}, {rounds} sagas of {STEPS} steps\n")
    for title, shape in (("chain", CHAIN), ("DAG", WIDE)):
        plain = asyncio.run(best(ours(shape), rounds))
        kept = asyncio.run(best(ours(shape, InMemorySnapshotStorage()), rounds))
        lines: list[tuple[str, Callable[[], Run], float]] = [
            ("sagaz, declarative", declarative(shape), plain),
            ("sagaz, imperative", imperative(shape), plain),
        ]
        if shape is CHAIN:
            lines.append(("sagaz, imperative, captured", imperative(shape, TheirStorage()), kept))
        lines += [
            ("sagaz, declarative, as imported", logging_to_nowhere(declarative(shape)), plain),
            ("sagaz, imperative, as imported", logging_to_nowhere(imperative(shape)), plain),
            ("ours, watched", ours(shape, watched=True), plain),
            ("sagaz, declarative, by our adapter, watched", adapted(shape), plain),
            ("the same, captured", adapted(shape, InMemorySnapshotStorage()), kept),
        ]
        print(f"{title:45} {'':>8}")
        print(f"  {'ours':43} {plain:8.1f}")
        print(f"  {'ours, captured':43} {kept:8.1f}")
        for name, make, beside in lines:
            cost = asyncio.run(best(make, rounds))
            times = f"{cost / beside:6.1f} times {'ours' if beside is plain else 'ours, captured'}"
            print(f"  {name:43} {cost:8.1f}   {times}")
        print()


if __name__ == "__main__":
    main()
