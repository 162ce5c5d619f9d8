"""Steps beside each other: as wide as they may be, and nothing left when the saga turns back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import weakref
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from dags import StepShape, Watched, World, build, shapes
from hypothesis import given, settings

from sagaz_core import Backoff, Saga, SagaConfig, SagaStatus
from sagaz_core.errors import DeadlockError
from sagaz_core.events import StepFailed
from sagaz_core.virtual_time import VirtualRunner, run


async def no_task_is_left() -> None:
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


@given(shapes())
def test_a_step_starts_as_soon_as_what_it_depends_on_is_done(shape: Any) -> None:
    world = World()
    run(build(shape, world).run())
    for step in shape:
        if ("begin", step.name) in world.times:
            after = [world.times["do", name] for name in step.needs]
            assert world.times["begin", step.name] == max(after, default=world.times["begin", shape[0].name])


@pytest.mark.parametrize("sibling", ["wait", "cancel"])
@settings(max_examples=150)
@given(shapes())
def test_whatever_fails_the_rollback_is_legal_complete_and_the_end(sibling: Any, shape: Any) -> None:
    world = World()
    saga = build(shape, world, SagaConfig(on_sibling_failure=sibling))
    watched = Watched(saga)

    async def main() -> Any:
        result = await watched.run({"start": 1})
        await no_task_is_left()
        await asyncio.sleep(1000)
        return result

    result = run(main())
    model = saga.definition().model
    done, undone = world.marked("do"), world.marked("undo")
    if result.status is SagaStatus.COMPLETED:
        assert sorted(done) == sorted(model.names)
        assert undone == []
        return
    assert result.status is SagaStatus.ROLLED_BACK
    assert result.context == {"start": 1}
    by_name = {step.name: step for step in shape}
    first_undo = next((i for i, (mark, _) in enumerate(world.log) if mark == "undo"), len(world.log))
    assert all(mark == "undo" for mark, _ in world.log[first_undo:]), "something happened after the rollback began"
    assert len(undone) == len(set(undone))
    assert {name for name in done if by_name[name].undoable} <= set(undone)
    doubtful = {name for name in undone if name not in done}
    refused = {name for name in world.marked("fail") if by_name[name].fails == "reject"}
    assert all(by_name[name].in_doubt for name in doubtful)
    assert not doubtful & refused
    for index, name in enumerate(undone):
        assert not model.descendants[name] & set(undone[index + 1 :]), "undone while a dependant was alive"


@given(shapes())
def test_a_saga_runs_the_same_way_each_time(shape: Any) -> None:
    worlds = [World(), World()]
    results = [run(build(shape, world).run(saga_id="S")) for world in worlds]
    assert worlds[0].log == worlds[1].log
    assert [type(event) for event in results[0].events] == [type(event) for event in results[1].events]


SCRIPT = """
import random
from dags import StepShape, World, build
from sagaz_core.virtual_time import run
for seed in range(30):
    dice = random.Random(seed)
    shape = []
    for index in range(8):
        names = [step.name for step in shape]
        needs = tuple(dict.fromkeys(dice.choices(names, k=2))) if names and dice.random() < .7 else ()
        fails = "error" if index == 7 else ""
        shape.append(StepShape(f"step-{index}", needs, dice.choice([0, 0, 1]), fails, True, True))
    world = World()
    result = run(build(tuple(shape), world).run())
    model = build(tuple(shape), world).definition().model
    print(world.log, result.compensated_steps, result.context, model.fingerprint, model.order)
