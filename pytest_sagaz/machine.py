"""`SagaMachine`: runs sagas over one world at the same time, interleaved in whatever way Hypothesis finds worst."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from pytest_sagaz.interleaving import Interleaving
from sagaz_core.errors import UsageError
from sagaz_core.prove.world import World

if TYPE_CHECKING:
    from collections.abc import Mapping

FAULTS = {"fail": "fails", "cancel": "is cancelled"}

_EXAMPLES = {"locks": 'a tuple of patterns, such as ("bank.locks.*",)', "faults": 'any of ("fail", "cancel")'}

_ADVANCES = 3  # times as likely as a fault: else most examples end before anything has happened


class SagaMachine(RuleBasedStateMachine):
    """A Hypothesis state machine of two or more executions of sagas. Subclass it and write `begin`:

        class TwoWithdrawals(SagaMachine):
            locks = ("bank.locks.*",)

            def begin(self, world):
                bank = world.fake(Bank(), "bank")
                return {"ann": (Withdraw(bank), {"amount": 30}), "bob": (Withdraw(bank), {"amount": 20})}

        TestTwoWithdrawals = TwoWithdrawals.TestCase

    Every call of an action or a compensation waits until the rule `go` lets it go on; it also makes an action fail and
    cancels an execution. When all have ended, the world must be what the completed ones leave when they run one after
    another, in some order, and the rolled-back ones never; if not, `AnomalyError` says which anomaly it is, and the
    schedule.

    `locks` are patterns of places in the world, as a change shows them, that must be at the end as they were at first.
    `faults` may be narrowed: with `()` nothing fails and nobody is cancelled. `patience` is for how long (in virtual
    seconds) a call that does not end holds up the others.
    """

    locks: ClassVar[tuple[str, ...]] = ()
    faults: ClassVar[tuple[str, ...]] = tuple(FAULTS)
    patience: ClassVar[float] = 1.0

    def __init__(self) -> None:
        super().__init__()
        for name, wrong in (("locks", isinstance(self.locks, str)), ("faults", not set(self.faults) <= FAULTS.keys())):
            if wrong:
                raise UsageError(f"{type(self).__name__}.{name} = {getattr(self, name)!r}: write {_EXAMPLES[name]}")
        world = World()
        self.interleaving = Interleaving(world, self.begin(world), locks=self.locks, patience=self.patience)

    def begin(self, world: World) -> Mapping[str, tuple[Any, Mapping[str, Any]]]:
        """Register the fakes in the world, and return the executions: a saga and its context for each name."""
        raise NotImplementedError(f"{type(self).__name__} needs a method begin(self, world)")

    def moves(self) -> dict[str, tuple[str, int]]:
        """Return what can come next: in words, and which method of the interleaving it is, with its argument."""
        calls, actions = self.interleaving.calls, self.interleaving.actions
        found = {f"{call} goes on": ("advance", number) for number, call in enumerate(calls)} or {
            "wait": ("advance", 0)
        }
        for what, words in FAULTS.items():
            if what in self.faults:
                found |= {f"{call} {words}": (what, number) for number, call in enumerate(actions)}
        return found

    @rule(move=st.runner().flatmap(lambda self: st.sampled_from(_weighted(self.moves()))))
    def go(self, move: str) -> None:
        """Let one call go on to its end, let an action fail before it does anything, or cancel its execution."""
        what, which = self.moves()[move]
        getattr(self.interleaving, what)(which)

    def teardown(self) -> None:
        """Let all run to their ends, and judge."""
        try:
            self.interleaving.finish()
        finally:
            self.interleaving.close()


def _weighted(moves: Mapping[str, tuple[str, int]]) -> list[str]:
    onwards = [move for move, (what, _) in moves.items() if what == "advance"]
    return onwards * _ADVANCES + [move for move in moves if move not in onwards]
