"""What stores check and refuse alike, whatever they keep their bytes in."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sagaz_core.errors import CannotStoreError, CorruptDataError, DuplicateSagaError, NaiveTimeError, UsageError
from sagaz_core.model import Description, json_text
from sagaz_core.storage.base import MAX_ID_LENGTH, Base

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sagaz_core.storage._s3_claims import Claim
    from sagaz_core.storage.base import Batch, SagaRecord, SagaSnapshot, SagaSummary, StoredEvent

MAX_SEQ = 2**63 - 1
LONG_AGO = datetime.min.replace(tzinfo=UTC)
"""When those ended that are kept as bases alone."""


def check_batch(batch: Batch) -> None:
    """Raise `UsageError` when the batch is of several sagas, or `NaiveTimeError` when a time has no timezone."""
    saga_id = batch.saga_id
    for event in batch.events:
        if event.saga_id != saga_id:
            raise _other_saga(batch, event.saga_id)
        if event.at.tzinfo is None:
            raise _naive(event.at)
    for snapshot in batch.snapshots:
        if snapshot.saga_id != saga_id:
            raise _other_saga(batch, snapshot.saga_id)
        if snapshot.created_at.tzinfo is None:
            raise _naive(snapshot.created_at)
        if snapshot.retention_until is not None and snapshot.retention_until.tzinfo is None:
            raise _naive(snapshot.retention_until)
        if snapshot.base_seq is not None and snapshot.base_seq > snapshot.seq:
            raise UsageError(
                f"snapshot {snapshot.snapshot_id!r} at {snapshot.seq} has its base at {snapshot.base_seq}: "
                f"a base comes before what is based on it"
            )
    if batch.saga is not None:
        if batch.saga.saga_id != saga_id:
            raise _other_saga(batch, batch.saga.saga_id)
        check_moment(batch.saga.started_at)
    if batch.summary is not None:
        _check_summary(batch, batch.summary)


def _check_summary(batch: Batch, summary: SagaSummary) -> None:
    if summary.saga_id != batch.saga_id:
        raise _other_saga(batch, summary.saga_id)
    check_moment(summary.failed_at)
    for key, value in summary.tags.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise UsageError(f"the tag {key!r}={value!r:.80} of saga {summary.saga_id!r} is no text")


def contested(batches: Iterable[Batch]) -> bool:
    """Whether batches of several sagas have a snapshot of the same id: then it matters which comes first."""
    owners = {(snapshot.snapshot_id, batch.saga_id) for batch in batches for snapshot in batch.snapshots}
    return len({name for name, _ in owners}) < len(owners)


def check_find(
    failed_between: tuple[datetime, datetime] | None, tags: Mapping[str, str] | None, limit: int
) -> tuple[tuple[datetime, datetime] | None, dict[str, str]]:
    """Return the two times and the tags of a search, checked. Raises `UsageError` and `NaiveTimeError`."""
    check_limit(limit)
    if failed_between is not None:
        first, last = failed_between
        check_moment(first)
        check_moment(last)
    wanted = dict(tags or {})
    for key, value in wanted.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise UsageError(f"the tag {key!r} cannot be {value!r:.80}: give text, as `sagaz find` shows it")
    return failed_between, wanted


def fits(
    summary: SagaSummary,
    status: str | None,
    saga_name: str | None,
    step_name: str | None,
    failed_between: tuple[datetime, datetime] | None,
    tags: Mapping[str, str],
) -> bool:
    """Whether all that is asked for is true of the saga."""
    if failed_between is not None:
        failed_at = summary.failed_at
        if failed_at is None or not failed_between[0] <= failed_at <= failed_between[1]:
            return False
    return (
        status in (None, summary.status)
        and saga_name in (None, summary.saga_name)
        and step_name in (None, summary.step_name)
        and tags.items() <= summary.tags.items()
    )


def expired(snapshot: SagaSnapshot, now: datetime) -> bool:
    """Whether the snapshot is no longer served at that time."""
    return snapshot.retention_until is not None and snapshot.retention_until < now


def with_bases(snapshots: Iterable[SagaSnapshot], stored: Sequence[SagaSnapshot]) -> list[SagaSnapshot]:
    """Return the snapshots with their bases, which are among those `stored`: in order, whether still served or not."""
    found = []
    for snapshot in snapshots:
        first = snapshot.base_seq
        if first is not None:
            place = (snapshot.seq, snapshot.snapshot_id)
            bases = [Base(s.snapshot_id, s.data) for s in stored if s.seq >= first and (s.seq, s.snapshot_id) < place]
            snapshot = snapshot._replace(bases=tuple(bases))
        found.append(snapshot)
    return found


def check_prune(now: datetime, batch: int) -> None:
    """Raise `NaiveTimeError` or `UsageError` for what cannot be pruned by."""
    check_moment(now)
    if batch < 1:
        raise UsageError(f"a batch of {batch} snapshots is none: give 1 or more")


def raise_damaged(found: Sequence[CorruptDataError]) -> None:
    """Raise the first of the errors of sagas that were passed over, if there is any."""
    if found:
        raise found[0]


def check_moment(moment: datetime | None) -> None:
    """Raise `NaiveTimeError` when the time has no timezone. `None` is none."""
    if moment is not None and moment.tzinfo is None:
        raise _naive(moment)


def check_limit(limit: int) -> None:
    """Raise `UsageError` when a page of that many would hold nothing."""
    if limit < 1:
        raise UsageError(f"a page of {limit} records is none: give a limit of 1 or more")


def above_prefix(prefix: str) -> str:
    """Return the least text that is above every id with this prefix."""
    for end in range(len(prefix), 0, -1):
        code = ord(prefix[end - 1])
        if code < 0x10FFFF:
            return prefix[: end - 1] + chr(0xE000 if code == 0xD7FF else code + 1)  # no surrogate can be stored
    return "\U0010ffff" * (MAX_ID_LENGTH + 1)


def snapshot_cursor(last: SagaSnapshot) -> str:
    """Return the cursor of the page after this snapshot."""
    return f"{last.seq}:{last.snapshot_id}"


def read_snapshot_cursor(cursor: str | None) -> tuple[int, str]:
    """Return `seq` and `snapshot_id` of the last snapshot before the page. Raises `UsageError`."""
    if cursor is None:
        return -MAX_SEQ, ""
    seq, colon, snapshot_id = cursor.partition(":")
    if not colon or not seq.lstrip("-").isdecimal() or len(seq) > 19:
        raise not_a_cursor(cursor)
    return int(seq), snapshot_id


def not_a_cursor(cursor: str) -> UsageError:
    """Return the error for a cursor that no page gave."""
    return UsageError(f"{cursor!r:.80} is not a cursor: give the one of the page before, unchanged")


def model_to_json(record: SagaRecord) -> str:
    """Return the record's model as text, the same for equal models. Raises `CannotStoreError`."""
    model = record.model
    if isinstance(model, Description) and model.text:
        return model.text
    try:
        return json_text(model)
    except (TypeError, ValueError) as error:
        message = f"the model of saga {record.saga_id!r} is not plain JSON data: {error}"
        raise CannotStoreError(message, "model") from error


