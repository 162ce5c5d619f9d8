"""What exploring costs: counts of plans and executions, and processor seconds.

    python benchmarks/explore.py [--all] [--traces] [--python=PATH ...]

The sagas are chains whose compensations are exact inverses, with timeouts, two retries (three where four faults are
tried) and `in_doubt="compensate"`, over one fake. `--all` adds the two largest searches. Processor time is printed, not
the wall's: these machines are shared. The last line (with `--traces` the only one) tells whether one plan has one trace
in 10,000 runs under several hash seeds by each `--python`, or by those Pythons of the path that have the project.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import subprocess
import sys
import time
import timeit
from typing import Any

from sagaz_core import Saga, SagaConfig, StepRejected, World, explore
from sagaz_core.engine.run import RunOptions, run_saga
from sagaz_core.faults.inject import Injector
from sagaz_core.faults.plan import FaultPlan, single_fault_plans
from sagaz_core.prove.trial import Subject, run_trial
from sagaz_core.virtual_time import VirtualClockLoop, clock_of_loop, run, sleep

RUNS = 10_000
PROCESSES = 10


def chains(count: int, length: int, policy: str = "continue_on_error", retries: int = 2) -> tuple[Saga[Any], World]:
    """Return `count` chains of `length` steps side by side, and their world."""
    desk: dict[str, Any] = {"held": {}, "closed": {}}
    world = World()
    world.fake(desk, "desk", append_only=["closed"])
    saga: Saga[Any] = Saga("chains", config=SagaConfig(on_compensation_failure=policy))
    for i in range(count):
        for j in range(length):
            name = f"s{i}_{j}"

            async def act(ctx: Any, *, name: str = name) -> dict[str, int]:
                if name in desk["closed"]:
                    raise StepRejected(name)
                desk["held"][name] = 1
                return {name: 1}

            async def undo(ctx: Any, *, name: str = name) -> None:
                desk["held"].pop(name, None)
                desk["closed"][name] = 1

            saga.add_step(
                name,
                act,
                undo,
                depends_on=[f"s{i}_{j - 1}"] if j else [],
                timeout=5.0,
                retries=retries,
                compensation_timeout=5.0,
                compensation_retries=retries,
                in_doubt="compensate",
            )
    return saga, world


def noop(steps: int, retries: int = 0) -> Saga[Any]:
    """Return a saga that does nothing."""
    saga: Saga[Any] = Saga("noop")

    async def nothing(ctx: Any) -> None:
        return None

    for i in range(steps):
        saga.add_step(f"s{i}", nothing, nothing, retries=retries, in_doubt="compensate")
    return saga


def row(what: str, plans: int, executions: int, seconds: float) -> None:
    """Print a row."""
    print(f"{what:58} {plans:>12,} {executions:>10,} {seconds * 1000:>10,.1f} ms", flush=True)


def search(what: str, made: tuple[Saga[Any], World], depth: int) -> None:
    """Explore, and print a row."""
    saga, world = made
    began = time.process_time()
    exploration = explore(saga, world=world, depth=depth)
    assert not exploration.failures, exploration.explain()
    row(what, exploration.plans, exploration.executions, time.process_time() - began)


def naive(retries: int, *, judged: bool) -> None:
    """Run plans of one fault of a no-op saga from its start, many times, and judge each run or not."""
    saga = noop(10, retries)
    subject = Subject(lambda: saga)

    async def judge(plan: FaultPlan) -> None:
        outcome = await run_trial(subject, plan)
        assert not outcome.findings

    async def only_run(plan: FaultPlan) -> None:
        faults = Injector(plan)
        observers = (faults.observe,) if faults.observes else ()
        options = RunOptions(interceptors=(faults,), observers=observers, clock=clock_of_loop(), sleep=sleep)
        await run_saga(saga, {}, options=options)

    async def main() -> int:
        plans = single_fault_plans((await saga.prepare()).model, ["before", "after", "flaky", "repeat", "undo-fail"])
        for _ in range(20):
            for plan in plans:
                await (judge if judged else only_run)(plan)
        return 20 * len(plans)

    began = time.process_time()
    plans = run(main())
    seconds = time.process_time() - began
    what = f"plans from the start, {'judged' if judged else 'only run'}, 10 no-op steps, {retries} retries"
    print(f"{what:58} {plans:>12,} {'':>10} {plans / seconds:>10,.0f} a second")


def a_call() -> None:
    """Call a function that does nothing: what this machine and this Python are worth."""
    best = min(timeit.repeat("f()", "f = lambda: None", number=1_000_000, repeat=7))
    print(f"{'a call of a function that does nothing':58} {best * 1000:>23,.0f} ns")


def an_hour() -> None:
    """Wait an hour of virtual time, in a thousand timeouts."""

    async def main() -> None:
        for _ in range(1000):
            await asyncio.sleep(3.6)

    loop = VirtualClockLoop()
    loop.run_until_complete(asyncio.sleep(0))
    began = time.process_time()
    loop.run_until_complete(asyncio.sleep(3600))
    one = time.process_time() - began
    began = time.process_time()
    loop.run_until_complete(main())
    thousand = time.process_time() - began
    loop.close()
    print(f"{'an hour of virtual time: one sleep, a thousand':58} {one * 1000:>23,.3f} ms {thousand * 1000:>8,.1f} ms")


def trace() -> str:
    """Return a hash of the traces of one plan, run many times."""
    saga, world = chains(2, 3)
    saved = world.save()

    async def main() -> set[tuple[str, ...]]:
        seen = set()
        for _ in range(int(os.environ.get("SAGAZ_BENCH_RUNS", "1"))):
            world.restore(saved)
            outcome = await run_trial(Subject(lambda: saga, world=world), FaultPlan.parse("s1_1@after+s0_0@undo-fail"))
            seen.add((*outcome.trace, outcome.status.value))
        return seen

    seen = run(main())
    return " ".join(sorted(hashlib.sha256(repr(one).encode()).hexdigest()[:16] for one in seen))


def traces(pythons: list[str]) -> None:
    """Run the same plan under several hash seeds and by each of the Pythons, and print how many traces there were."""
    found: dict[str, list[str]] = {}
    for index in range(PROCESSES):
        python = pythons[index % len(pythons)]
        env = {**os.environ, "PYTHONHASHSEED": str(index * 7), "SAGAZ_BENCH_RUNS": str(RUNS // PROCESSES)}
        done = subprocess.run([python, __file__, "--trace"], env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{python} cannot run it: {done.stderr.strip().splitlines()[-1]}")
        version, _, hashes = done.stdout.strip().partition(" ")
        found.setdefault(hashes, []).append(version)
    versions = ", ".join(sorted({version for ran in found.values() for version in ran}, key=lambda v: int(v[2:])))
    print(f"{f'one plan in {RUNS:,} runs, {PROCESSES} hash seeds, by {versions}':58} {len(found)} trace(s)")


def asked_pythons() -> list[str]:
    """Return the Pythons that --python names, or those of the path that have the project; or this one."""
    asked = [word.removeprefix("--python=") for word in sys.argv if word.startswith("--python=")]
    if asked:
        return asked
    others = filter(None, (shutil.which(f"python3.{minor}") for minor in (11, 12, 13)))
    return list(dict.fromkeys([sys.executable, *filter(_has_project, others)]))


def _has_project(python: str) -> bool:
    done = subprocess.run([python, "-c", "import sagaz_core.prove.trial"], capture_output=True, check=False)
    return done.returncode == 0


def main() -> None:
    """Print the table."""
    print(f"{'':58} {'plans':>12} {'executed':>10} {'processor':>13}")
    search("warm-up", chains(1, 3), 1)
    for steps in (5, 10, 20, 40):
        search(f"at most 1 fault, {steps} steps", chains(1, steps), 1)
    for steps in (5, 10, 20, 40):
        search(f"at most 2 faults, {steps} steps, fail_fast", chains(1, steps, "fail_fast"), 2)
        search(f"at most 2 faults, {steps} steps, continue_on_error", chains(1, steps), 2)
    search("12 steps as 4 chains of 3, at most 1 fault", chains(4, 3), 1)
    if "--all" in sys.argv:
        search("at most 4 faults, 40 steps, fail_fast", chains(1, 40, "fail_fast", 3), 4)
        search("at most 3 faults, 40 steps, continue_on_error", chains(1, 40), 3)
    for judged in (False, True):
        for retries in (0, 2):
            naive(retries, judged=judged)
    a_call()
    an_hour()
    traces(asked_pythons())


if __name__ == "__main__":
    if "--trace" in sys.argv:
        print(f"{sys.version_info.major}.{sys.version_info.minor}", trace())
    elif "--traces" in sys.argv:
        traces(asked_pythons())
    else:
        main()
