"""The one place where events are made: numbered, timed, folded into the state, recorded and shown to observers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sagaz_core.events import EVENT_SIZES, Event
from sagaz_core.state import FOLD

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sagaz_core.engine.capture import Capture
    from sagaz_core.state import SagaState

Observer = Callable[[Event], object]
_new: Callable[..., Any] = tuple.__new__
logger = logging.getLogger(__name__)


class Journal:
    """The events of one run and the state that they make.

    Times never go back within a saga: a clock that was set back gives the time of the event before. An observer that
    raises an `Exception` is logged: whoever looks on must not stop what he looks at.
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

    def emit(self, kind: type[Event], *fields: Any) -> None:
        """Make the next event from its fields after `seq` and `at`, and let it happen."""
        state = self.state
        at, last = self.clock(), state.at
        if at is not last and last is not None and at < last:
            at = last
        seq = state.seq + 1
        # What `kind(...)` and `state.apply(event)` do, but for defaults, and for asking whether it is the next one.
        made = (seq, at, *fields)
        event = _new(kind, made) if len(made) == EVENT_SIZES[kind] else kind(*made)
        state.seq = seq
        state.at = at
        FOLD[kind](state, event)
        self.events.append(event)
        if self.capture is not None:
            self.capture.record(event)
        if self.observers:
            self._show(event)

    def _show(self, event: Event) -> None:
        for observer in self.observers:
            try:
                observer(event)
            except Exception:  # anyone's
                logger.exception("an observer of saga %s failed at %s", self.state.saga_id, type(event).__name__)