def model_from_json(saga_id: str, text: str) -> dict[str, Any]:
    """Do the inverse of `model_to_json`. Raises `CorruptDataError`."""
    try:
        model: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise CorruptDataError(f"the stored model of saga {saga_id!r} is damaged: {error}") from error
    return model


@lru_cache(maxsize=128)
def canonical_json(text: str) -> str:
    """Return the text of `model_to_json` for what this text stands for, or itself for what it never gives."""
    # Thousands of sagas have one model.
    try:
        return json_text(json.loads(text))
    except ValueError:
        return text


def misplaced(saga_id: str, seq: int) -> CorruptDataError:
    """Return the error for an event that the index of times has at another time than it has itself."""
    return CorruptDataError(f"event {seq} of saga {saga_id!r} is damaged: its place among the times is wrong")


def misplaced_snapshot(snapshot: SagaSnapshot) -> CorruptDataError:
    """Return the error for a snapshot that an index of the store has where it does not belong."""
    return CorruptDataError(
        f"snapshot {snapshot.snapshot_id!r} of saga {snapshot.saga_id!r} is damaged, or its place among the others: "
        f"it is not the one that was asked for"
    )


def another_saga(record: SagaRecord) -> DuplicateSagaError:
    """Return the error for a saga record whose id is taken."""
    return DuplicateSagaError(
        f"saga {record.saga_id!r} is stored already, as another run or definition: give this one another id"
    )


def another_event(event: StoredEvent) -> DuplicateSagaError:
    """Return the error for an event whose place is taken."""
    if not event.seq:
        return DuplicateSagaError(f"saga {event.saga_id!r} is stored already, as another run: give this one another id")
    of_what = event.kind if event.step is None else f"{event.kind} of {event.step!r}"
    return DuplicateSagaError(
        f"saga {event.saga_id!r} has another event {event.seq} already (this one is {of_what}): "
        f"two runs write under this id; stop one of them"
    )


def another_snapshot(snapshot: SagaSnapshot | Claim) -> DuplicateSagaError:
    """Return the error for a snapshot whose id is taken."""
    return DuplicateSagaError(
        f"there is another snapshot {snapshot.snapshot_id!r} already "
        f"(this one is of saga {snapshot.saga_id!r} at {snapshot.seq}): "
        f"where two runs write under its saga's id stop one of them, else give this one another id"
    )


def _naive(moment: datetime) -> NaiveTimeError:
    return NaiveTimeError(f"{moment.isoformat()} has no timezone: write {moment.isoformat()}+00:00 if it is UTC")


def _other_saga(batch: Batch, saga_id: str) -> UsageError:
    return UsageError(f"a batch is of one saga: this one is of {batch.saga_id!r}, and has a record of {saga_id!r}")
