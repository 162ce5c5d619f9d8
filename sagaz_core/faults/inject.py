"""The interceptor that makes a plan's faults happen, and knows which of them did."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from sagaz_core.errors import InjectedFaultError
from sagaz_core.events import CompensationSucceeded, Event, StepSucceeded
from sagaz_core.faults.plan import Fault, FaultPlan
from sagaz_core.interceptor import Proceed, StepCall


class SimulatedCrash(BaseException):  # no error to be handled: the process is gone
    """The process died here. It is no `Exception`, so that nothing on the way undoes or records anything."""


class Injector:
    """Makes the faults of a plan happen in one run, also when the run is resumed.

    Give it to the engine as an interceptor and its `observe` as an observer. After the run, `deliver_late` lets the
    effects happen that were still under way when their step's time was up. `fired` counts what happened.
    """

    def __init__(self, plan: FaultPlan) -> None:
        self.plan = plan.completed()
        self.fired: Counter[Fault] = Counter()
        self._late: list[Proceed] = []
        self._calls: dict[tuple[str, str], list[Fault]] = {}
        self._recorded: dict[tuple[type[Event], str], Fault] = {}
        for fault in self.plan:
            undo = fault.described.undo
            if fault.kind.endswith("crash-recorded"):
                self._recorded[CompensationSucceeded if undo else StepSucceeded, fault.step] = fault
            else:
                kind = "compensation" if undo else "end" if fault.step == "end" else "action"
                self._calls.setdefault((kind, fault.step), []).append(fault)

    @property
    def observes(self) -> bool:
        """Whether the plan has a fault that strikes when something is recorded, so that `observe` is needed."""
        return bool(self._recorded)

    @property
    def missed(self) -> list[Fault]:
        """The faults of the plan that never happened."""
        return [fault for fault in self.plan if not self.fired[fault]]

    def concerns(self, call: StepCall) -> bool:
        """Whether the plan has a fault for calls of this kind at this step."""
        return (call.kind, call.step) in self._calls

    async def intercept(self, call: StepCall, proceed: Proceed) -> Any:
        """Make the call, as the plan has it."""
        for fault in self._calls.get((call.kind, call.step), ()):
            if self._strikes(fault, call.attempt):
                self.fired[fault] += 1
                return await _STRIKE[fault.kind.removeprefix("undo-")](self, fault, call, proceed)
        return await proceed()

    def observe(self, event: Event) -> None:
        """Die when what the plan names has been recorded."""
        if self._recorded:
            fault = self._recorded.get((type(event), getattr(event, "step", "")))
            if fault is not None and not self.fired[fault] and fault.attempt in (None, getattr(event, "attempt", None)):
                self.fired[fault] += 1
                raise SimulatedCrash(str(fault))

    async def deliver_late(self) -> None:
        """Let the effects happen that are still under way."""
        late, self._late = self._late, []
        for proceed in late:
            with contextlib.suppress(Exception):  # the caller is long gone: nobody is there to be told
                await proceed()

    def _strikes(self, fault: Fault, attempt: int) -> bool:
        if fault.attempt is not None:
            return attempt == fault.attempt
        if fault.kind.removeprefix("undo-") in _ALWAYS:
            return True
        return self.fired[fault] < fault.times

    async def _before(self, fault: Fault, call: StepCall, proceed: Proceed) -> Any:
        raise _exception(fault)

    async def _effect(self, fault: Fault, proceed: Proceed) -> Any:
        """Let the effect happen that the fault comes after. If it fails by itself, the fault has not happened."""
        try:
            return await proceed()
        except BaseException:
            self.fired[fault] -= 1
            raise

    async def _after(self, fault: Fault, call: StepCall, proceed: Proceed) -> Any:
        await self._effect(fault, proceed)
        raise _exception(fault)

    async def _hang(self, fault: Fault, call: StepCall, proceed: Proceed) -> Any:
        await asyncio.get_running_loop().create_future()

    async def _late_effect(self, fault: Fault, call: StepCall, proceed: Proceed) -> Any:
        self._late.append(proceed)
        await asyncio.get_running_loop().create_future()

    async def _cancel(self, fault: Fault, call: StepCall, proceed: Proceed) -> Any:
        await self._effect(fault, proceed)
        assert call.cancel_saga is not None
        call.cancel_saga()
        await asyncio.get_running_loop().create_future()

    async def _crash(self, fault: Fault, call: StepCall, proceed: Proceed) -> Any:
        await self._effect(fault, proceed)
        raise SimulatedCrash(str(fault))

    async def _repeat(self, fault: Fault, call: StepCall, proceed: Proceed) -> Any:
        await self._effect(fault, proceed)
        return await proceed()


_ALWAYS = frozenset({"before", "after", "hang", "late", "fail", "fail-after"})
_Strike = Callable[[Injector, Fault, StepCall, Proceed], Awaitable[Any]]
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


def _exception(fault: Fault) -> BaseException:
    if fault.exception is None:
        return InjectedFaultError(f"injected by {fault}")
    return fault.exception if isinstance(fault.exception, BaseException) else fault.exception()
