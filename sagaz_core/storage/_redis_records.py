"""What the Redis store keeps, and its keys. Times are microseconds since 1970; values are MessagePack.

Each write to a saga is an *entry*, numbered from 1 on: entries are never changed by another write, so that to set entry
n+1 if there is none is to append behind what one knows. In keys an entry is `n:saga`.

| key | what |
|---|---|
| `saga:ID`, `sum:ID` | the saga's record, its summary |
| `x:ID` | the saga's entries, a sorted set |
| `log:n:ID` | of an entry: how many events it has, and its snapshots without their states |
| `ev:n:ID` | of an entry: its events |
| `st:n:ID` | of an entry: the states of its snapshots, which expire with the last that needs them |
| `v:ID` | changes when entries are changed, by deleting |
| `s:ID` | its entries by the lowest `seq` in them, a sorted set; earlier releases made none |
| `t:ID` | its entries that have snapshots, by the earliest time of those |
| `o:ID` | there when something comes before what is in an earlier entry |
| `b:ID` | there when something is of an earlier time than what comes before it |
| `id:SNAPSHOT` | the entry that a snapshot is in |
| `g:SNAPSHOT` | that one and those that its bases are in, a sorted set |
| `r:SEQ:ID` | a run (see `_redis_runs.py`): its entries, and the `seq` from which on it has all snapshots, a hash |
| `i:ID:STEP:PHASE` | the runs with a snapshot of that step and phase, by the time of the first; either may be missing |
| `c:ID` | the last entry up to which all are in runs and their indices; short sagas have none |
| `all`, `sagas`, `sums` | the ids of all sagas, of those with a record, of those with a summary: sorted sets |
| `f:…` | the ids of the sagas whose summary has, or had, that |
| `exp` | the ids of sagas by their earliest `retention_until` |
| `rep:ID`, `reps:SAGA` | a replay; the replays of a saga, a sorted set |
| `version` | of all this |
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zlib import crc32

import ormsgpack

from sagaz_core.errors import CorruptDataError, UsageError
from sagaz_core.storage._checks import check_moment, model_from_json, model_to_json
from sagaz_core.storage.base import ReplayRecord, SagaRecord, SagaSnapshot, SagaSummary, StoredEvent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MIN = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
_MAX = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
_RETENTION, _RUN = 8, 12  # of a snapshot's header
_SEALED = b"\xc1"  # the one byte that MessagePack never uses


def micros(moment: datetime) -> int:
    """Return the time as microseconds. Raises `NaiveTimeError`, or `UsageError` outside the years 1 to 9999, UTC."""
    check_moment(moment)
    since = moment - _EPOCH
    found = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    if not _MIN <= found <= _MAX:
        raise UsageError(f"{moment.isoformat()} cannot be stored: in UTC it is not in the years 1 to 9999")
    return found


def micros_or_none(moment: datetime | None) -> int | None:
    return None if moment is None else micros(moment)


def _moment(found: int) -> datetime:
    return _EPOCH + timedelta(0, 0, found)


def _moment_or_none(found: int | None) -> datetime | None:
    return None if found is None else _moment(found)


def pack(value: Any) -> bytes:
    """Return the value as bytes, the same for equal values. Raises `UsageError` for text or numbers that are none."""
    try:
        return ormsgpack.packb(value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"Redis cannot store this text or number: {error}") from error


def unpack(data: bytes, what: str) -> Any:
    """Do the inverse of `pack`. Raises `CorruptDataError`."""
    try:
        found = ormsgpack.unpackb(data)
    except ValueError as error:
        raise CorruptDataError(f"{what} is damaged: {error}") from error
    if ormsgpack.packb(found) != data:  # a list with a wrong length leaves bytes over, at which nobody looks
        raise CorruptDataError(f"{what} is damaged: it says that it is shorter than it is")
    return found


def seal(data: bytes) -> bytes:
    """Return packed data with their checksum. Events and states need none: they have their own."""
    return b"".join((_SEALED, crc32(data).to_bytes(4, "big"), data))


def unseal(data: bytes, what: str) -> Any:
    """Return what was packed and sealed, or packed by an earlier release. Raises `CorruptDataError`."""
    if data[:1] != _SEALED:
        found = unpack(data, what)
        if isinstance(found, list):
            return found
        raise CorruptDataError(f"{what} is damaged: it does not begin as one does")
    if crc32(data[5:]) != int.from_bytes(data[1:5], "big"):
        raise CorruptDataError(f"{what} is damaged: its checksum is wrong")
    return unpack(data[5:], what)


def _check_place(found: object, expected: str, what: str) -> None:
    if found != expected:
        raise CorruptDataError(f"{what} is damaged: it is that of another one, {found!r:.80}")


def as_key(text: str) -> bytes:
    """Return the text as a part of a key."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"Redis cannot store this text: {error}") from error


