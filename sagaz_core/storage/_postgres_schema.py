"""The PostgreSQL store's tables and the statements that write them. `{s}` stands for the quoted schema and a dot.

- Text is compared by code point (`COLLATE "C"`), and has no NUL: see `_postgres_rows.as_text`.
- The row of a saga says what its last event and its last snapshot from `LONG` on are. So one statement appends these to
  a saga, and adds nothing when they do not come behind those: the row is locked by the look at it.
- From `LONG` on, `floor` is the earliest time from a row on (by `seq`, within its saga). It never decreases with `seq`,
  which makes "up to the last row whose time is not after T" a range of an index, also when the clock went back. Before
  `LONG` it is of no account.
- The indices that serve one question each have only what a saga has from `LONG` on. Most sagas are shorter: to look
  through one costs less than half as many index entries for each row that is written, and takes less of the disk.
"""

from __future__ import annotations

from typing import NamedTuple

SCHEMA_VERSION = 4
NEEDED_VERSION = 3
"""What any use brings older tables to. What comes after it takes long where there are many rows, and can wait."""
LONG = 128
"""The `seq` from which on the rows of a saga are in every index."""

CREATE_SCHEMA = "CREATE SCHEMA IF NOT EXISTS {schema}"
CREATE_VERSION = "CREATE TABLE IF NOT EXISTS {s}saga_schema (version INTEGER NOT NULL)"
GET_VERSION = "SELECT max(version) FROM {s}saga_schema"
SET_VERSION = "INSERT INTO {s}saga_schema VALUES ($1)"
LOCK_MIGRATION = "SELECT pg_advisory_xact_lock(hashtextextended($1, 1397573441))"  # "SAGA", as a number

_TEXT = 'TEXT COLLATE "C"'


class Index(NamedTuple):
    """An index of what sagas have from `LONG` on, and the one of all rows that it replaces."""

    name: str
    on: str
    replaced: str


def _long_index(table: str, by: str, columns: str) -> Index:
    on = f"ON {{s}}{table} ({columns}) WHERE seq >= {LONG}"
    return Index(f"{table}_long_by_{by}", on, f"{table}_by_{by}")


LONG_INDICES = (
    _long_index("saga_snapshots", "step", "saga_id, step_name, seq, snapshot_id"),
    _long_index("saga_snapshots", "phase", "saga_id, phase, seq, snapshot_id"),
    _long_index("saga_snapshots", "place", "saga_id, step_name, phase, seq, snapshot_id"),
    _long_index("saga_snapshots", "time", "saga_id, floor, seq, snapshot_id"),
    _long_index("saga_events", "time", "saga_id, floor, seq"),
)


def made(index: Index, how: str = "") -> tuple[str, ...]:
    """Return the statements that make the index. `how` is `CONCURRENTLY`, each a transaction of its own, or nothing.

    What was broken off has left an index that is not ready.
    """
    return f"DROP INDEX {how} IF EXISTS {{s}}{index.name}", f"CREATE INDEX {how} {index.name} {index.on}"


def dropped(index: Index, how: str = "") -> str:
    """Return the statement that drops what the index replaces; see `made`."""
    return f"DROP INDEX {how} IF EXISTS {{s}}{index.replaced}"


