"""One saga in this process's memory: its record, its events and snapshots in order, and what may go of these."""

from __future__ import annotations

from bisect import bisect_left
from datetime import datetime
from functools import lru_cache, partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from sagaz_core.storage._checks import another_event, expired, model_from_json, model_to_json
from sagaz_core.storage._timeline import Timeline
from sagaz_core.storage.base import SagaRecord, SagaSnapshot, SagaSummary, StoredEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


_at = attrgetter("at")
_created_at = attrgetter("created_at")
seq_of = attrgetter("seq")
place_of = attrgetter("seq", "snapshot_id")


class HeldRecord:
    """A saga record whose model, a dict that others can reach, is kept as text, so that each reader has its own."""

    __slots__ = ("model", "saga")

    def __init__(self, saga: SagaRecord) -> None:
        self.model = model_to_json(saga)
        self.saga = saga

    def says(self, other: HeldRecord) -> bool:
        """Whether it is the same as the other."""
        return self.model == other.model and self.saga._replace(model={}) == other.saga._replace(model={})

    def copy(self) -> SagaRecord:
        return self.saga._replace(model=_made_anew(self.model)())


@lru_cache(maxsize=256)
def _made_anew(text: str) -> Callable[[], dict[str, Any]]:
    """Return what makes the model of this text, in half the time that reading the text takes."""
    import ormsgpack  # opening a store must not load it

    try:
        return partial(ormsgpack.unpackb, ormsgpack.packb(model_from_json("", text)))
    except TypeError:  # it has a number of more than 64 bits
        return partial(model_from_json, "", text)


class HeldSaga:
    """One saga's records. The timelines by step and phase are made by the first query that asks for one."""

    __slots__ = ("_filtered", "_filters", "events", "record", "snapshots", "summary")

    def __init__(self) -> None:
        self.record: HeldRecord | None = None
        self.summary: SagaSummary | None = None
        self.events: Timeline[StoredEvent] = Timeline(seq_of, _at)
        self.snapshots: Timeline[SagaSnapshot] = Timeline(place_of, _created_at)
        self.forget_filters()

    def new_events(self, events: Sequence[StoredEvent]) -> Sequence[StoredEvent]:
        """Return those that are not here yet, in order."""
        items = self.events.items
        last = items[-1].seq if items else -1
        for event in events:
            if event.seq <= last:
                return self._merged(events)
            last = event.seq
        return events

    def _merged(self, events: Sequence[StoredEvent]) -> list[StoredEvent]:
        items, new = self.events.items, dict[int, StoredEvent]()
        for event in events:
            known = new.get(event.seq)
            place = bisect_left(items, event.seq, key=seq_of)
            if place < len(items) and items[place].seq == event.seq:
                known = items[place]
            if known is None:
                new[event.seq] = event
            elif known != event:
                raise another_event(event)
        return sorted(new.values(), key=seq_of)

    def forget_filters(self) -> None:
        self._filters: dict[tuple[str | None, str | None], Timeline[SagaSnapshot]] = {}
        self._filtered = 0

    def timeline(self, step: str | None, phase: str | None) -> Timeline[SagaSnapshot] | None:
        """Return the snapshots of that step and phase, `None` if there are none."""
        if step is None and phase is None:
            return self.snapshots
        items = self.snapshots.items
        for snapshot in items[self._filtered :]:
            name, when = snapshot.step_name, snapshot.phase
            for key in ((name, None), (None, when), (name, when)):
                timeline = self._filters.get(key)
                if timeline is None:
                    timeline = self._filters[key] = Timeline(place_of, _created_at)
                timeline.items.append(snapshot)
        self._filtered = len(items)
        return self._filters.get((step, phase))


def own(of: SagaSummary) -> SagaSummary:
    """Return a copy whose tags nobody else can reach."""
    return SagaSummary(*of[:-1], dict(of.tags))


def bare(snapshot: SagaSnapshot) -> SagaSnapshot:
    return snapshot._replace(bases=()) if snapshot.bases else snapshot


def not_prunable(items: list[SagaSnapshot], now: datetime) -> list[SagaSnapshot]:
    """Return those that have not expired, and what they need."""
    kept: list[SagaSnapshot] = []
    needed: int | None = None
    for item in reversed(items):
        if expired(item, now):
            if needed is None or item.seq < needed:
                continue
        elif item.base_seq is not None:
            needed = item.base_seq if needed is None else min(needed, item.base_seq)
        kept.append(item)
    return kept[::-1]
