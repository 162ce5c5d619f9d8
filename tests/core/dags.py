"""Sagas of random shapes that write down what they do, for laws that hold for every saga."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from sagaz_core import Saga, SagaConfig, StepRejected
from sagaz_core.clock import utc_now
from sagaz_core.engine.journal import Journal
from sagaz_core.engine.run import RunOptions, resume_saga, run_saga


@dataclass(frozen=True)
class StepShape:
    name: str
    needs: tuple[str, ...]
    seconds: float = 0.0
    fails: str = ""  # "", "error", "reject", "flaky"
    undoable: bool = True
    in_doubt: bool = False
    writes: bool = True


@dataclass
class World:
    """What happened outside, in order: `(mark, step)`, with the loop's time."""

    log: list[tuple[str, str]] = field(default_factory=list)
    times: dict[tuple[str, str], float] = field(default_factory=dict)

    def note(self, mark: str, step: str) -> None:
        self.log.append((mark, step))
        self.times.setdefault((mark, step), asyncio.get_running_loop().time())

    def marked(self, mark: str) -> list[str]:
        return [step for found, step in self.log if found == mark]


@st.composite
def shapes(draw: st.DrawFn, most: int = 7) -> tuple[StepShape, ...]:
    count = draw(st.integers(1, most))
    made: list[StepShape] = []
    for index in range(count):
        names = [step.name for step in made]
        needs = tuple(draw(st.lists(st.sampled_from(names), unique=True, max_size=3))) if names else ()
        made.append(
            StepShape(
                f"s{index}",
                needs,
                seconds=draw(st.sampled_from([0.0, 0.0, 1.0, 2.0, 5.0])),
                fails=draw(st.sampled_from(["", "", "", "", "error", "reject", "flaky"])),
                undoable=draw(st.sampled_from([True, True, True, False])),
                in_doubt=draw(st.booleans()),
                writes=draw(st.booleans()),
            )
        )
    return tuple(made)


def build(shape: tuple[StepShape, ...], world: World, config: SagaConfig | None = None) -> Saga[Any]:
    saga: Saga[Any] = Saga("random", config=config)
    for step in shape:
        saga.add_step(
            step.name,
            _action(step, world),
            _undo(step, world) if step.undoable else None,
            depends_on=step.needs,
            retries=2,
            in_doubt="compensate" if step.in_doubt and step.undoable else "ignore",
        )
    return saga


def _action(step: StepShape, world: World) -> Any:
    calls = 0

    async def act(ctx: dict[str, Any]) -> dict[str, Any] | None:
        nonlocal calls
        calls += 1
        world.note("begin", step.name)
        if step.seconds:
            await asyncio.sleep(step.seconds)
        if step.fails == "error" or (step.fails == "flaky" and calls == 1):
            world.note("fail", step.name)
            raise OSError(step.name)
        if step.fails == "reject":
            world.note("fail", step.name)
            raise StepRejected(step.name)
        world.note("do", step.name)
        return {step.name: calls} if step.writes else None

    return act


def _undo(step: StepShape, world: World) -> Any:
    async def undo(ctx: dict[str, Any], result: Any) -> str:
        if step.writes and result is not None:
            assert ctx[step.name] == result[step.name]
        world.note("undo", step.name)
        return f"undid {step.name}"

    return undo


@dataclass
class Watched:
    """A run, with its journal at hand whatever became of it."""

    saga: Saga[Any]
    journal: Journal | None = None
    result: Any = None

    async def run(self, context: Any = None, **options: Any) -> Any:
        options = RunOptions(on_journal=self._keep, **options)  # type: ignore[assignment]
        self.result = await run_saga(self.saga, context, saga_id="S", options=options)  # type: ignore[arg-type]
        return self.result

    async def resume(self, state: Any, **options: Any) -> Any:
        options = RunOptions(on_journal=self._keep, **options)  # type: ignore[assignment]
        self.result = await resume_saga(self.saga, state, options=options)  # type: ignore[arg-type]
        return self.result

    def _keep(self, journal: Journal) -> None:
        self.journal = journal


__all__ = ["StepShape", "Watched", "World", "build", "shapes", "utc_now"]
