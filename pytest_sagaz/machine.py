"""`SagaMachine`: runs sagas over one world at the same time, interleaved in whatever way Hypothesis finds worst."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from pytest_sagaz.interleaving import Interleaving
from sagaz_core.prove.world import World

if TYPE_CHECKING:
    from collections.abc import Mapping

_WHICH = st.integers(min_value=0, max_value=7)


class SagaMachine(RuleBasedStateMachine):
    """A Hypothesis state machine of two or more executions of sagas. Subclass it and write `begin`:

        class TwoWithdrawals(SagaMachine):
            locks = ("bank.locks.*",)

            def begin(self, world):
                bank = world.fake(Bank(), "bank")
                return {"ann": (Withdraw(bank), {"amount": 30}), "bob": (Withdraw(bank), {"amount": 20})}

        TestTwoWithdrawals = TwoWithdrawals.TestCase

    Every call of an action or a compensation waits until a rule lets it go; the rules also make an action fail and
    cancel an execution. When all have ended, the world must be what the completed ones leave when they run one after
    another, in some order, and the rolled-back ones never; if not, `AnomalyError` says which anomaly it is, and the
    schedule.

    `locks` are patterns of places in the world, as a change shows them, that must be at the end as they were at first.
    `faults` may be narrowed: with `()` nothing fails and nobody is cancelled. `patience` is for how long (in virtual
    seconds) a call that does not end holds up the others.
    """

    locks: ClassVar[tuple[str, ...]] = ()
    faults: ClassVar[tuple[str, ...]] = ("fail", "cancel")
    patience: ClassVar[float] = 1.0

    def __init__(self) -> None:
        super().__init__()
        world = World()
        self.interleaving = Interleaving(world, self.begin(world), locks=self.locks, patience=self.patience)

    def begin(self, world: World) -> Mapping[str, tuple[Any, Mapping[str, Any]]]:
        """Register the fakes in the world, and return the executions: a saga and its context for each name."""
        raise NotImplementedError(f"{type(self).__name__} needs a method begin(self, world)")

    def _can(self, what: str) -> bool:
        return what in self.faults and bool(self.interleaving.actions)

    @rule(which=_WHICH)
    def advance(self, which: int) -> None:
        """Let one call go on to its end."""
        self.interleaving.advance(which)

    @precondition(lambda self: self._can("fail"))
    @rule(which=_WHICH)
    def fail(self, which: int) -> None:
        """Let one action fail before it does anything."""
        self.interleaving.fail(which)

    @precondition(lambda self: self._can("cancel"))
    @rule(which=_WHICH)
    def cancel(self, which: int) -> None:
        """Cancel the execution that one action is of."""
        self.interleaving.cancel(which)

    def teardown(self) -> None:
        """Let all run to their ends, and judge."""
        try:
            self.interleaving.finish()
        finally:
            self.interleaving.close()
