"""The one place where events are made: numbered, timed, folded into the state, recorded and shown to observers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import starmap
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from sagaz_core.events import Event
from sagaz_core.state import FOLD

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from sagaz_core.engine.capture import Capture
    from sagaz_core.state import SagaState

Observer = Callable[[Event], object]
Noted: TypeAlias = tuple[type[Event], tuple[Any, ...]]
"""An event that is not made yet: its type, and its fields."""

_new: Callable[..., Any] = tuple.__new__
logger = logging.getLogger(__name__)


def events_of(log: Iterable[Noted]) -> Iterator[Event]:
    """Make the events of what was noted."""
    return starmap(_new, log)


class LateEvents(Sequence[Event]):
    """The events of a log, made when they are first looked at."""

    __slots__ = ("_events", "_log")

    def __init__(self, log: list[Noted]) -> None:
        self._log = log
        self._events: list[Event] = []

    def _made(self) -> list[Event]:
        if len(self._events) < len(self._log):
            self._events += events_of(self._log[len(self._events) :])
        return self._events

    def __repr__(self) -> str:
        return repr(self._made())

    def __len__(self) -> int:
        return len(self._log)

    def __iter__(self) -> Iterator[Event]:
        return iter(self._made())

    @overload
    def __getitem__(self, index: int) -> Event: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Event]: ...

    def __getitem__(self, index: int | slice) -> Event | Sequence[Event]:
        return self._made()[index]


class Journal:
    """The events of one run and the state that they make.

    Times never go back within a saga: a clock that was set back gives the time of the event before. An observer that
    raises an `Exception` is logged: whoever looks on must not stop what he looks at. `log` has what the events are
    made of; they are made when somebody asks for them.
    """

    __slots__ = ("_is_told", "_observers", "capture", "clock", "log", "state")

    def __init__(
        self,
        state: SagaState,
        clock: Callable[[], datetime],
        *,
        capture: Capture | None = None,
        observers: Iterable[Observer] = (),
    ) -> None:
        self.state = state
        self.clock = clock
        self.capture = capture
        self._observers = tuple(observers)
        self._is_told = capture is not None or bool(self._observers)
        self.log: list[Noted] = []

    @property
    def run_id(self) -> str:
        """What tells this run from others of its saga, `""` for one that is not captured."""
        return "" if self.capture is None else self.capture.run_id

    @property
    def events(self) -> list[Event]:
        """All that has happened so far."""
        return list(events_of(self.log))

    def emit(self, kind: type[Event], *fields: Any) -> None:
        """Make the next event from all its fields after `seq` and `at`, and let it happen."""
        state, clock = self.state, self.clock
        at = clock()
        if at is not state.at:
            if (last := state.at) is not None and at < last:
                at = last
            state.at = at
        # What `state.apply(kind(...))` does, but for asking whether it is the next one.
        state.seq = seq = state.seq + 1
        made = (seq, at) + fields  # noqa: RUF005 - with a star it is a list first
        FOLD[kind](state, made)
        self.log.append((kind, made))
        if self._is_told:
            self._tell(_new(kind, made))

    def _tell(self, event: Event) -> None:
        if self.capture is not None:
            self.capture.record(event)
        for observer in self._observers:
            try:
                observer(event)
            except Exception:  # anyone's
                logger.exception("an observer of saga %s failed at %s", self.state.saga_id, type(event).__name__)