MIGRATIONS: dict[int, tuple[str, ...]] = {
    1: (
        f"""
        CREATE TABLE {{s}}sagas (
            saga_id {_TEXT} PRIMARY KEY,
            saga_name TEXT,  -- NULL until the saga's record is written
            version TEXT,
            fingerprint TEXT,
            model TEXT,
            started_at TIMESTAMPTZ,
            source TEXT,
            adapter TEXT,
            plan TEXT,
            summary_seq BIGINT NOT NULL DEFAULT -1,
            summary_name {_TEXT},  -- NULL until a summary is written
            status {_TEXT},
            failed_step {_TEXT},
            failed_at TIMESTAMPTZ,
            tags JSONB,
            last_event BIGINT NOT NULL DEFAULT -1,
            last_event_at TIMESTAMPTZ NOT NULL DEFAULT '-infinity',
            last_snapshot BIGINT NOT NULL DEFAULT {-(2**63)},
            last_snapshot_id {_TEXT} NOT NULL DEFAULT '',
            last_snapshot_at TIMESTAMPTZ NOT NULL DEFAULT '-infinity'
        ) WITH (fillfactor = 70)  -- the row is replaced by writes: room for that in its page
        """,
        "CREATE INDEX sagas_recorded ON {s}sagas (saga_id) WHERE saga_name IS NOT NULL",
        "CREATE INDEX sagas_by_status ON {s}sagas (status, saga_id) WHERE summary_name IS NOT NULL",
        "CREATE INDEX sagas_by_name ON {s}sagas (summary_name, saga_id) WHERE summary_name IS NOT NULL",
        "CREATE INDEX sagas_by_failure ON {s}sagas (failed_step, failed_at) WHERE failed_at IS NOT NULL",
        "CREATE INDEX sagas_by_failure_time ON {s}sagas (failed_at) WHERE failed_at IS NOT NULL",
        "CREATE INDEX sagas_by_tags ON {s}sagas USING gin (tags jsonb_path_ops)",
        f"""
        CREATE TABLE {{s}}saga_events (
            saga_id {_TEXT} NOT NULL,
            seq BIGINT NOT NULL,
            at TIMESTAMPTZ NOT NULL,
            floor TIMESTAMPTZ NOT NULL,
            kind TEXT NOT NULL,
            step TEXT,
            data BYTEA NOT NULL,
            PRIMARY KEY (saga_id, seq)
        )
        """,
        "CREATE INDEX saga_events_by_time ON {s}saga_events (saga_id, floor, seq)",
        f"""
        CREATE TABLE {{s}}saga_snapshots (
            snapshot_id {_TEXT} PRIMARY KEY,
            saga_id {_TEXT} NOT NULL,
            saga_name TEXT NOT NULL,
            step_name {_TEXT} NOT NULL,
            step_index INTEGER NOT NULL,
            seq BIGINT NOT NULL,
            phase {_TEXT} NOT NULL,
            status TEXT NOT NULL,
            created_at TIMESTAMPTZ NOT NULL,
            floor TIMESTAMPTZ NOT NULL,
            retention_until TIMESTAMPTZ,
            base_seq BIGINT,
            data BYTEA NOT NULL
        )
        """,
        "CREATE INDEX saga_snapshots_by_seq ON {s}saga_snapshots (saga_id, seq, snapshot_id)",
        "CREATE INDEX saga_snapshots_by_step ON {s}saga_snapshots (saga_id, step_name, seq, snapshot_id)",
        "CREATE INDEX saga_snapshots_by_phase ON {s}saga_snapshots (saga_id, phase, seq, snapshot_id)",
        "CREATE INDEX saga_snapshots_by_place ON {s}saga_snapshots (saga_id, step_name, phase, seq, snapshot_id)",
        "CREATE INDEX saga_snapshots_by_time ON {s}saga_snapshots (saga_id, floor, seq, snapshot_id)",
        """
        CREATE INDEX saga_snapshots_retained ON {s}saga_snapshots (retention_until) WHERE retention_until IS NOT NULL
        """,
        f"""
        CREATE TABLE {{s}}saga_replay_log (
            replay_id {_TEXT} PRIMARY KEY,
            original_saga_id {_TEXT} NOT NULL,
            new_saga_id TEXT NOT NULL,
            checkpoint TEXT NOT NULL,
            initiated_by TEXT NOT NULL,
            status TEXT NOT NULL,
            created_at TIMESTAMPTZ NOT NULL,
            override BYTEA NOT NULL,
            plan TEXT NOT NULL,
            completed_at TIMESTAMPTZ,
            error TEXT NOT NULL
        )
        """,
        "CREATE INDEX saga_replays_by_original ON {s}saga_replay_log (original_saga_id, created_at, replay_id)",
    ),
    2: (
        # What is in the tables already has no checksums.
        "ALTER TABLE {s}sagas ADD COLUMN record_sum BIGINT, ADD COLUMN summary_sum BIGINT",
        "ALTER TABLE {s}saga_snapshots ADD COLUMN completed_steps JSONB",
        "ALTER TABLE {s}saga_replay_log ADD COLUMN row_sum BIGINT",
    ),
    3: ("ALTER TABLE {s}saga_snapshots ADD COLUMN tags JSONB",),
    4: tuple(statement for index in LONG_INDICES for statement in (*made(index), dropped(index))),
}
"""For each version of the schema, the statements that lead to it from the one before."""

IS_READY = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)"
TAKE_TURN = "SELECT pg_try_advisory_lock(hashtextextended($1, 1397573442))"
