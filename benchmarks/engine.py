"""What the engine costs: a step, a plan, a faithful replay, beside the `sagaz` package where it is installed.

    python benchmarks/engine.py [ROUNDS]        40 rounds by default

A saga of 10 steps that do nothing, in a chain and as a DAG of one, eight beside each other, and one; "captured" is with
a snapshot before each step, in memory, of a context of 1 KB. Each figure is the best of ROUNDS short rounds, so that
what else the machine does counts for little; the last column are ratios within this run. Importing the `sagaz` package
turns its log on, for stderr: that is undone, and for "as imported" what it writes is formatted and forgotten.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import time
from typing import TYPE_CHECKING, Any

from sagaz_core import FaultPlan, InMemorySnapshotStorage, Recording, ReplayConfig, Saga, action, compensate
from sagaz_core.prove.recorded import RecordedSubject, run_faithful
from sagaz_core.prove.trial import Subject, run_trial
from sagaz_core.virtual_time import VirtualRunner

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

try:
    import sagaz_engine as beside
except ImportError:
    beside = None  # type: ignore[assignment] # the sagaz package is not installed

STEPS = 10
CONTEXT = {f"key_{number:02}": "x" * 40 for number in range(19)} | {"order": 1, "items": [1, 2, 3]}
CHAIN = {f"s{number}": [f"s{number - 1}"] if number else [] for number in range(STEPS)}
WIDE = {"s0": [], **{f"s{n}": ["s0"] for n in range(1, STEPS - 1)}, "s9": [f"s{n}" for n in range(1, STEPS - 1)]}


async def nothing(ctx: Any) -> None:
    return None


def chain_class() -> type[Saga[Any]]:
    """A class of ten steps, as users write them."""
    body: dict[str, Any] = {"saga_name": "noop"}
    for name in CHAIN:

        async def act(self: Any, ctx: Any) -> None:
            return None

        async def undo(self: Any, ctx: Any) -> None:
            return None

        body[name], body[f"undo_{name}"] = action(name)(act), compensate(name)(undo)
    return type("Noop", (Saga,), body)


def saga(shape: dict[str, list[str]], *, captured: bool = False) -> Saga[Any]:
    made: Saga[Any] = Saga("noop")
    if captured:
        made.snapshot_storage, made.replay_config = InMemorySnapshotStorage(), ReplayConfig()
    for name, needs in shape.items():
        made.add_step(name, nothing, nothing, depends_on=needs)
    return made


async def best(make: Callable[[], Callable[[], Awaitable[object]]], rounds: int, each: int = 20) -> float:
    """Return the seconds of one run."""
    fastest = float("inf")
    for _ in range(rounds):
        runs = [make() for _ in range(each)]
        gc.collect()
        gc.disable()
        began = time.perf_counter()
        for run in runs:
            await run()
        fastest = min(fastest, time.perf_counter() - began)
        gc.enable()
    return fastest / each


def ours(shape: dict[str, list[str]], *, captured: bool) -> Callable[[], Callable[[], Awaitable[object]]]:
    made = saga(shape, captured=captured)  # one for all runs, as in a service

    def make() -> Callable[[], Awaitable[object]]:
        if captured:
            made.snapshot_storage = InMemorySnapshotStorage()
        return lambda: made.run(CONTEXT)

    return make


def steps(rounds: int) -> None:
    print(f"{'µs a step':44} {'chain':>8} {'DAG':>8}")
    plain, kept = [
        [asyncio.run(best(ours(shape, captured=captured), rounds)) / STEPS * 1e6 for shape in (CHAIN, WIDE)]
        for captured in (False, True)
    ]
    print(f"  {'ours':42} {plain[0]:8.1f} {plain[1]:8.1f}")
    print(f"  {'ours, captured':42} {kept[0]:8.1f} {kept[1]:8.1f}")
    if beside is None:
        return
    rows = [
        ("sagaz, declarative", [beside.declarative(beside.CHAIN), beside.declarative(beside.WIDE)], plain),
        ("sagaz, imperative", [beside.imperative(beside.CHAIN), beside.imperative(beside.WIDE)], plain),
        ("sagaz, imperative, captured", [beside.imperative(beside.CHAIN, beside.TheirStorage())], kept),
    ]
    rows += [
        (f"{title}, as imported", [beside.logging_to_nowhere(make) for make in makers], own)
        for title, makers, own in rows
    ]
    for title, makers, own in rows:
        costs = [asyncio.run(best(make, max(5, rounds // 4))) / STEPS * 1e6 for make in makers]
        ratios = ", ".join(f"{cost / mine:.0f}" for cost, mine in zip(costs, own, strict=False))
        print(f"  {title:42} {' '.join(f'{cost:8.1f}' for cost in costs):17}   {ratios} times ours")


def plans(rounds: int) -> None:
    print("\nplans a second, 10 steps that do nothing, on one virtual-clock loop")
    kind, shared = chain_class(), saga(CHAIN)
    subjects = [("one instance", Subject(lambda: shared)), ("an instance each", Subject(kind))]
    with VirtualRunner() as runner:
        for title, subject in subjects:
            for text in ("s9@before", "s0@before", "end@before"):
                plan = FaultPlan.parse(text)
                seconds = runner.run(best(lambda s=subject, p=plan: lambda: run_trial(s, p), rounds))  # type: ignore[misc] # bound
                print(f"  {title + ', ' + text:42} {1 / seconds:8,.0f}")


async def recorded(count: int) -> InMemorySnapshotStorage:
    storage = InMemorySnapshotStorage()
    made: Saga[Any] = chain_class()(snapshot_storage=storage)
    for number in range(count):
        await made.run(CONTEXT, saga_id=f"S-{number}")
    return storage


async def recordings(storage: InMemorySnapshotStorage, count: int) -> list[Recording]:
    return [await Recording.from_storage(storage, f"S-{number}") for number in range(count)]


def replays(count: int = 1500) -> None:
    kind = chain_class()
    with VirtualRunner() as runner:
        storage = runner.run(recorded(count))
        gc.collect()
        gc.freeze()
        began = time.perf_counter()
        made = runner.run(recordings(storage, count))
        read = time.perf_counter() - began
        gc.collect()
        gc.freeze()
        began = time.perf_counter()
        for recording in made:
            faithful = runner.run(run_faithful(RecordedSubject(recording, Subject(kind), {})))
            assert not faithful.differences
        took = time.perf_counter() - began
        print(f"\nseconds for a faithful replay of {count:,} recorded sagas: {took:.2f}, and to read them {read:.2f}")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    logging.getLogger().handlers.clear()  # the sagaz package sends all of its log to stderr
    logging.getLogger().setLevel(logging.WARNING)
    print(f"Python {sys.version.split()[0]}, the best of {rounds} rounds\n")
    steps(rounds)
    plans(rounds)
    replays()


if __name__ == "__main__":
    main()