"""


def test_the_order_does_not_depend_on_the_hash_seed() -> None:
    outputs = set()
    for seed in "0123":
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parent)}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env=environment,
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        outputs.add(done.stdout)
    assert len(outputs) == 1
    assert "step-7" in outputs.pop()


def pair(sibling: Any, config: Any, **more: Any) -> tuple[World, Any]:
    """`fails` fails after a second, beside `sibling`."""
    world = World()

    async def failing(ctx: Any) -> None:
        await asyncio.sleep(1)
        world.note("fail", "fails")
        raise OSError

    async def note_undo(ctx: Any) -> None:
        world.note("undo", "sibling")

    saga: Saga[Any] = (
        Saga("s", config=config)
        .add_step("fails", failing, depends_on=[])
        .add_step("sibling", lambda ctx: sibling(world), note_undo, depends_on=[], **more)
        .add_step("after", lambda ctx: world.note("do", "after"), depends_on=["sibling"])
    )

    async def main() -> Any:
        result = await saga.run()
        await no_task_is_left()
        return result

    return world, run(main())


async def slow(world: World) -> None:
    await asyncio.sleep(5)
    world.note("do", "sibling")


def test_a_sibling_that_still_runs_is_awaited_and_undone() -> None:
    world, result = pair(slow, None)
    assert world.log == [("fail", "fails"), ("do", "sibling"), ("undo", "sibling")]
    assert result.failed_step == "fails"


def test_a_sibling_that_is_cancelled_is_in_doubt() -> None:
    world, result = pair(slow, SagaConfig(on_sibling_failure="cancel"), in_doubt="compensate")
    assert world.log == [("fail", "fails"), ("undo", "sibling")]
    assert (result.status, result.compensated_steps) == (SagaStatus.ROLLED_BACK, ("sibling",))
    assert isinstance(result.exception, OSError)
    world, result = pair(slow, SagaConfig(on_sibling_failure="cancel"))
    assert world.log == [("fail", "fails")]


def test_a_sibling_that_cleans_up_is_cancelled_once() -> None:
    cancelled: list[int] = []

    async def cleans_up(world: World) -> None:
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            cancelled.append(1)
            await asyncio.sleep(3)
            world.note("cleaned", "sibling")
            raise

    world = World()

    async def failing(ctx: Any) -> None:
        await asyncio.sleep(1)
        raise OSError

    async def shorter(ctx: Any) -> None:
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            await asyncio.sleep(1)
            raise

    saga: Saga[Any] = (
        Saga("s", config=SagaConfig(on_sibling_failure="cancel"))
        .add_step("fails", failing, depends_on=[])
        .add_step("cleans", lambda ctx: cleans_up(world), depends_on=[])
        .add_step("shorter", shorter, depends_on=[])
    )
    run(saga.run())
    assert (cancelled, world.log) == ([1], [("cleaned", "sibling")])


def test_a_sibling_in_backoff_is_not_tried_again() -> None:
    async def flaky(world: World) -> None:
        world.note("try", "sibling")
        raise OSError

    world, result = pair(flaky, None, retries=3, backoff=Backoff(first=5))
    assert world.marked("try") == ["sibling"]
    assert result.failed_step == "fails"
    assert [e.step for e in result.events if isinstance(e, StepFailed) and e.final] == ["fails"]


def test_two_that_fail_are_both_told_of_and_the_first_turned_it_back() -> None:
    async def failing_too(world: World) -> None:
        await asyncio.sleep(2)
        raise KeyError("second")

    _, result = pair(failing_too, None)
    assert result.failed_step == "fails"
    assert isinstance(result.exception, OSError)
    assert {e.step for e in result.events if isinstance(e, StepFailed)} == {"fails", "sibling"}


def test_a_step_whose_own_task_someone_cancels_has_failed() -> None:
    world = World()

    async def shot(ctx: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(1)

    saga: Saga[Any] = (
        Saga("s")
        .add_step("shot", shot, depends_on=[])
        .add_step("other", lambda ctx: slow(world), lambda ctx: None, depends_on=[])
        .add_step("after", lambda ctx: world.note("do", "after"), depends_on=["shot"])
    )
    result = run(saga.run())
    assert (result.status, result.failed_step, result.compensated_steps) == ("rolled_back", "shot", ("other",))
    assert world.marked("do") == ["sibling"]


def test_what_is_no_exception_ends_everything_at_once() -> None:
    class Death(BaseException): ...

    world = World()

    async def dies(ctx: Any) -> None:
        await asyncio.sleep(1)
        raise Death

    async def stubborn(ctx: Any) -> None:
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            raise OSError("on the way out") from None

    saga: Saga[Any] = (
        Saga("s")
        .add_step("a", lambda ctx: None, lambda ctx: world.note("undo", "a"), depends_on=[])
        .add_step("dies", dies, depends_on=["a"])
        .add_step("sibling", lambda ctx: slow(world), depends_on=["a"])
        .add_step("stubborn", stubborn, depends_on=["a"])
    )
    watched = Watched(saga)

    async def main() -> None:
        with pytest.raises(Death):
            await watched.run()
        await no_task_is_left()

    run(main())
    assert world.log == []
    assert watched.journal is not None
    assert [type(e).__name__ for e in watched.journal.events][-3:] == ["StepStarted"] * 3


def test_a_wide_saga_is_as_slow_as_its_slowest_step() -> None:
    shape = tuple(StepShape(f"s{n}", (), float(n % 10)) for n in range(200))

    async def main() -> float:
        began = asyncio.get_running_loop().time()
        assert (await build(shape, World()).run()).success
        return asyncio.get_running_loop().time() - began

    assert run(main()) == 9.0


WHO: ContextVar[str] = ContextVar("WHO", default="nobody")


def beside(**actions: Any) -> Saga[Any]:
    saga: Saga[Any] = Saga("beside")
    for name, act in actions.items():
        saga.add_step(name, act, depends_on=[])
    return saga


def tasks_made(saga: Saga[Any]) -> tuple[int, Any]:
    made: list[Any] = []

    def factory(loop: Any, coro: Any, **options: Any) -> asyncio.Task[Any]:
        made.append(coro)
        return asyncio.Task(coro, loop=loop, **options)

    with VirtualRunner() as runner:
        runner.loop.set_task_factory(factory)
        result = runner.run(saga.run())
        return len(made) - 1, result


async def quick(ctx: Any) -> None:
    return None


async def waiting(ctx: Any) -> None:
    await asyncio.sleep(1)


@pytest.mark.parametrize(
    ("actions", "tasks"),
    [
        ([quick] * 8, 1),
        ([waiting] * 8, 8),
        ([quick, quick, waiting, quick, waiting, quick], 4),
        ([*[quick] * 7, waiting], 1),
    ],
)
def test_steps_beside_each_other_share_a_task_while_none_waits(actions: Any, tasks: int) -> None:
    made, result = tasks_made(beside(**{f"s{number}": act for number, act in enumerate(actions)}))
    assert (made, result.status) == (tasks, SagaStatus.COMPLETED)


@pytest.mark.parametrize("wait", [None, 0, 1])
def test_each_has_context_variables_a_name_and_a_timeout_of_its_own(wait: Any) -> None:
    seen = []

    async def act(ctx: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        seen.append((WHO.get(), task.get_name()))
        WHO.set(task.get_name())
        try:
            async with asyncio.timeout(0.5):
                if wait is not None:
                    await asyncio.sleep(wait)
        except TimeoutError:
            assert wait == 1
        assert (WHO.get(), asyncio.current_task()) == (task.get_name(), task)

    made, result = tasks_made(beside(a=act, b=act, c=act))
    assert result.status is SagaStatus.COMPLETED
    assert seen == [("nobody", "a"), ("nobody", "b"), ("nobody", "c")]
    assert made == (1 if wait is None else 3)
    assert WHO.get() == "nobody"


def test_a_step_that_cancels_its_own_task_cancels_no_other() -> None:
    async def suicidal(ctx: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    done = []

    async def other(ctx: Any) -> None:
        await asyncio.sleep(0)
        done.append("other")

    _, result = tasks_made(beside(first=suicidal, second=other))
    assert (result.status, done) == (SagaStatus.COMPLETED, ["other"])


@pytest.mark.parametrize("hold", [lambda task: task, weakref.ref])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_cancelling_the_task_of_a_step_that_is_done_cancels_no_other(place: int, hold: Any) -> None:
    held: list[Any] = []

    async def done(ctx: Any) -> None:
        held.append(hold(asyncio.current_task()))

    async def other(ctx: Any) -> None:
        task = held[0] if isinstance(held[0], asyncio.Task) else held[0]()
        if task is not None:
            asyncio.get_running_loop().call_later(1, task.cancel)
        await asyncio.sleep(2)

    actions = [quick, quick, quick]
    actions[place] = done
    made, result = tasks_made(beside(**{f"s{number}": act for number, act in enumerate(actions)}, other=other))
    assert (made, result.status) == (2, SagaStatus.COMPLETED)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks that begin at once are of Python 3.12")
@pytest.mark.parametrize("first", [quick, waiting])
def test_tasks_that_begin_at_once_end_all_steps_before_the_saga_goes_on(first: Any) -> None:
    done = []

    def slow(name: str, seconds: float) -> Any:
        async def act(ctx: Any) -> None:
            await asyncio.sleep(seconds)
            done.append(name)

        return act

    async def last(ctx: Any) -> None:
        done.append("last")

    async def main() -> Any:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]
        saga = beside(a=first, b=slow("b", 2), c=slow("c", 1))
        return await saga.add_step("d", last, depends_on=["a", "b", "c"]).run()

    assert run(main()).status is SagaStatus.COMPLETED
    assert done == ["c", "b", "last"]


def test_where_a_step_hangs_beside_others_is_told() -> None:
    async def hang(ctx: Any) -> None:
        await asyncio.get_running_loop().create_future()  # here

    line = hang.__code__.co_firstlineno + 1
    with pytest.raises(DeadlockError, match=rf"'b' .* waits at .*test_engine_dag.py:{line} for a future"):
        run(beside(a=quick, b=hang, c=waiting).run())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
@pytest.mark.parametrize("actions", [[quick] * 3, [waiting] * 3, [quick, waiting, quick, waiting]])
def test_eager_tasks_run_the_steps_too(actions: Any) -> None:
    saga = beside(**{f"s{number}": act for number, act in enumerate(actions)})
    saga.add_step("last", quick, depends_on=[f"s{number}" for number in range(len(actions))])

    async def main() -> Any:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        result = await saga.run()
        await no_task_is_left()
        return result

    result = run(main())
    assert result.status is SagaStatus.COMPLETED
    assert sorted(result.completed_steps[:-1]) == [f"s{number}" for number in range(len(actions))]
    assert result.completed_steps[-1] == "last"


@pytest.mark.parametrize("others", [[], [waiting]])
def test_a_saga_that_is_cancelled_and_dies_then_is_dead(others: Any) -> None:
    class Gone(BaseException):
        pass

    async def cancels(ctx: Any) -> None:
        cancelling.cancel()

    async def dies(ctx: Any) -> None:
        raise Gone

    async def main() -> None:
        nonlocal cancelling
        cancelling = asyncio.current_task()
        saga = beside(cancels=cancels, **{f"other{number}": act for number, act in enumerate(others)}, dies=dies)
        with pytest.raises(Gone):
            await saga.run()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        cancelling.uncancel()
        await no_task_is_left()

    cancelling: Any = None
    run(main())
