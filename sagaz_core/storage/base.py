"""What a store keeps, and the protocol that every store follows.

A store keeps, for each saga: one `SagaRecord` (who it is), one `SagaSummary` (what it is now), its events in order of
`seq`, and its snapshots; and the log of replays. It keeps bytes: the codec and the compression (`frames.py`) are above
it, and what it returns is never the caller's own object.

A snapshot's bytes may be a difference from those of the snapshots before it, back to its `base_seq`. A store does not
look into them. It promises two things instead: what it returns has those snapshots with it (`bases`), read in the same
round trip; and whatever is deleted or expires, they stay as long as one that is still served needs them.

Every store passes `sagaz_core.storage.contract.SnapshotStorageContract`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

from sagaz_core.errors import UsageError

MAX_ID_LENGTH = 255


class SagaRecord(NamedTuple):
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


class Base(NamedTuple):
    """What another snapshot's bytes may be a difference from."""

    snapshot_id: str
    data: bytes


class SagaSnapshot(NamedTuple):
    """The state of a saga at a `seq`: `data` is `SagaState.to_data()`, encoded and (not in memory) framed: `frames.py`.

    `phase` is `before` or `after` a step, `undone` (after its compensation), `final`, `failed` or `manual`;
    `completed_steps` are those that are done and not undone, in order, and `step_index` is their number. `tags` are the
    pairs that the summary had at that `seq`, in order of key. Times are aware, UTC.

    Snapshots are in order of `seq`; those of one `seq` (after a step, before the next) in order of `snapshot_id`.
    An id is any text, also a longer one than a saga's, and unique in a store. The engine's name the saga and the `seq`
    (`snapshot_ids.py`), which a store may make use of; but others are to be found as well.

    `base_seq` is `None` when `data` stands alone; else all that is needed to read it are the saga's snapshots from
    `base_seq` on that come before this one. Those are its `bases`, in order. A store fills them in when it returns the
    snapshot, and does not look at them when it is given one; what else lies between (another writer's) is among them.
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
    base_seq: int | None = None
    bases: tuple[Base, ...] = ()
    completed_steps: tuple[str, ...] = ()
    tags: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        hidden = ("data", "bases")
        shown = ", ".join(f"{name}={value!r}" for name, value in self._asdict().items() if name not in hidden)
        return f"SagaSnapshot({shown})"


class SagaSummary(NamedTuple):
    """What a saga is now, for those who look for it: the only record that is replaced as the saga goes on.

    It is as of event `seq`. `step_name` is the step that failed and `failed_at` when it did, `""` and `None` when none
    has. `tags` are the values of the context's keys that `ReplayConfig(index_keys=…)` names, as readable text.
    """

    saga_id: str
    saga_name: str
    seq: int
    status: str
    step_name: str = ""
    failed_at: datetime | None = None
    tags: Mapping[str, str] = MappingProxyType({})


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

    def ended(self, status: str, completed_at: datetime, error: str = "") -> ReplayRecord:
        """Return the record of the same replay when it has ended."""
        return ReplayRecord(
            *(self.replay_id, self.original_saga_id, self.new_saga_id, self.checkpoint, self.initiated_by, status),
            *(self.created_at, self.override, self.plan, completed_at, error),
        )


class Batch(NamedTuple):
    """What is written together, all of it or nothing. All of it is of the one saga."""

    saga_id: str
    saga: SagaRecord | None = None
    events: Sequence[StoredEvent] = ()
    snapshots: Sequence[SagaSnapshot] = ()
    summary: SagaSummary | None = None


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """What a store holds. `bytes` is what it takes up where it is kept, as far as that can be told.

    `snapshots` are those that are stored, also the ones that are no longer served and not pruned yet. What is too
    damaged to be counted is not.
    """

    url: str
    schema_version: int
    sagas: int
    events: int
    snapshots: int
    replays: int
    bytes: int


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

    A snapshot whose `retention_until` is before the time that `clock` gives has *expired*: no method returns or counts
    it, but in `bases` and in `info`. `clock` may be replaced; by default it is `sagaz_core.clock.utc_now`.

    Round trips, of a store that has them: one for `write`, `write_many`, `get_saga`, `get_snapshot`, `latest_snapshot`,
    and for each page of a listing, `bases` included.
    """

    url: str
    clock: Callable[[], datetime]

    async def write(self, batch: Batch) -> None:
        """Write the batch atomically. The same event, snapshot or saga record again is no error and changes nothing.

        Raises `DuplicateSagaError`, and writes nothing of the batch, when there is something else under the same id:
        another record of the saga, another event of the same `seq`, another snapshot of the same `snapshot_id`. So two
        runs under one saga id are found out by the second write, and neither overwrites the other. A summary replaces
        one of a lower `seq`, and is left aside when there is one of the same or a higher one.

        When it returns, the batch is durable as far as the store can make anything durable. When it raises
        `StoreUnavailableError` the batch may have been written or not: the same one may be written again.
        """

    async def write_many(self, batches: Sequence[Batch]) -> Sequence[Exception | None]:
        """Do for each batch, in this order, what `write` does, in as few round trips as can be.

        Returns for each what `write` would have raised: one that is refused does not keep the others from being
        written. Raises what concerns them all, such as `StoreUnavailableError`.
        """

    async def get_saga(self, saga_id: str) -> SagaRecord | None:
        """Return who the saga is."""

    async def list_sagas(self, *, prefix: str = "", limit: int = 100, cursor: str | None = None) -> Page:
        """Return `SagaRecord`s in order of id (by code point), those whose id starts with `prefix`.

        Raises `DamagedListingError` for one that is damaged, with the page before it and the cursor behind it.
        """

    async def find_sagas(
        self,
        *,
        status: str | None = None,
        saga_name: str | None = None,
        step_name: str | None = None,
        failed_between: tuple[datetime, datetime] | None = None,
        tags: Mapping[str, str] | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page:
        """Return the `SagaSummary`s of which all that is given is true, in order of id (by code point).

        `step_name` is the step that failed, and `failed_between` both ends of when, themselves included. `tags` are
        all to be there with exactly these values; one that is no text is a `UsageError`. A damaged one is told of as
        `list_sagas` does.
        """

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
        """Delete the saga's snapshots below that `seq`, and return how many there were (expired ones do not count).

        Those that a snapshot from `below_seq` on needs as bases are no longer served from then on, as if they had
        expired, and go when nothing needs them any more: with a later call, or with `prune`. What a store says when one
        of them is written again is left to it.
        """

    async def delete_saga(self, saga_id: str) -> bool:
        """Delete the saga, its summary, events and snapshots (not the replay log), and say whether it was there.

        Of one that had snapshots alone, which have all been deleted, a store need not know that it was.
        """

    async def prune(self, now: datetime, *, batch: int = 500) -> int:
        """Delete the snapshots that have expired by `now`, and return how many there were.

        Those that one which has not expired needs as bases stay. It is done in parts of at most `batch` snapshots, so
        that no lock is held for long; a batch below 1 is a `UsageError`. A store that cannot do it without reading
        a saga passes over one that is damaged, and raises `CorruptDataError` when all others are done.
        """

    async def log_replay(self, record: ReplayRecord) -> None:
        """Write the record, or replace the one of the same id."""

    async def list_replays(self, saga_id: str) -> Sequence[ReplayRecord]:
        """Return the replays of that original, oldest first (by `created_at`, then `replay_id`)."""

    async def info(self) -> StoreInfo:
        """Return what the store holds. It may read all of it."""

    async def upgrade(self) -> int:
        """Create the store, or bring it to the schema of this release, and return the schema's version.

        Any number of processes may do it at once. Raises `SchemaError` when the store is of a newer schema; so does
        every other method. A store that is used without it does the same by its first write.
        """

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
