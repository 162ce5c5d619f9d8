"""What a store keeps, and the protocol that every store follows.

A store keeps, for each saga: one `SagaRecord` (who it is), its events in order of `seq`, and its snapshots; and the log
of replays. It keeps bytes: the codec is above it, and what it returns is never the caller's own object.

Every store passes `sagaz_core.storage.contract.SnapshotStorageContract`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Protocol, runtime_checkable

from sagaz_core.errors import UsageError

MAX_ID_LENGTH = 255


@dataclass(frozen=True, slots=True)
class SagaRecord:
    """Who a saga is. `model` is `SagaModel.to_dict()`, which is JSON-able; `source` is `module:qualname` of its class.

    `adapter` names the engine; `plan` is the fault plan that it was recorded under, if any.
    """

    saga_id: str
    saga_name: str
    version: str
    fingerprint: str
    model: dict[str, Any]
    started_at: datetime
    source: str = ""
    adapter: str = "native"
    plan: str = ""


class StoredEvent(NamedTuple):
    """One event: `kind` is its type's name, `data` its other fields, encoded."""

    saga_id: str
    seq: int
    at: datetime
    kind: str
    step: str | None
    data: bytes


class SagaSnapshot(NamedTuple):
    """The state of a saga at a `seq`: `data` is `SagaState.to_data()`, encoded.

    `phase` is `before` or `after` a step, `undone` (after its compensation), `final`, `failed` or `manual`;
    `step_index` is the number of steps that were completed. Times are aware, UTC. `snapshot_id` is unique in a store.
    Snapshots are in order of `seq`; those of one `seq` (after a step, before the next) in order of `snapshot_id`.
    """

    snapshot_id: str
    saga_id: str
    saga_name: str
    step_name: str
    step_index: int
    seq: int
    phase: str
    status: str
    created_at: datetime
    data: bytes
    retention_until: datetime | None = None

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self._asdict().items() if name != "data")
        return f"SagaSnapshot({shown})"


@dataclass(frozen=True, slots=True)
class ReplayRecord:
    """One replay: written before it starts (`status="started"`), and again under the same id when it ended."""

    replay_id: str
    original_saga_id: str
    new_saga_id: str
    checkpoint: str
    initiated_by: str
    status: str
    created_at: datetime
    override: bytes = b""
    plan: str = ""
    completed_at: datetime | None = None
    error: str = ""


class Batch(NamedTuple):
    """What is written together, all of it or nothing. All of it is of the one saga."""

    saga_id: str
    saga: SagaRecord | None = None
    events: Sequence[StoredEvent] = ()
    snapshots: Sequence[SagaSnapshot] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a listing. `cursor` gives the next one and means nothing to the caller, `None` is the end."""

    items: Sequence[Any]
    cursor: str | None = None


@runtime_checkable
class SnapshotStorage(Protocol):
    """A store. Every method may raise `StorageError`; unknown ids give `None` or nothing, never an error.

    Calls are coroutines; one that never waits (an embedded store) may do its work inline. Times given must be aware,
    or `NaiveTimeError` is raised; times returned are exact to the microsecond. Text is any text, also with NUL, quotes
    and `%`: ids are data, never paths or patterns. A limit below 1, or a cursor that no page gave, is a `UsageError`.

    Clocks go back. `until` means, whatever the order of the times is, "up to the record of highest `seq` whose time is
    not after it".
    """

    url: str

    async def write(self, batch: Batch) -> None:
        """Write the batch atomically. The same event, snapshot or saga record again is no error and changes nothing.

        Raises `DuplicateSagaError`, and writes nothing of the batch, when there is something else under the same id:
        another record of the saga, another event of the same `seq`, another snapshot of the same `snapshot_id`. So two
        runs under one saga id are found out by the second write, and neither overwrites the other.
        """

    async def get_saga(self, saga_id: str) -> SagaRecord | None:
        """Return who the saga is."""

    async def list_sagas(self, *, prefix: str = "", limit: int = 100, cursor: str | None = None) -> Page:
        """Return `SagaRecord`s in order of id (by code point), those whose id starts with `prefix`."""

    async def get_snapshot(self, snapshot_id: str) -> SagaSnapshot | None:
        """Return one snapshot."""

    async def latest_snapshot(
        self,
        saga_id: str,
        *,
        step: str | None = None,
        phase: str | None = None,
        until: datetime | None = None,
        max_seq: int | None = None,
    ) -> SagaSnapshot | None:
        """Return the snapshot of highest `seq` among those of that step and phase, created at or before `until`, and of
        a `seq` not above `max_seq`; of several the one of the highest `snapshot_id`.
        """

    async def list_snapshots(self, saga_id: str, *, limit: int = 100, cursor: str | None = None) -> Page:
        """Return the saga's snapshots in order of `seq`, then `snapshot_id`."""

    def read_events(
        self, saga_id: str, *, after_seq: int = -1, until: datetime | None = None
    ) -> AsyncIterator[StoredEvent]:
        """Iterate the events above `after_seq` in order of `seq`, up to the last one whose time is not after `until`.

        Nothing is held open between two events; events written meanwhile may or may not be among them.
        """

    async def count_snapshots(self, saga_id: str) -> int:
        """Return how many snapshots the saga has."""

    async def delete_snapshots(self, saga_id: str, *, below_seq: int) -> int:
        """Delete the saga's snapshots below that `seq`, and return how many there were."""

    async def delete_saga(self, saga_id: str) -> bool:
        """Delete the saga, its events and snapshots (not the replay log), and say whether it was there."""

    async def delete_expired(self, now: datetime) -> int:
        """Delete the snapshots whose `retention_until` is before `now`, and return how many there were."""

    async def log_replay(self, record: ReplayRecord) -> None:
        """Write the record, or replace the one of the same id."""

    async def list_replays(self, saga_id: str) -> Sequence[ReplayRecord]:
        """Return the replays of that original, oldest first (by `created_at`, then `replay_id`)."""

    async def close(self) -> None:
        """Let go of connections and files. Closing twice is no error."""


def checked_id(saga_id: object) -> str:
    """Return the id as a string, or raise `UsageError`: any text of 1 to 255 characters, or a UUID."""
    text = saga_id if isinstance(saga_id, str) else str(saga_id) if type(saga_id).__name__ == "UUID" else None
    if text is None or not 1 <= len(text) <= MAX_ID_LENGTH:
        raise UsageError(f"{saga_id!r:.80} is not a saga id: give a text of 1 to {MAX_ID_LENGTH} characters, or a UUID")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{saga_id!a:.80} is not a saga id: it has a lone surrogate") from None
    return text
