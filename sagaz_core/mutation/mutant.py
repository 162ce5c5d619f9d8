"""`Mutant`: one thing done wrong, as a value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sagaz_core.mutation.facts import changed_by, native
from sagaz_core.saga.definition import Definition

if TYPE_CHECKING:
    from sagaz_core.saga.base import Saga

Change = Callable[[Definition], Definition]


@dataclass(frozen=True, slots=True)
class Mutant:
    """A saga's mutant. `detail` is what it does wrong more precisely: another step, a key, a place of the world.

    `sentence` says what the mutated saga does, to go on from "nobody notices that …".
    """

    operator: str
    step: str
    detail: str
    sentence: str
    change: Change = field(compare=False, repr=False)

    def __str__(self) -> str:
        if self.operator == "lose-edge":
            return f"{self.operator}:{self.detail}->{self.step}"
        if not self.detail:
            return f"{self.operator}:{self.step}"
        return f"{self.operator}:{self.step}{'->' if self.operator == 'wrong-step' else '.'}{self.detail}"

    def apply(self, saga: Any) -> Saga[Any]:
        """Return a saga (of a class or an instance) that has it. What was given is left as it is."""
        return changed_by(native(saga), self.change)
