"""The ledger: which effects really happened, whatever the engine says. It sits closest to the user's functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sagaz_core.interceptor import Proceed, StepCall


_new: Callable[..., Any] = tuple.__new__


class Entry(NamedTuple):
    """One call of an action, or (`undo`) of a compensation. `began` and `ended` are places in one order of moments.

    `happened`: it returned, so its effect is there.
    """

    step: str
    undo: bool
    attempt: int
    began: int
    ended: int
    happened: bool


class Ledger:
    """An interceptor that writes down every call. Served steps count as done before the first moment."""

    def __init__(self, served: Iterable[str] = ()) -> None:
        self.served = tuple(served)
        self.entries: list[Entry] = []
        self._moment = 0

    async def intercept(self, call: StepCall, proceed: Proceed) -> Any:
        """Make the call and write it down."""
        kind = call.kind
        if kind != "action" and kind != "compensation":
            return await proceed()
        began = self._moment = self._moment + 1
        happened = False
        try:
            result = await proceed()
            happened = True
            return result
        finally:
            self._moment = ended = self._moment + 1
            entry = call.step, kind == "compensation", call.attempt, began, ended, happened
            self.entries.append(_new(Entry, entry))  # what `Entry(...)` does, in half the time

    def effects(self, step: str) -> tuple[list[int], list[int]]:
        """Return the moments at which the step's effect happened, and those at which it was undone."""
        done = [0] if step in self.served else []
        undone: list[int] = []
        for entry in self.entries:
            if entry.step == step and entry.happened:
                (undone if entry.undo else done).append(entry.ended)
        return done, undone

    def touched(self, step: str) -> bool:
        """Whether the step's action was called at all, or served."""
        return step in self.served or any(entry.step == step and not entry.undo for entry in self.entries)
