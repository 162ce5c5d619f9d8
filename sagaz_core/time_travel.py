"""Asking the past: what a saga's state was at a moment, and how it came to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sagaz_core.engine.load import load_record, load_state
from sagaz_core.errors import UsageError
from sagaz_core.events import (
    CompensationFailed,
    ErrorInfo,
    Event,
    SagaFailed,
    StepFailed,
)
from sagaz_core.state import SagaState, SagaStatus
from sagaz_core.storage.base import Page, SnapshotStorage, checked_id
from sagaz_core.storage.codec import known_class
from sagaz_core.storage.records import Resolve, unpack_event
from sagaz_core.times import aware


@dataclass(frozen=True, slots=True)
class HistoricalState:
    """What a saga was at `timestamp` (UTC). `status` is `pending` when it had not started yet; `at` is the time of its
    last event by then, `seq` that event's number (-1 before the first).
    """

    saga_id: str
    saga_name: str
    timestamp: datetime
    status: SagaStatus
    context: Mapping[str, Any]
    completed_steps: tuple[str, ...] = ()
    compensated_steps: tuple[str, ...] = ()
    current_step: str | None = None
    results: Mapping[str, Any] = field(default_factory=dict)
    stuck: tuple[str, ...] = ()
    error: ErrorInfo | None = None
    at: datetime | None = None
    seq: int = -1

    @property
    def started(self) -> bool:
        """Whether the saga had started by then."""
        return self.status is not SagaStatus.PENDING


@dataclass(frozen=True, slots=True)
class StateChange:
    """One event, and the keys of the context that it changed. `detail` is its error, if it has one."""

    seq: int
    at: datetime
    kind: str
    step: str | None
    status: SagaStatus
    changed_keys: tuple[str, ...] = ()
    detail: str = ""


class SagaTimeTravel:
    """Answers questions about one stored saga. Values of classes that are not known here need `resolve`."""

    def __init__(self, saga_id: object, snapshot_storage: SnapshotStorage, *, resolve: Resolve = known_class) -> None:
        self.saga_id = checked_id(saga_id)
        self._storage = snapshot_storage
        self._resolve = resolve

    async def get_state_at(self, timestamp: datetime | str) -> HistoricalState:
        """Return the state at that time: an aware datetime, or ISO text with a zone.

        It is exact at and between any snapshots, up to what was journaled. Raises `UnknownSagaError`, `NaiveTimeError`.
        """
        moment = aware(timestamp)
        record = await load_record(self._storage, self.saga_id)
        state = await load_state(self._storage, self.saga_id, until=moment, resolve=self._resolve)
        return _historical(state, self.saga_id, record.saga_name, moment)

    async def get_context_at(self, timestamp: datetime | str, key: str | None = None) -> Any:
        """Return the context at that time, or one key of it; `None` where there was no such key."""
        state = await self.get_state_at(timestamp)
        return dict(state.context) if key is None else state.context.get(key)

    async def list_state_changes(
        self,
        after: datetime | str | None = None,
        before: datetime | str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page:
        """Return the `StateChange`s later than `after` and earlier than `before`, in order, `limit` at a time.

        `cursor` of one page gives the next; it is `None` on the last.
        """
        if limit < 1:
            raise UsageError(f"a limit of {limit}: give a number from 1")
        since, until = (None if t is None else aware(t) for t in (after, before))
        await load_record(self._storage, self.saga_id)
        start = _cursor(cursor)
        state = SagaState() if start < 0 else await self._state_at_seq(start)
        found: list[StateChange] = []
        async for stored in self._storage.read_events(self.saga_id, after_seq=state.seq):
            event = unpack_event(stored, self._resolve)
            context = state.context
            state.apply(event)
            if (since is not None and event.at <= since) or (until is not None and event.at >= until):
                continue
            if len(found) == limit:
                return Page(found, str(found[-1].seq))
            found.append(_change(event, state.status, context, state.context))
        return Page(found)

    async def _state_at_seq(self, seq: int) -> SagaState:
        return await load_state(self._storage, self.saga_id, max_seq=seq, resolve=self._resolve)


def _cursor(text: str | None) -> int:
    if text is None:
        return -1
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise UsageError(f"{text!r:.80} is not a cursor: give the one that the page before returned")
    return int(text)


def _historical(state: SagaState, saga_id: str, saga_name: str, moment: datetime) -> HistoricalState:
    return HistoricalState(
        saga_id=saga_id,
        saga_name=saga_name,
        timestamp=moment,
        status=state.status,
        context=state.context,
        completed_steps=tuple(state.results),
        compensated_steps=tuple(state.undone),
        current_step=state.current_step,
        results=state.results,
        stuck=state.stuck,
        error=state.error,
        at=state.at,
        seq=state.seq,
    )


def _change(event: Event, status: SagaStatus, before: Mapping[str, Any], after: Mapping[str, Any]) -> StateChange:
    keys = [key for key, value in after.items() if key not in before or before[key] is not value]
    keys += [key for key in before if key not in after]
    detail = ""
    if isinstance(event, (StepFailed, CompensationFailed)):
        detail = str(event.error)
    elif isinstance(event, SagaFailed):
        detail = f"stuck: {', '.join(event.stuck)}"
    return StateChange(
        event.seq, event.at, type(event).__name__, getattr(event, "step", None), status, tuple(keys), detail
    )
