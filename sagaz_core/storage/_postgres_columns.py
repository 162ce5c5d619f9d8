"""Rows and records by column, as `_postgres_statements.arrays` takes them.

A column is one text, or what the driver makes an array of where it is bytes. One of `None` alone is empty: `unnest`
fills it up to the others, and nothing of it is encoded.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sagaz_core.storage._postgres_rows import as_text, as_time, pairs_json, steps_json
from sagaz_core.storage._postgres_statements import EVENT_TYPES, NONE, SEPARATOR, SNAPSHOT_TYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sagaz_core.storage.base import SagaSnapshot, StoredEvent

Column = Any


def columns(rows: Sequence[tuple[Any, ...]], types: Sequence[str]) -> list[Column]:
    """Return the columns of rows, whose texts are as `as_text` makes them."""
    if not rows:
        return _empty(types)
    return [_column(kind, column) for kind, column in zip(types, zip(*rows, strict=True), strict=True)]


def event_columns(events: Sequence[StoredEvent]) -> list[Column]:
    """Return the columns of `EVENT_TYPES`: those of the rows that `event_row` makes."""
    if not events:
        return _empty(EVENT_TYPES)
    saga_ids, seqs, times, kinds, steps, data = zip(*events, strict=True)
    return [_texts(saga_ids), _written(seqs, str), _written(times, _time), _texts(kinds), _texts(steps), data]


def snapshot_columns(snapshots: Sequence[SagaSnapshot]) -> list[Column]:
    """Return the columns of `SNAPSHOT_TYPES`: those of the rows that `snapshot_row` makes."""
    if not snapshots:
        return _empty(SNAPSHOT_TYPES)
    found = tuple(zip(*snapshots, strict=True))
    ids, saga_ids, names, steps, indices, seqs, phases, statuses, times, data, ends, bases, _, completed, tags = found
    return [
        *(_texts(ids), _texts(saga_ids), _texts(names), _texts(steps), _written(indices, str), _written(seqs, str)),
        *(_texts(phases), _texts(statuses), _written(times, _time), data, _written(ends, _time), _written(bases, str)),
        _written([steps_json(tuple(done)) for done in completed]),
        _written([pairs_json(pairs) for pairs in tags]),
    ]


def _empty(types: Sequence[str]) -> list[Column]:
    return [() if kind == "bytea" else "" for kind in types]


_WRITERS: dict[str, Callable[[Any], str]] = {"bigint": str, "integer": str, "timestamptz": datetime.isoformat}


def _column(kind: str, values: tuple[Any, ...]) -> Column:
    if kind != "bytea":
        return _written(values, _WRITERS.get(kind))
    return () if values.count(None) == len(values) else values


def _texts(values: tuple[str | None, ...]) -> str:
    """Return a column of texts that are not yet as `as_text` makes them: it is asked only where one would change."""
    text = _written(values)
    if "\0" in text or text.count(NONE) > len(values) + values.count(None):  # each separator has one
        return _written([None if value is None else as_text(value) for value in values])
    return text


def _time(moment: datetime) -> str:
    return datetime.isoformat(moment if moment.tzinfo is UTC else as_time(moment))  # a subclass may have its own


def _written(values: Sequence[Any], write: Callable[[Any], str] | None = None) -> str:
    missing = values.count(None)
    if missing == len(values):
        return ""
    texts: Iterable[str] = values
    if missing:
        texts = [NONE if value is None else value if write is None else write(value) for value in values]
    elif write is not None:
        texts = map(write, values)
    return SEPARATOR + SEPARATOR.join(texts)
