"""The interceptor that makes a plan's faults happen, and knows which of them did."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from sagaz_core.errors import InjectedFaultError
from sagaz_core.events import CompensationFailed, CompensationSucceeded, Event, StepSucceeded
from sagaz_core.faults.kinds import KINDS
from sagaz_core.faults.plan import Fault, FaultPlan
from sagaz_core.interceptor import Proceed, StepCall, put_back
from sagaz_core.model import END


class SimulatedCrash(BaseException):  # no error to be handled: the process is gone
    """The process died here. It is no `Exception`, so that nothing on the way undoes or records anything."""


class Injector:
    """Makes the faults of a plan happen in one run, also when the run is resumed.

    Give it to the engine as an interceptor and its `observe` as an observer. Of two faults at one call the one that is
    written first strikes first. An effect that is late comes as soon as its step's compensation has run, or has been
    given up; after the run, `deliver_late` lets those happen that are then still under way.
    """

    def __init__(self, plan: FaultPlan) -> None:
        self.plan = plan = plan.completed()
        self._fired = [0] * len(plan.faults)
        self.late: dict[str, list[Proceed]] = {}  # effects that are still under way, by step
        self.due: dict[str, None] = {}  # steps whose compensation was given up: what is late of them comes next
        self.calls: dict[tuple[str, str], list[int]] = {}  # by kind of call and step: places in the plan
        self._recorded: dict[tuple[type[Event], str], list[int]] = {}
        self._steps: set[str] = set()
        self.observes = False
        """Whether `observe` is needed: for a fault that strikes when something is recorded, or for what is late."""
        for index, fault in enumerate(plan.faults):
            step, undo = fault.step, KINDS[fault.kind].undo
            self._steps.add(step)
            if fault.kind.endswith("crash-recorded"):
                self.observes = True
                self._recorded.setdefault((CompensationSucceeded if undo else StepSucceeded, step), []).append(index)
                continue
            kind = "compensation" if undo else "end" if step == END else "action"
            self.calls.setdefault((kind, step), []).append(index)
            if fault.kind == "late":
                self.observes = True
                self.calls.setdefault(("compensation", step), [])

    @property
    def fired(self) -> list[Fault]:
        """The faults of the plan that happened."""
        return [fault for place, fault in enumerate(self.plan.faults) if self._fired[place]]

    @property
    def missed(self) -> list[Fault]:
        """The faults of the plan that never happened."""
        return [fault for place, fault in enumerate(self.plan.faults) if not self._fired[place]]

    def concerns(self, call: StepCall) -> bool:
        """Whether the plan has a fault for calls of this kind at this step, or something happens before it."""
        return (call.kind, call.step) in self.calls or bool(self.due)

    def intercept(self, call: StepCall, proceed: Proceed) -> Awaitable[Any]:
        """Make the call, as the plan has it."""
        return self._made(call, proceed) if call.step in self._steps or self.due else proceed()

    async def _made(self, call: StepCall, proceed: Proceed) -> Any:
        while self.due:
            await _deliver(self.late.pop(self.due.popitem()[0], []))
        result = await self._struck(call, proceed)
        if call.kind == "compensation" and call.step in self.late:
            if call.renew_time is not None:
                call.renew_time(False)  # what comes late takes none of the compensation's time
            await _deliver(self.late.pop(call.step))
        return result

    def observe(self, event: Event) -> None:
        """Die when what the plan names has been recorded, and take in which compensations are given up."""
        if self.late and type(event) is CompensationFailed and event.final and event.step in self.late:
            self.due[event.step] = None
        for index in self._recorded.get((type(event), getattr(event, "step", "")), ()):
            fault = self.plan.faults[index]
            if not self._fired[index] and fault.attempt in (None, getattr(event, "attempt", None)):
                self._fired[index] += 1
                raise SimulatedCrash(str(fault))

    async def deliver_late(self) -> None:
        """Let the effects happen that are still under way."""
        late, self.late = self.late, {}
        for calls in late.values():
            await _deliver(calls)

    def _struck(self, call: StepCall, proceed: Proceed) -> Awaitable[Any]:
        for index in self.calls.get((call.kind, call.step), ()):
            fault = self.plan.faults[index]
            if self._strikes(index, fault, call.attempt):
                self._fired[index] += 1
                return _STRIKE[fault.kind.removeprefix("undo-")](self, index, call, proceed)
        return proceed()

    def _strikes(self, index: int, fault: Fault, attempt: int) -> bool:
        if fault.attempt is not None:
            return attempt == fault.attempt
        return fault.kind.removeprefix("undo-") in PERSISTENT or self._fired[index] < fault.times

    async def _before(self, index: int, call: StepCall, proceed: Proceed) -> Any:
        raise exception_of(self.plan.faults[index])

    async def _effect(self, index: int, proceed: Proceed) -> Any:
        """Let the effect happen that the fault comes after. If it fails by itself, the fault has not happened."""
        try:
            return await proceed()
        except BaseException:
            self._fired[index] -= 1
            raise

    async def _after(self, index: int, call: StepCall, proceed: Proceed) -> Any:
        await self._effect(index, proceed)
        raise exception_of(self.plan.faults[index])

    async def _hang(self, index: int, call: StepCall, proceed: Proceed) -> Any:
        await asyncio.get_running_loop().create_future()

    async def _late_effect(self, index: int, call: StepCall, proceed: Proceed) -> Any:
        self.late.setdefault(call.step, []).append(proceed)
        await asyncio.get_running_loop().create_future()

    async def _cancel(self, index: int, call: StepCall, proceed: Proceed) -> Any:
        await self._effect(index, proceed)
        assert call.cancel_saga is not None
        call.cancel_saga()
        await asyncio.get_running_loop().create_future()

    async def _crash(self, index: int, call: StepCall, proceed: Proceed) -> Any:
        await self._effect(index, proceed)
        raise SimulatedCrash(str(self.plan.faults[index]))

    async def _repeat(self, index: int, call: StepCall, proceed: Proceed) -> Any:
        deliver_again = put_back(call.context)
        await self._effect(index, proceed)
        deliver_again()
        if call.renew_time is not None:
            call.renew_time(True)  # each delivery has the time that one has
        return await proceed()


PERSISTENT = frozenset({"before", "after", "hang", "late", "fail", "fail-after"})
"""The kinds, without `undo-`, that strike at every attempt."""

_Strike = Callable[[Injector, int, StepCall, Proceed], Awaitable[Any]]
_STRIKE: dict[str, _Strike] = {
    "before": Injector._before,
    "after": Injector._after,
    "hang": Injector._hang,
    "late": Injector._late_effect,
    "cancel": Injector._cancel,
    "flaky": Injector._before,
    "flaky-after": Injector._after,
    "crash": Injector._crash,
    "repeat": Injector._repeat,
    "fail": Injector._before,
    "fail-after": Injector._after,
}


_LATE_AT_MOST = 86_400.0
"""Seconds after which an effect that has not come by then never does. Its caller's own timeout is over already."""


_LATE_TURNS = 10_000
_TURNS_TO_END = 1_000
"""How often a loop of ours goes round at most for an effect that is late and polls, and for ending it."""


async def _deliver(calls: list[Proceed]) -> None:
    for proceed in calls:
        with contextlib.suppress(Exception):  # the caller is long gone: nobody is there to be told
            async with asyncio.timeout(_LATE_AT_MOST) as limit:
                with _few_turns(limit):
                    await proceed()


def _few_turns(limit: asyncio.Timeout) -> contextlib.AbstractContextManager[None]:
    loop: Any = asyncio.get_running_loop()

    def give_up(error: object) -> int:
        if limit.expired() or limit.when() == loop.time():
            return 0  # it was told to end, and goes on
        limit.reschedule(loop.time())
        return _TURNS_TO_END

    if not hasattr(loop, "watched"):
        return contextlib.nullcontext()
    watched: contextlib.AbstractContextManager[None] = loop.watched(give_up, _LATE_TURNS)
    return watched


def exception_of(fault: Fault) -> BaseException:
    """Return what the fault raises."""
    if fault.exception is None:
        return InjectedFaultError(f"injected by {fault}")
    return fault.exception if isinstance(fault.exception, BaseException) else fault.exception()
