"""What the calls of a run began and did not end: tasks, timers, asynchronous generators."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from sagaz_core._leftovers import SCOPE, NewTasks, Scope, tells_scopes
from sagaz_core.prove.verdict import Finding, Verdict

if TYPE_CHECKING:
    from sagaz_core.interceptor import Proceed, StepCall

_OPERATIONS = {"action": "action", "compensation": "compensation", "recovery": "forward recovery"}


class Leftovers:
    """Watches the calls of one run.

    On a loop that is not ours only tasks are seen, and not whose they are; where other tasks ran beside the run when it
    began, none is looked for, because it may be theirs.
    """

    def __init__(self) -> None:
        self._scopes: dict[tuple[str, str], Scope] = {}  # by kind of call and step
        self._told = tells_scopes(asyncio.get_running_loop())
        self._whole = None
        if not self._told and asyncio.all_tasks() == {asyncio.current_task()}:
            self._whole = NewTasks()

    def enter(self, call: tuple[str, str]) -> None:
        """Take what is begun from now on, in this context, to be of this call, until another one is entered.

        The call is the kind and the step.
        """
        scope = self._scopes.get(call)
        if scope is None:
            if not self._told or call[0] not in _OPERATIONS:
                return
            scope = self._scopes[call] = Scope()
        SCOPE.set(scope)

    async def watch(self, call: StepCall, proceed: Proceed) -> Any:
        """Make the call."""
        before = SCOPE.get()
        self.enter((call.kind, call.step))
        try:
            return await proceed()
        finally:
            SCOPE.set(before)

    def leave(self) -> None:
        """Take what is begun from now on to be nobody's: no call is under way."""
        SCOPE.set(None)

    def died(self) -> None:
        """End all that was begun: the process died, and that with it."""
        self.leave()
        for scope in self._scopes.values():
            scope.end()

    async def findings(self) -> tuple[Finding, ...]:
        """Return what is wrong now that the run has ended, and end what is left."""
        self.leave()
        begun = [(of, scope) for of, scope in self._scopes.items() if scope.begun]
        found = [left_by(step, kind, left) for (kind, step), scope in begun if (left := scope.end())]
        if self._whole is not None and (left := self._whole.end()):
            found.append(left_by(None, "", left))
        if found:
            await asyncio.sleep(0)  # so that what was cancelled ends within this run
        return tuple(found)


def left_by(step: str | None, kind: str, left: tuple[str, ...]) -> Finding:
    """Return the finding for what a step left, in words."""
    who = "the saga" if step is None else f"the {_OPERATIONS[kind]} of {step!r}"
    what = " and ".join(left)
    return Finding(
        Verdict.ORPHAN,
        step,
        f"{who} left {what}, whose effects may come at any time",
        "end what a step begins before it returns: await or cancel its tasks, cancel its timers, close its generators "
        "(contextlib.aclosing)",
    )
