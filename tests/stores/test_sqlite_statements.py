"""No statement of the SQLite store reads more rows than it returns."""

import ast
import re
import sqlite3
from pathlib import Path

import pytest

from sagaz_core.storage import _sqlite_connections, _sqlite_statements, sqlite

VERB = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|REPLACE|WITH)\b", re.IGNORECASE)


def all_statements():
    for name, value in vars(_sqlite_statements).items():
        for key, text in value.items() if isinstance(value, dict) else [("", value)]:
            if isinstance(text, str) and VERB.match(text) and not name.startswith("_"):
                yield f"{name}{key}", text


STATEMENTS = dict(all_statements())
del STATEMENTS["COUNT_ALL"]  # counts whole tables, for `sagaz store info`
del STATEMENTS["DELETE_ALL_TAGS"]  # only for a saga that does not say any more what its tags are


@pytest.fixture(scope="module")
def connection():
    connection = sqlite3.connect(":memory:", factory=_sqlite_connections._Connection)
    for version in _sqlite_statements.MIGRATIONS.values():
        for statement in version:
            connection.execute(statement)
    yield connection
    connection.close()


def plan(connection, statement):
    names = re.findall(r"(?<!:):([a-z_]+)", statement)
    for count in range(30):
        values = dict.fromkeys(names, 1) if names else [1] * count
        try:
            rows = connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)
        except sqlite3.ProgrammingError:
            continue
        return [row[3] for row in rows]
    raise AssertionError(f"the parameters of {statement} cannot be found")


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_is_served_by_an_index(connection, name):
    for line in plan(connection, STATEMENTS[name]):
        assert not line.startswith("SCAN"), line
        assert "TEMP B-TREE" not in line, line


@pytest.mark.parametrize("by", ["tag", "failed_at", "status", "id"])
@pytest.mark.parametrize("more_tags", [0, 2])
def test_a_search_is_served_by_an_index(connection, by, more_tags):
    lines = plan(connection, _sqlite_statements.find_sagas(by, more_tags))
    assert not [line for line in lines if line.startswith("SCAN")], lines
    # What failed between two times is put in order of ids afterwards.
    assert any("TEMP B-TREE" in line for line in lines) == (by == "failed_at"), lines


def test_a_statement_that_is_served_by_no_index_would_be_found(connection):
    assert plan(connection, "SELECT * FROM saga_events WHERE kind = ?")[0].startswith("SCAN")
    assert "USE TEMP B-TREE FOR ORDER BY" in plan(connection, "SELECT * FROM saga_events WHERE id < ? ORDER BY kind")


def test_a_snapshot_by_step_phase_and_seq_is_one_range_of_one_index(connection):
    lines = plan(connection, _sqlite_statements.LATEST_SNAPSHOT)
    assert "SEARCH saga_places USING PRIMARY KEY (saga=? AND step_name=? AND phase=? AND seq<?)" in lines


def test_every_statement_is_in_the_table():
    assert len(STATEMENTS) > 25
    for module in (sqlite, _sqlite_connections):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                # The one that asks whether a database is empty runs before there are tables of ours.
                assert not VERB.match(node.value) or "sqlite_master" in node.value, node.value