def pack_saga(record: SagaRecord) -> bytes:
    """Return the record as bytes."""
    started = micros(record.started_at)
    names = record.saga_id, record.saga_name, record.version, record.fingerprint
    return seal(pack([*names, model_to_json(record), started, record.source, record.adapter, record.plan]))


def unpack_saga(saga_id: str, data: bytes) -> SagaRecord:
    """Do the inverse of `pack_saga`; the id is that under which it is stored."""
    what = f"the record of saga {saga_id!r}"
    found, name, version, fingerprint, model, started, source, adapter, plan = unseal(data, what)
    _check_place(found, saga_id, what)
    fields = model_from_json(saga_id, model)
    return SagaRecord(saga_id, name, version, fingerprint, fields, _moment(started), source, adapter, plan)


def pack_summary(summary: SagaSummary) -> bytes:
    """Return the summary as bytes."""
    names = summary.saga_id, summary.saga_name, summary.seq, summary.status, summary.step_name
    return seal(pack([*names, micros_or_none(summary.failed_at), dict(summary.tags)]))


def unpack_summary(saga_id: str, data: bytes) -> SagaSummary:
    """Do the inverse of `pack_summary`; the id is that under which it is stored."""
    what = f"the summary of saga {saga_id!r}"
    found, name, seq, status, step, failed_at, tags = unseal(data, what)
    _check_place(found, saga_id, what)
    return SagaSummary(saga_id, name, seq, status, step, _moment_or_none(failed_at), tags)


def index_names(summary: SagaSummary | None) -> set[bytes]:
    """Return the names of the indices that have the saga."""
    if summary is None:
        return set()
    found = {("status", summary.status), ("name", summary.saga_name), ("step", summary.step_name)}
    return {index_name(kind, value) for kind, value in found} | {
        index_name("tag", key, value) for key, value in summary.tags.items()
    }


def index_name(kind: str, *values: str) -> bytes:
    """Return the name of the index of sagas of which that is true."""
    return b":".join([kind.encode(), *(b"%d:%s" % (len(value), as_key(value)) for value in values)])


def pack_replay(record: ReplayRecord) -> bytes:
    """Return the replay as bytes."""
    times = micros(record.created_at), micros_or_none(record.completed_at)
    names = record.replay_id, record.original_saga_id, record.new_saga_id, record.checkpoint, record.initiated_by
    return seal(pack([*names, record.status, times[0], record.override, record.plan, times[1], record.error]))


def unpack_replay(data: bytes) -> ReplayRecord:
    """Do the inverse of `pack_replay`."""
    replay_id, original, new, checkpoint, by, status, *others = unseal(data, "a replay's record")
    created, override, plan, completed, error = others
    times = _moment(created), _moment_or_none(completed)
    return ReplayRecord(replay_id, original, new, checkpoint, by, status, times[0], override, plan, times[1], error)


class Keys:
    """The names of the store's keys."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix.encode() + b":"

    def of(self, kind: bytes, *names: bytes) -> bytes:
        """Return the key of that kind and name."""
        return self.prefix + b":".join((kind, *names))

    def guard(self, saga_id: str) -> bytes:
        """Return the key by which a write to the saga is given up; see `Conditional`."""
        return self.of(b"tmp", b"guard", as_key(saga_id))


# ---- entries


def pack_events(events: list[StoredEvent]) -> bytes:
    """Return an entry's events as bytes."""
    return pack([[event.seq, micros(event.at), event.kind, event.step, event.data] for event in events])


