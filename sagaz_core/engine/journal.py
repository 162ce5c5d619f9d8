"""The one place where events are made: numbered, timed, folded into the state, recorded and shown to observers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sagaz_core.events import Event
from sagaz_core.state import SagaState

if TYPE_CHECKING:
    from sagaz_core.engine.capture import Capture

Observer = Callable[[Event], object]


class Journal:
    """The events of one run and the state that they make.

    Times never go back within a saga: a clock that was set back gives the time of the event before.
    """

    __slots__ = ("capture", "clock", "events", "observers", "state")

    def __init__(
        self,
        state: SagaState,
        clock: Callable[[], datetime],
        *,
        capture: Capture | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.state = state
        self.clock = clock
        self.capture = capture
        self.observers = observers
        self.events: list[Event] = []

    def emit(self, kind: Callable[..., Event], *fields: Any) -> None:
        """Make the next event from its fields after `seq` and `at`, and let it happen."""
        state = self.state
        at = self.clock()
        if state.at is not None and at < state.at:
            at = state.at
        event = kind(state.seq + 1, at, *fields)
        state.apply(event)
        self.events.append(event)
        if self.capture is not None:
            self.capture.record(event)
        for observer in self.observers:
            observer(event)
