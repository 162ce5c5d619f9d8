"""Each query of the PostgreSQL store is served by an index, and reads no row that it does not return.

But for the rows of one saga before `LONG`: who asks for some of these looks through them.
"""

import asyncio
import json
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from sagaz_core.storage import Batch, SagaSummary, _postgres_append, open_storage
from sagaz_core.storage import _postgres_statements as sql
from sagaz_core.storage._postgres_columns import columns
from sagaz_core.storage._postgres_schema import LONG
from sagaz_core.storage.contract import T0, a_replay, a_saga, a_snapshot, an_event

NOW = datetime(2025, 1, 1, tzinfo=UTC)
NO = {"step": False, "phase": False, "until": False, "max_seq": False}


def latest(saga_id, first):
    """Queries of the latest snapshot of a saga whose first one has that `seq`: text, values, and how many rows."""
    at = T0 + timedelta(seconds=first + 50)
    asked = {
        "latest": ({}, ()),
        "of a step": ({"step": True}, ("step3",)),
        "of a phase": ({"phase": True}, ("after",)),
        "of both": ({"step": True, "phase": True}, ("step3", "after")),
        "at a time": ({"until": True}, (at,)),
        "of a step at a time": ({"step": True, "until": True}, ("step3", at)),
        "of both at a time": ({"step": True, "phase": True, "until": True}, ("step3", "after", at)),
        "below": ({"max_seq": True}, (first + 40,)),
        "of a step below": ({"step": True, "max_seq": True}, ("step3", first + 40)),
        "of all": ({"step": True, "phase": True, "until": True, "max_seq": True}, ("step3", "after", at, first + 40)),
    }
    found = {
        name: (sql.latest(**{**NO, **given}), (saga_id, NOW, *values), 1) for name, (given, values) in asked.items()
    }
    return {**found, "events at a time": (sql.READ_EVENTS_UNTIL, (saga_id, first + 20, 256, at), 31)}


QUERIES = {
    **latest("saga3", LONG),
    "who": (sql.GET_SAGA, ("saga3",), 1),
    "sagas": (sql.LIST_SAGAS, ("saga1", "saga2", 5), 5),
    "get": (sql.GET_SNAPSHOT, (f"saga3/{LONG + 7}", NOW), 1),
    "snapshots": (sql.LIST_SNAPSHOTS, ("saga3", LONG + 10, "", 5, NOW), 5),
    "count": (sql.COUNT_SNAPSHOTS, ("saga3", NOW), 100),
    "events": (sql.READ_EVENTS, ("saga3", LONG + 20, 256), 79),
    "replays": (sql.LIST_REPLAYS, ("saga3",), 1),
    "known events": (sql.KNOWN_EVENTS, ("saga3", [LONG + 1, LONG + 2]), 2),
    "known snapshots": (
        sql.KNOWN_SNAPSHOTS,
        tuple(columns([(f"saga3/{LONG}",), (f"saga3/{LONG + 1}",)], ("text",))),
        2,
    ),
    "failed at a step": (
        sql.FIND_SAGAS.replace("{where}", " AND failed_step = $2 AND failed_at BETWEEN $3 AND $4"),
        (100, "charge", T0 + timedelta(seconds=10), T0 + timedelta(seconds=20)),
        11,
    ),
    "with a tag": (sql.FIND_SAGAS.replace("{where}", " AND tags @> $2::jsonb"), (100, '{"customer": "c-7"}'), 1),
    "of a status": (sql.FIND_SAGAS.replace("{where}", " AND status = $2"), (5, "failed"), 5),
}
OF_A_SHORT_SAGA = latest("short", 0)


@pytest.fixture(scope="module")
def filled(postgres_database):
    """The schema of a store with a hundred long sagas and one that is not, and a connection. Each has 100 snapshots."""
    schema = "explained"

    async def fill():
        storage = open_storage(f"{postgres_database}?schema={schema}")
        for number, saga_id in enumerate([*(f"saga{number}" for number in range(100)), "short"]):
            seqs = range(100) if saga_id == "short" else range(LONG, LONG + 100)
            snapshots = [
                a_snapshot(
                    saga_id,
                    seq,
                    step_name=f"step{seq // 2 % 10}",
                    phase=("before", "after")[seq % 2],
                    base_seq=seq - 1 if seq % 2 else None,
                )
                for seq in seqs
            ]
            at = T0 + timedelta(seconds=number)
            summary = SagaSummary(saga_id, "order", 300, "failed", "charge", at, {"customer": f"c-{number}"})
            events = [an_event(saga_id, seq) for seq in seqs]
            await storage.write(Batch(saga_id, a_saga(saga_id), events, snapshots, summary))
            await storage.log_replay(a_replay(saga_id, saga_id))
        await storage.close()
        connection = await asyncpg.connect(postgres_database)
        await connection.execute(f"VACUUM ANALYZE {schema}.sagas, {schema}.saga_events, {schema}.saga_snapshots")
        await connection.execute(f"VACUUM ANALYZE {schema}.saga_replay_log")
        return connection

    with asyncio.Runner() as runner:
        connection = runner.run(fill())
        yield runner, connection, f'"{schema}".'
        runner.run(connection.close())


