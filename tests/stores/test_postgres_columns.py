"""Records go to PostgreSQL by column, one of texts, numbers or times as one text: what comes out is what went in."""

import asyncio
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sagaz_core.storage._postgres_columns import columns
from sagaz_core.storage._postgres_rows import as_text, from_text
from sagaz_core.storage._postgres_statements import arrays
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


def test_a_column_is_one_value_whatever_the_number_of_its_rows():
    rows = [("a", 1, datetime(2026, 7, 15, tzinfo=UTC), b"x", 2, None)] * 1000
    texts = columns(rows, TYPES)
    assert [type(value) for value in texts] == [str, str, str, tuple, str, str]
    assert texts[-1] == ""
    assert columns([], TYPES) == ["", "", "", (), "", ""]