def unpack_events(saga_id: str, data: bytes) -> Iterator[StoredEvent]:
    """Do the inverse of `pack_events`."""
    what = f"an entry of saga {saga_id!r}"
    rows = unpack(data, what)
    try:
        for seq, at, kind, step, held in rows:
            yield StoredEvent(saga_id, seq, _moment(at), kind, step, _bytes(held))
    except (TypeError, ValueError, OverflowError) as error:
        raise CorruptDataError(f"{what} is damaged: {error}") from error


def pack_log(saga_id: str, events: int, snapshots: Sequence[SagaSnapshot], runs: Mapping[str, int]) -> bytes:
    """Return the head of an entry; `runs` are the names of those that its snapshots are of, by their ids."""
    return seal(pack([saga_id, events, [_header(snapshot, runs) for snapshot in snapshots]]))


def _header(snapshot: SagaSnapshot, runs: Mapping[str, int]) -> list[Any]:
    return [
        *(snapshot.snapshot_id, snapshot.saga_name, snapshot.step_name, snapshot.step_index, snapshot.seq),
        *(snapshot.phase, snapshot.status, micros(snapshot.created_at), micros_or_none(snapshot.retention_until)),
        *(snapshot.base_seq, list(snapshot.completed_steps), dict(snapshot.tags), runs.get(snapshot.snapshot_id)),
    ]


def runs_in(headers: Sequence[list[Any]]) -> dict[str, int]:
    """Return the names of the runs of an entry's snapshots, by their ids. Earlier releases wrote none."""
    return {header[0]: header[_RUN] for header in headers if len(header) > _RUN and header[_RUN] is not None}


def pack_states(snapshots: Sequence[SagaSnapshot]) -> bytes:
    """Return the states of an entry's snapshots."""
    return pack([snapshot.data for snapshot in snapshots])


def unpack_log(log: bytes, of: str) -> tuple[str, int, list[list[Any]]]:
    """Return the saga, the number of events, and the heads of the snapshots; `of` is what an error names."""
    saga_id, events, headers = unseal(log, f"an entry of {of!r}")
    return saga_id, events, headers


def unpack_heads(log: bytes, of: str) -> list[SagaSnapshot]:
    """Return an entry's snapshots without their states. `of` is what an error names."""
    saga_id, _, headers = unpack_log(log, of)
    try:
        return [_snapshot(saga_id, header) for header in headers]
    except (TypeError, ValueError, OverflowError) as error:
        raise CorruptDataError(f"an entry of saga {saga_id!r} is damaged: {error}") from error


def unpack_states(states: bytes, number: int, saga_id: str) -> list[bytes]:
    """Return the states of an entry's snapshots, of which there are that many."""
    what = f"an entry of saga {saga_id!r}"
    found = unpack(states, what)
    if not isinstance(found, list) or len(found) != number or not all(isinstance(one, bytes) for one in found):
        raise CorruptDataError(f"{what} is damaged: it has not the states of its {number} snapshots")
    return found


def unpack_snapshots(log: bytes, states: bytes | None, of: str) -> list[SagaSnapshot]:
    """Return an entry's snapshots; none when their states have expired. `of` is what an error names."""
    heads = unpack_heads(log, of)
    if states is None or not heads:
        return []
    held = unpack_states(states, len(heads), heads[0].saga_id)
    return [head._replace(data=data) for head, data in zip(heads, held, strict=True)]


def _snapshot(saga_id: str, header: list[Any]) -> SagaSnapshot:
    snapshot_id, saga_name, step, index, seq, phase, status, created, until, base_seq, *others = header
    times = _moment(created), _moment_or_none(until)
    without: list[Any] = [(), {}]  # earlier releases wrote none
    completed, tags, *_ = *others, *without[len(others) :]
    return SagaSnapshot(
        *(snapshot_id, saga_id, saga_name, step, index, seq, phase, status, times[0], b"", times[1], base_seq),
        completed_steps=tuple(completed),
        tags=tuple(tags.items()),
    )


def _bytes(found: object) -> bytes:
    if not isinstance(found, bytes):
        raise TypeError("what is to be bytes is not")
    return found


def is_served(header: list[Any], now: int) -> bool:
    """Whether the snapshot with this head has not expired."""
    return header[_RETENTION] is None or header[_RETENTION] >= now