def explained(filled, statement, values):
    """Return how PostgreSQL looked for the rows of the query, and the rows."""
    runner, connection, schema = filled

    async def ask():
        async with connection.transaction():
            await connection.execute("SET LOCAL enable_seqscan = off")  # the tables are small: ask what is possible
            await connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")  # as the store has it
            await connection.execute(f"PREPARE asked AS {statement.replace('{s}', schema)}")
            text = await connection.fetchval(
                f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE asked ({', '.join(map(literal, values))})"
            )
            await connection.execute("DEALLOCATE asked")
            rows = await connection.fetch(statement.replace("{s}", schema), *values)
        return json.loads(text)[0]["Plan"], rows

    plan, rows = runner.run(ask())
    scans = [scan for scan in scans_of(plan) if scan["Node Type"] not in ("Function Scan", "Subquery Scan")]
    assert scans
    assert [scan for scan in scans if "Index" not in scan["Node Type"] and "Bitmap" not in scan["Node Type"]] == []
    return scans, rows


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_reads_what_it_returns(filled, name):
    statement, values, returned = QUERIES[name]
    scans, rows = explained(filled, statement, values)
    assert (rows[0][0] if name == "count" else len(rows)) == returned
    for scan in scans:
        assert scan.get("Rows Removed by Filter", 0) == 0, scan
        assert scan.get("Rows Removed by Index Recheck", 0) == 0, scan
        assert scan["Actual Rows"] * scan["Actual Loops"] <= max(returned, 1) + (name == "sagas"), scan


@pytest.mark.parametrize("name", OF_A_SHORT_SAGA)
def test_of_a_saga_that_is_not_long_a_query_reads_no_more_than_its_rows(filled, name):
    statement, values, returned = OF_A_SHORT_SAGA[name]
    scans, rows = explained(filled, statement, values)
    assert len(rows) == returned
    for scan in scans:
        removed = scan.get("Rows Removed by Filter", 0) + scan.get("Rows Removed by Index Recheck", 0)
        assert (scan["Actual Rows"] + removed) * scan["Actual Loops"] <= 100, scan


TOGETHER = {
    "append to many": _postgres_append.MANY,
    "append to short ones": _postgres_append.SHORT,
    "there already": _postgres_append.THERE,
    "checkpoints": sql.READ_CHECKPOINTS,
    "delete a saga": sql.DELETE_SAGA,
    "known snapshots": sql.KNOWN_SNAPSHOTS,
    "prune": sql.PRUNE,
}


def test_what_concerns_many_sagas_is_looked_up_by_index_also_when_it_was_planned_with_no_rows(postgres_database):
    async def plans():
        storage = open_storage(f"{postgres_database}?schema=planned_empty")
        await storage.upgrade()
        await storage.close()
        connection = await asyncpg.connect(postgres_database)
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        for name, statement in TOGETHER.items():
            text = statement.replace("{s}", "planned_empty.")
            values = ["NULL"] * len((await connection.prepare(text)).get_parameters())
            await connection.execute(f"PREPARE asked AS {text}")
            plan = await connection.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE asked ({', '.join(values)})")
            await connection.execute("DEALLOCATE asked")
            yield name, json.loads(plan)[0]["Plan"]
        await connection.close()

    async def scanned():
        return {
            name: [(scan.get("Relation Name"), scan["Node Type"]) for scan in scans_of(plan)]
            async for name, plan in plans()
        }

    found = asyncio.run(scanned())
    assert [name for name, scans in found.items() if "Seq Scan" in {kind for _, kind in scans}] == []
    assert ("sagas", "Index Scan") in found["append to many"]
    assert ("sagas", "Index Scan") in found["checkpoints"]


def scans_of(plan):
    if "Scan" in plan["Node Type"]:
        yield plan
    for part in plan.get("Plans", ()):
        yield from scans_of(part)


def literal(value):
    if isinstance(value, list):
        return f"ARRAY[{', '.join(map(literal, value))}]"
    return str(value) if isinstance(value, int) else f"'{value}'"
