"""Executions of sagas over one world, each let on by one call at a time."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from itertools import permutations
from typing import TYPE_CHECKING, Any

from pytest_sagaz.anomalies import VERBS, AnomalyError, Line, find_anomaly, places
from pytest_sagaz.sagas import maker
from sagaz_core.adapters.locate import adapter_for
from sagaz_core.engine.run import RunOptions
from sagaz_core.errors import InjectedFaultError, UsageError
from sagaz_core.network import no_network
from sagaz_core.saga.config import ReplayConfig
from sagaz_core.state import SagaState, SagaStatus
from sagaz_core.virtual_time import VirtualRunner

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

    from sagaz_core.engine.journal import Journal
    from sagaz_core.interceptor import Proceed, StepCall
    from sagaz_core.prove.world import World

_AN_INSTANT = 1e-6  # s of virtual time: when it is over, all that could go on at once has
_FOR_EVER = 3600.0  # s of virtual time: who waits so long for nothing will not end
_MOST_TURNS = 10_000  # of the loop, in which no time goes by: who polls so often will not end


@dataclass(eq=False)
class Call:
    """A call that waits to be let go: with True to be made, with False to fail."""

    execution: Execution
    step: str
    kind: str
    go: asyncio.Future[bool]

    def __str__(self) -> str:
        return f"{self.execution.name}'s {VERBS[self.kind]} {self.step}"


@dataclass(eq=False)
class Execution:
    """One execution, and its calls that wait. It is the interceptor of its own run."""

    name: str
    make: Any
    context: Mapping[str, Any]
    owner: Interleaving
    waiting: list[Call] = field(default_factory=list)
    running: int = 0
    state: SagaState = field(default_factory=SagaState)
    task: asyncio.Task[Any] | None = None

    @property
    def busy(self) -> bool:
        """Whether it may go on by itself."""
        return not self.ended and (self.running > 0 or not self.waiting)

    @property
    def ended(self) -> bool:
        """Whether its run is over."""
        return self.task is not None and self.task.done()

    async def intercept(self, call: StepCall, proceed: Proceed) -> Any:
        """Wait to be let go, then make the call and write down what it changed."""
        if call.kind == "end":
            return await proceed()
        waiting = Call(self, call.step, call.kind, asyncio.get_running_loop().create_future())
        self.waiting.append(waiting)
        self.owner.changed.set()
        try:
            made = await waiting.go
        finally:
            self.waiting.remove(waiting)
        if not made:
            self.owner.note(waiting, "fails")
            raise InjectedFaultError(f"{call.step!r} of {self.name} was made to fail")
        return await self.owner.make_call(waiting, proceed)

    def take_journal(self, journal: Journal) -> None:
        """Keep the state of the run."""
        self.state = journal.state


class Interleaving:
    """What a `SagaMachine` drives: `advance`, `fail` and `cancel` take the number of a call that waits, modulo how many
    there are; `finish` lets all run to their ends and judges.
    """

    def __init__(
        self,
        world: World,
        executions: Mapping[str, tuple[Any, Mapping[str, Any]]],
        *,
        locks: tuple[str, ...] = (),
        patience: float = 1.0,
    ) -> None:
        if not world.restorable:
            raise UsageError(
                "sagas are interleaved over fakes only: begin() registers them by world.fake(…), no probes"
            )
        if len(executions) < 2:
            raise UsageError(f"begin() returned {len(executions)} executions: there is nothing to interleave below 2")
        self.world = world
        self.locks = locks
        self.patience = patience
        self.lines: list[Line] = []
        self.before = world.save()
        self.changed = asyncio.Event()
        self.executions = [
            Execution(name, maker(None, "", saga), dict(context), self) for name, (saga, context) in executions.items()
        ]
        self._open = contextlib.ExitStack()
        self._network = self._open.enter_context(no_network())
        self._runner = self._open.enter_context(VirtualRunner())
        try:
            self._run(self._start())
            for execution in self.executions:
                if execution.ended:  # a saga that cannot run at all
                    self._check_end(execution)
        except BaseException:
            self.close()
            raise

    @property
    def calls(self) -> list[Call]:
        """The calls that wait, in the order of the executions."""
        return [call for execution in self.executions for call in execution.waiting]

    @property
    def actions(self) -> list[Call]:
        """Those of them that are actions."""
        return [call for call in self.calls if call.kind == "action"]

    def advance(self, which: int) -> None:
        """Let a call be made; when none waits, let time go by."""
        if calls := self.calls:
            self._run(self._go(calls[which % len(calls)], made=True))
        elif not all(execution.ended for execution in self.executions):
            self._run(self._settle())

    def fail(self, which: int) -> None:
        """Let an action fail before its effect."""
        self._run(self._go(self.actions[which % len(self.actions)], made=False))

    def cancel(self, which: int) -> None:
        """Cancel the execution that an action is of."""
        call = self.actions[which % len(self.actions)]
        self.note(call, "is cancelled")
        assert call.execution.task is not None
        call.execution.task.cancel()
        self._run(self._settle())

    def finish(self) -> None:
        """Let one execution after the other run to its end. Raises `AnomalyError`, or what stopped a run itself."""
        __tracebackhide__ = True
        for execution in self.executions:
            self._end(execution)
        for execution in self.executions:
            self._check_end(execution)
        after = self.world.save()
        completed = [each for each in self.executions if each.state.status is SagaStatus.COMPLETED]
        expected = [places(self.world, self.before, self._serial(order)) for order in permutations(completed)]
        rolled_back = {each.name for each in self.executions} - {each.name for each in completed}
        actual = places(self.world, self.before, after)
        anomaly = find_anomaly(self.lines, actual, expected, rolled_back, self.locks)
        if anomaly is not None:
            raise AnomalyError(anomaly, self.lines, {each.name: each.state.status.value for each in self.executions})

    def close(self) -> None:
        """End what still runs."""
        self._open.close()

    # ---- one call

    async def make_call(self, call: Call, proceed: Proceed) -> Any:
        """Make the call, and write down what it changed in the world."""
        before = self.world.save()
        call.execution.running += 1
        how = ""
        try:
            return await proceed()
        except asyncio.CancelledError:
            how = "is cancelled"
            raise
        except Exception as error:  # the user's code: anything
            how = f"raises {type(error).__name__}: {error}"
            raise
        finally:
            call.execution.running -= 1
            self.note(call, how, places(self.world, before, self.world.save()))
            self.changed.set()

    def note(self, call: Call, how: str = "", changes: Mapping[str, Any] | None = None) -> None:
        """Write a line of the schedule."""
        self.lines.append(Line(call.execution.name, call.step, call.kind, how, dict(changes or {})))

    # ---- driving

    def _run(self, main: Coroutine[Any, Any, None]) -> None:
        loop, began = self._runner.loop, self._runner.loop.time()

        def more_turns(_: object) -> int:
            nonlocal began
            before, began = began, loop.time()
            return _MOST_TURNS if began > before else 0

        with loop.watched(more_turns, _MOST_TURNS):
            self._runner.run(main)
        if self._network.attempts:
            raise UsageError(f"a saga tried to {self._network.attempts[0]}: give it fakes that are in its world")

    async def _start(self) -> None:
        for execution in self.executions:
            execution.task = asyncio.create_task(self._execute(execution), name=execution.name)
            execution.task.add_done_callback(lambda _: self.changed.set())
        await self._settle()

    async def _execute(self, execution: Execution, *, gated: bool = True) -> None:
        made = execution.make()
        adapter = adapter_for(made)
        options = RunOptions(
            interceptors=(execution,) if gated else (),
            on_journal=execution.take_journal if gated else None,
            clock=self._runner.loop.now,
            replay_config=ReplayConfig(enable_snapshots=False),
        )
        await adapter.run(adapter.create(made), dict(execution.context), options=options)

    async def _go(self, call: Call, *, made: bool) -> None:
        call.go.set_result(made)
        await self._settle()

    async def _settle(self, patience: float | None = None) -> None:
        """Wait until every execution waits or has ended, or until patience is at an end."""
        loop = asyncio.get_running_loop()
        until = loop.time() + (self.patience if patience is None else patience)
        while True:
            await asyncio.sleep(_AN_INSTANT)
            left = until - loop.time()
            if left <= 0 or not any(execution.busy for execution in self.executions):
                return
            self.changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self.changed.wait()

    def _end(self, execution: Execution) -> None:
        waited = False
        while not execution.ended:
            if execution.waiting:
                self._run(self._go(execution.waiting[0], made=True))
                waited = False
            elif self.calls and execution.running:  # it waits for another one, which must go on first
                self.advance(0)
            elif not waited:
                self._run(self._settle(_FOR_EVER))
                waited = True
            else:
                raise AnomalyError("NO END", self.lines, {execution.name: "waits for ever"})

    def _check_end(self, execution: Execution) -> None:
        assert execution.task is not None
        error = None if execution.task.cancelled() else execution.task.exception()
        if error is not None:
            raise error
        if execution.state.status is SagaStatus.FAILED:
            raise AnomalyError("STUCK", self.lines, {execution.name: "failed: " + ", ".join(execution.state.stuck)})

    def _serial(self, order: tuple[Execution, ...]) -> dict[str, Any]:
        """Return the world in which these ran one after another."""
        self.world.restore(self.before)
        for execution in order:
            self._run(self._alone(execution))
        return self.world.save()

    async def _alone(self, execution: Execution) -> None:
        with contextlib.suppress(TimeoutError):  # one that waits for another: this order is none
            async with asyncio.timeout(_FOR_EVER):
                await self._execute(execution, gated=False)
