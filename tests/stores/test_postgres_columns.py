"""Records go to PostgreSQL by column, one of texts, numbers or times as one text: what comes out is what went in."""

import asyncio
from datetime import UTC, datetime, timedelta, timezone

import asyncpg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sagaz_core.storage import SagaSnapshot, StoredEvent
from sagaz_core.storage._postgres_columns import columns, event_columns, snapshot_columns
from sagaz_core.storage._postgres_rows import as_text, event_row, from_text, snapshot_row
from sagaz_core.storage._postgres_statements import EVENT_TYPES, SNAPSHOT_TYPES, arrays
from sagaz_core.storage.contract import T0

TYPES = ("text", "bigint", "timestamptz", "bytea", "integer", "jsonb")
TEXTS = st.text(st.sampled_from("\0\1\2\3a,{}\"'\\ ü") | st.characters(exclude_categories=["Cs"]), max_size=6)
TIMES = st.timedeltas(timedelta(days=-730_000), timedelta(days=2_900_000)).map(lambda since: T0 + since)
BIG, SMALL = (st.integers(-(2**bits), 2**bits - 1) for bits in (63, 31))
ROWS = st.tuples(
    *(some | st.none() for some in (TEXTS, BIG, TIMES, st.binary(max_size=4), SMALL, st.sampled_from(["{}", '["a"]'])))
)


@pytest.fixture(scope="module")
def unnested(postgres_database):
    """Send rows by column, and return what the server makes of them."""
    statement = f"SELECT a.*, f::text FROM unnest({arrays(1, TYPES)}) AS a (t, b, at, d, i, f)"
    with asyncio.Runner() as runner:
        connection = runner.run(asyncpg.connect(postgres_database))

        def of(rows):
            found = runner.run(connection.fetch(statement, *columns(rows, TYPES)))
            return [tuple(row)[:5] + tuple(row)[6:] for row in found]

        yield of
        runner.run(connection.close())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.lists(ROWS, max_size=4))
@example([("", None, None, None, None, None)])
@example([("\1", 1, None, b"", None, None), ("\0\3", -1, None, None, None, None)])
@example([("\2\1\3", None, None, None, None, None), ("\2", None, None, None, None, None)])
@example([(None,) * 6, ("", 0, datetime(1, 1, 2, tzinfo=UTC), b"", 0, "{}")])
@example([("a", 0, datetime(9999, 12, 30, 23, 59, 59, 999999, tzinfo=UTC), b"", 0, "{}")])
def test_what_is_sent_by_column_arrives(unnested, rows):
    sent = [(None if row[0] is None else as_text(row[0]), *row[1:]) for row in rows]
    found = [(None if row[0] is None else from_text(row[0]), *row[1:]) for row in unnested(sent)]
    assert found == (rows if any(value is not None for row in rows for value in row) else [])


class Stamp(datetime):
    """A time as that of others, which writes itself in a way of its own."""

    def isoformat(self, *args, **how):
        return "a nanosecond"


ANY_TEXTS = TEXTS | st.sampled_from(["\1", "\2", "\1\3", "\2\1\3"])
ZONES = st.just(UTC) | st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
STAMPS = st.integers(1, 9999).map(lambda year: Stamp(year, 1, 1, tzinfo=UTC))
ANY_TIMES = st.builds(lambda time, zone: time.astimezone(zone), TIMES, ZONES) | STAMPS
EVENTS = st.builds(StoredEvent, ANY_TEXTS, BIG, ANY_TIMES, ANY_TEXTS, ANY_TEXTS | st.none(), st.binary(max_size=2))
SNAPSHOTS = st.builds(
    SagaSnapshot,
    *(ANY_TEXTS, ANY_TEXTS, ANY_TEXTS, ANY_TEXTS, SMALL, BIG, ANY_TEXTS, ANY_TEXTS, ANY_TIMES, st.binary(max_size=2)),
    *(ANY_TIMES | st.none(), BIG | st.none(), st.just(()), st.lists(ANY_TEXTS) | st.lists(ANY_TEXTS).map(tuple)),
    st.dictionaries(ANY_TEXTS, ANY_TEXTS).map(lambda tags: tuple(tags.items())),
)


@given(st.lists(EVENTS, max_size=3), st.lists(SNAPSHOTS, max_size=3))
def test_columns_of_records_are_those_of_their_rows(events, snapshots):
    assert event_columns(events) == columns([event_row(event) for event in events], EVENT_TYPES)
    assert snapshot_columns(snapshots) == columns([snapshot_row(one) for one in snapshots], SNAPSHOT_TYPES)


def test_a_column_is_one_value_whatever_the_number_of_its_rows():
    rows = [("a", 1, datetime(2026, 7, 15, tzinfo=UTC), b"x", 2, None)] * 1000
    texts = columns(rows, TYPES)
    assert [type(value) for value in texts] == [str, str, str, tuple, str, str]
    assert texts[-1] == ""
    assert columns([], TYPES) == ["", "", "", (), "", ""]
