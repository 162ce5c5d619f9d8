"""What can be done next at a branch, and doing it: for a search, or once more along one path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sagaz_core.prove.effects import Stopped
from sagaz_core.prove.summary import Move, Path

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping, Sequence

    from sagaz_core.engine.run import Served
    from sagaz_core.faults.plan import Fault
    from sagaz_core.model import SagaModel
    from sagaz_core.prove.branch import Branch

NO_FAULT = Move(0, ())
"""The first operation of those that are possible, with no fault."""


class Moves:
    """The operations of a saga, in all orders of its steps with `orders`, else in two. `recorded` steps are not run."""

    def __init__(self, model: SagaModel, recorded: Mapping[str, Served], *, orders: bool) -> None:
        self.model = model
        self._recorded = recorded
        self._orders = orders

    def forward(self, ready: list[str]) -> Sequence[str]:
        """Return those of the steps that can start which are tried as the next one."""
        if self._orders:
            return ready
        return ready[:1] if len(ready) == 1 or self.model.linear else (ready[0], ready[-1])

    def back(self, todo: tuple[str, ...], late: Sequence[Any]) -> Sequence[str]:
        """Return those of the steps to be undone which are tried as the next one."""
        if self.model.linear or len(todo) == 1 or late:
            return todo[:1]  # what is late comes after its own compensation, which is the first: one order shows it
        below, left = self.model.descendants, set(todo)
        enabled = [step for step in todo if not below[step] & left]
        if self._orders:
            return enabled
        return enabled[:1] if len(enabled) == 1 else (enabled[0], enabled[-1])

    def made(
        self, branch: Branch, step: str, script: Sequence[Fault] = (), already: int = 0, *, undo: bool
    ) -> Awaitable[None]:
        """Return the awaitable of one operation on the branch. Raises `Stopped` when it is awaited."""
        if undo:
            return branch.undo(step, script, already)
        if not script and not branch.live and step in self._recorded:
            return branch.serve(self._recorded[step])
        return branch.act(step, script, already)

    async def walked(self, root: Branch, path: Path) -> Branch:
        """Go the path, and on without a fault, and return its end, with its events and the ledger's entries."""
        effects = root.effects
        limit, effects.limit = effects.limit, None
        try:
            at, moves = root.fork(), path.moves
            at.entries = []
            at.journal.log = root.journal.log.copy()
            while moves is not None:
                move, moves = moves
                at = await self._moved(at.fork(), move)
            while at.undoing is not None and at.undoing.todo:  # a path may end where the saga turns back
                at = await self._moved(at.fork(), NO_FAULT)
            if not at.state.status.ended:
                await at.end()
            return at
        except Stopped as stopped:
            raise stopped.error or stopped from None
        finally:
            effects.limit = limit

    async def _moved(self, at: Branch, move: Move) -> Branch:
        if at.undoing is not None:
            await self.made(at, self.back(at.undoing.todo, at.late)[move.place], move.script, undo=True)
            return at
        ready = at.ready()
        if ready:
            for name, effect in move.interrupted:
                await at.interrupt(name, effect)
            await self.made(at, self.forward(ready)[move.place], move.script, undo=False)
            if not at.turning_back or (at.past_pivot and await at.recover()):
                return at
        elif move.script:
            at.fail_end(move.script[0])
        if at.turning_back and not at.past_pivot:
            at.begin_undoing()
        else:
            await at.end()
        return at
