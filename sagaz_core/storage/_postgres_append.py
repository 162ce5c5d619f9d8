"""The statements that append records to sagas, all of a batch in one round trip. `{s}` stands for the schema and a dot.

Records before `LONG` are in no order that depends on others, and their keys say whether they are there already. So a
batch of these alone is added as it is. The row of a saga says what its last event and its last snapshot from `LONG` on
are. A statement that adds some of these adds nothing to a saga that is not as it takes it to be: there already, when it
is to begin, or with records that do not come before those that are added.

All of them add snapshots before events (of several parts of a statement the last is done first): two processes that add
the same records wait for each other in the same order.

- `one_of` is for one batch of few records. Each value is a parameter: with arrays the server takes twice as long.
- `MANY` is for any number of batches, and of records, which come by column; `SHORT` does the same where all records are
  before `LONG`, and no saga's row is concerned. `COPY` would be a trip of its own for each table, and cannot be made to
  depend on what is there.
- `THERE` says which sagas stood in the way of these, which then are done again without them.
"""

from __future__ import annotations

from functools import cache
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

from sagaz_core.storage._postgres_columns import columns, event_columns, snapshot_columns
from sagaz_core.storage._postgres_rows import as_text
from sagaz_core.storage._postgres_statements import (
    EVENT,
    EVENT_TYPES,
    OWN,
    RECORD,
    SET_OF_SUMMARY,
    SNAPSHOT_TYPES,
    arrays,
    sought,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sagaz_core.storage._postgres_batch import Rows
    from sagaz_core.storage.base import SagaSnapshot, StoredEvent

_LAST = "last_event, last_event_at, last_snapshot, last_snapshot_id, last_snapshot_at"
_FIRST = "first_event, first_event_at, first_snapshot, first_snapshot_id, first_snapshot_at"
_RECORD_TYPES = ("text", "text", "text", "text", "text", "timestamptz", "text", "text", "text", "bigint")
_SUMMARY_TYPES = ("bigint", "text", "text", "text", "timestamptz", "jsonb", "bigint")
_LAST_TYPES = ("bigint", "timestamptz", "bigint", "text", "timestamptz")
_BEGUN = (*_RECORD_TYPES, *_SUMMARY_TYPES, *_LAST_TYPES)
_APPENDED = ("text", *_SUMMARY_TYPES, *_LAST_TYPES, *_LAST_TYPES)
_SHORT = ("text",)
_MOST_EVENTS, _MOST_SNAPSHOTS = 8, 2
_ADD_EVENTS = "INSERT INTO {s}saga_events (saga_id, seq, at, floor, kind, step, data)"
_ADD_SNAPSHOTS = f"INSERT INTO {{s}}saga_snapshots ({OWN}, floor)"

# ---- one batch


class _Shape(NamedTuple):
    """What a batch has: a record, a summary, how many events and snapshots, and whether some are from `LONG` on."""

    begins: bool
    summary: bool
    events: int
    snapshots: int
    long_events: bool
    long_snapshots: bool


def is_small(rows: Rows) -> bool:
    """Whether there are few enough records for a statement with a parameter for each value."""
    return len(rows.batch.events) <= _MOST_EVENTS and len(rows.batch.snapshots) <= _MOST_SNAPSHOTS


def one_of(rows: Rows) -> str:
    """Return the statement for such a batch. Its tag ends with 0 when nothing was added."""
    events, snapshots = len(rows.batch.events), len(rows.batch.snapshots)
    said = rows.record is not None, rows.summary[0] is not None
    shape = _Shape(*said, events, snapshots, rows.long_events, rows.long_snapshots)
    return _one(shape)


def parameters_of_one(rows: Rows) -> list[Any]:
    """Return the parameters: the record or the id, the summary, the events and the snapshots that there are."""
    found: list[Any] = [] if rows.is_short else [rows.saga_id] if rows.record is None else [*rows.record]
    if rows.summary[0] is not None:
        found += rows.summary
    for event in rows.events:
        found += event
    for snapshot in rows.snapshots:
        found += snapshot
    return found


@cache  # there are few
def _one(shape: _Shape) -> str:
    numbers = count(1)
    is_short = not (shape.begins or shape.summary or shape.long_events or shape.long_snapshots)
    saga = [] if is_short else _some(numbers, _RECORD_TYPES if shape.begins else ("text",))
    found = _some(numbers, _SUMMARY_TYPES) if shape.summary else []
    event_rows = [_some(numbers, EVENT_TYPES) for _ in range(shape.events)]
    snapshot_rows = [_some(numbers, SNAPSHOT_TYPES) for _ in range(shape.snapshots)]
    parts, of_saga = {}, ""
    if not is_short:
        parts["saga"], of_saga = _saga(shape, saga, found, event_rows, snapshot_rows), "saga, "
    if shape.events:
        parts["events"] = f"{_ADD_EVENTS} {_EVENTS_OF} {of_saga}{_table(event_rows, f'e (saga_id, {EVENT})')}"
    if shape.snapshots:
        parts["snapshots"] = f"{_ADD_SNAPSHOTS} {_SNAPSHOTS_OF} {of_saga}{_table(snapshot_rows, f'n ({OWN})')}"
    _, main = parts.popitem()
    named = ", ".join(f"{name} AS ({part})" for name, part in parts.items())
    return f"WITH {named} {main}" if named else main


def _saga(
    shape: _Shape, saga: list[str], summary: list[str], events: list[list[str]], snapshots: list[list[str]]
) -> str:
    """Return the part that changes the saga's row, and has the saga's id if it is as it should be."""
    values = dict(zip(SET_OF_SUMMARY.split(", "), summary, strict=False))
    where = [f"g.saga_id = {saga[0]}"]
    if summary:
        where.append(f"g.summary_seq < {values['summary_seq']}")
    if shape.long_events:
        first, last = events[0], events[-1]
        values |= {"last_event": last[1], "last_event_at": last[2]}
        where.append(f"g.last_event < {first[1]} AND g.last_event_at <= {first[2]}")
    if shape.long_snapshots:
        first, last = snapshots[0], snapshots[-1]
        values |= {"last_snapshot": last[5], "last_snapshot_id": last[0], "last_snapshot_at": last[8]}
        where.append(f"(g.last_snapshot, g.last_snapshot_id) < ({first[5]}, {first[0]})")
        where.append(f"g.last_snapshot_at <= {first[8]}")
    if shape.begins:
        columns, given = ", ".join([RECORD, *values]), ", ".join([*saga, *values.values()])
        return f"INSERT INTO {{s}}sagas ({columns}) VALUES ({given}) ON CONFLICT DO NOTHING RETURNING saga_id"
    changes = ", ".join(f"{column} = {value}" for column, value in values.items())
    return f"UPDATE {{s}}sagas g SET {changes} WHERE {' AND '.join(where)} RETURNING saga_id"


_EVENTS_OF = "SELECT e.saga_id, e.seq, e.at, e.at, e.kind, e.step, e.data FROM"
_SNAPSHOTS_OF = f"SELECT {', '.join(f'n.{name.strip()}' for name in OWN.split(','))}, n.created_at FROM"


def _some(numbers: Iterator[int], types: tuple[str, ...]) -> list[str]:
    return [f"${next(numbers)}::{name}" for name in types]


def _table(rows: list[list[str]], alias: str) -> str:
    texts = ", ".join(f"({', '.join(row)})" for row in rows)
    return f"(VALUES {texts}) AS {alias}"


# ---- many batches


def _records(some: Sequence[Rows]) -> tuple[list[StoredEvent], list[SagaSnapshot]]:
    """Return the events and the snapshots of all of these."""
    return [one for rows in some for one in rows.batch.events], [one for rows in some for one in rows.batch.snapshots]


def parameters_of_short(some: Sequence[Rows]) -> tuple[Any, ...]:
    """Return the parameters: events and snapshots, by column."""
    events, snapshots = _records(some)
    return (*event_columns(events), *snapshot_columns(snapshots))


def parameters_of_many(some: Sequence[Rows]) -> tuple[Any, ...]:
    """Return the parameters: those of `SHORT`, what is said of sagas that begin, and of others, the ids of the rest.

    There is one batch of each saga, or several short ones.
    """
    begun = [(*rows.record, *rows.summary, *rows.last) for rows in some if rows.record is not None]
    appended, short = list[tuple[Any, ...]](), dict[tuple[str], None]()
    for rows in some:
        if rows.is_short:
            short[rows.saga_id,] = None
        elif rows.record is None:
            appended.append((rows.saga_id, *rows.summary, *rows.last, *rows.first))
    said = (*columns(begun, _BEGUN), *columns(appended, _APPENDED), *columns(list(short), _SHORT))
    return (*parameters_of_short(some), *said)


def keys_of(some: Sequence[Rows]) -> tuple[Any, ...]:
    """Return the parameters of `THERE`."""
    events, snapshots = _records(some)
    of_events = [(as_text(event.saga_id), event.seq) for event in events]
    of_snapshots = [(as_text(snapshot.snapshot_id), as_text(snapshot.saga_id)) for snapshot in snapshots]
    return (*columns(of_events, _EVENT_KEY), *columns(of_snapshots, _SNAPSHOT_KEY))


_EVENTS = f"unnest({arrays(1, EVENT_TYPES)}) AS e (saga_id, {EVENT})"
_SNAPSHOTS = f"unnest({arrays(1 + len(EVENT_TYPES), SNAPSHOT_TYPES)}) AS n ({OWN})"
SHORT = f"WITH events AS ({_ADD_EVENTS} {_EVENTS_OF} {_EVENTS}) {_ADD_SNAPSHOTS} {_SNAPSHOTS_OF} {_SNAPSHOTS}"

_OF_BEGUN = 1 + len(EVENT_TYPES) + len(SNAPSHOT_TYPES)
_OF_APPENDED = _OF_BEGUN + len(_BEGUN)
_OF_SHORT = _OF_APPENDED + len(_APPENDED)
_NEWER = ", ".join(
    f"{name} = CASE WHEN n.summary_seq IS NULL THEN g.{name} ELSE n.{name} END" for name in SET_OF_SUMMARY.split(", ")
)
_LATER = ", ".join(f"{name} = coalesce(n.{name}, g.{name})" for name in _LAST.split(", "))
# Its rows are the ids of the sagas to which all was added.
MANY = f"""
    WITH begun AS (
        INSERT INTO {{s}}sagas ({RECORD}, {SET_OF_SUMMARY}, {_LAST})
        SELECT {RECORD}, coalesce(summary_seq, -1), summary_name, status, failed_step, failed_at, tags, summary_sum,
            coalesce(last_event, -1), coalesce(last_event_at, '-infinity'),
            coalesce(last_snapshot, {-(2**63)}), coalesce(last_snapshot_id, ''),
            coalesce(last_snapshot_at, '-infinity')
        FROM unnest({arrays(_OF_BEGUN, _BEGUN)})
            AS n ({RECORD}, {SET_OF_SUMMARY}, {_LAST})
        ON CONFLICT DO NOTHING RETURNING saga_id
    ), appended AS (
        UPDATE {{s}}sagas g SET {_NEWER}, {_LATER}
        FROM {sought(_OF_APPENDED, _APPENDED)}
            AS n (saga_id, {SET_OF_SUMMARY}, {_LAST}, {_FIRST}, place)
        WHERE g.saga_id = n.saga_id
            AND (n.summary_seq IS NULL OR g.summary_seq < n.summary_seq)
            AND (n.first_event IS NULL OR (g.last_event < n.first_event AND g.last_event_at <= n.first_event_at))
            AND (n.first_snapshot IS NULL OR (
                (g.last_snapshot, g.last_snapshot_id) < (n.first_snapshot, n.first_snapshot_id)
                AND g.last_snapshot_at <= n.first_snapshot_at
            ))
        RETURNING g.saga_id
    ), saga AS (
        SELECT saga_id FROM begun UNION ALL SELECT saga_id FROM appended
        UNION ALL SELECT * FROM unnest({arrays(_OF_SHORT, _SHORT)})
    ),
    events AS ({_ADD_EVENTS} {_EVENTS_OF} saga JOIN {_EVENTS} USING (saga_id)),
    snapshots AS ({_ADD_SNAPSHOTS} {_SNAPSHOTS_OF} saga JOIN {_SNAPSHOTS} USING (saga_id))
    SELECT saga_id FROM saga
"""

_EVENT_KEY, _SNAPSHOT_KEY = ("text", "bigint"), ("text", "text")
# The sagas that have some of it already.
THERE = f"""
    SELECT e.saga_id FROM {sought(1, _EVENT_KEY)} AS e (saga_id, seq, place)
    JOIN {{s}}saga_events g ON g.saga_id = e.saga_id AND g.seq = e.seq
    UNION SELECT n.saga_id FROM {sought(3, _SNAPSHOT_KEY)} AS n (snapshot_id, saga_id, place)
    JOIN {{s}}saga_snapshots g ON g.snapshot_id = n.snapshot_id
"""
