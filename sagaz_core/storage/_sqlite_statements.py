"""The SQLite store's tables and every statement that it runs on them.

`saga` in a table is the row of `sagas` that holds the saga's id: so indices hold a small number for a long text.
`floor` is the earliest time from a row on (by `seq`, within its saga). It never decreases with `seq`, which makes "up
to the last row whose time is not after T" a range of an index, also when the clock went back.
Each statement is served by an index and reads no row that it does not return; a test asks SQLite for each one's plan.
"""

from __future__ import annotations

APPLICATION_ID = 0x53414741  # "SAGA": tells our files from those of other applications
SCHEMA_VERSION = 1

MIGRATIONS: dict[int, tuple[str, ...]] = {
    1: (
        """
        CREATE TABLE sagas (
            id INTEGER PRIMARY KEY,
            saga_id TEXT NOT NULL UNIQUE,
            saga_name TEXT,  -- NULL until the saga's record is written
            version TEXT,
            fingerprint TEXT,
            model TEXT,
            started_at INTEGER,
            source TEXT,
            adapter TEXT,
            plan TEXT
        )
        """,
        "CREATE INDEX sagas_recorded ON sagas (saga_id) WHERE saga_name IS NOT NULL",
        """
        CREATE TABLE saga_events (
            saga INTEGER NOT NULL,
            seq INTEGER NOT NULL,
            at INTEGER NOT NULL,
            floor INTEGER NOT NULL,
            kind TEXT NOT NULL,
            step TEXT,
            data BLOB NOT NULL,
            PRIMARY KEY (saga, seq)
        )
        """,
        """
        CREATE TABLE saga_snapshots (
            snapshot_id TEXT NOT NULL PRIMARY KEY,
            saga INTEGER NOT NULL,
            saga_name TEXT NOT NULL,
            step_name TEXT NOT NULL,
            step_index INTEGER NOT NULL,
            seq INTEGER NOT NULL,
            phase TEXT NOT NULL,
            status TEXT NOT NULL,
            created_at INTEGER NOT NULL,
            floor INTEGER NOT NULL,
            retention_until INTEGER,
            data BLOB NOT NULL
        )
        """,
        "CREATE INDEX snapshots_by_seq ON saga_snapshots (saga, seq, snapshot_id)",
        "CREATE INDEX snapshots_by_step ON saga_snapshots (saga, step_name, seq, snapshot_id)",
        "CREATE INDEX snapshots_by_phase ON saga_snapshots (saga, phase, seq, snapshot_id)",
        "CREATE INDEX snapshots_by_step_phase ON saga_snapshots (saga, step_name, phase, seq, snapshot_id)",
        "CREATE INDEX snapshots_by_time ON saga_snapshots (saga, floor, seq)",
        "CREATE INDEX snapshots_retained ON saga_snapshots (retention_until) WHERE retention_until IS NOT NULL",
        """
        CREATE TABLE saga_replay_log (
            replay_id TEXT NOT NULL PRIMARY KEY,
            original_saga_id TEXT NOT NULL,
            new_saga_id TEXT NOT NULL,
            checkpoint TEXT NOT NULL,
            initiated_by TEXT NOT NULL,
            status TEXT NOT NULL,
            created_at INTEGER NOT NULL,
            override BLOB NOT NULL,
            plan TEXT NOT NULL,
            completed_at INTEGER,
            error TEXT NOT NULL
        )
        """,
        "CREATE INDEX replays_by_original ON saga_replay_log (original_saga_id, created_at, replay_id)",
    ),
}
"""For each version of the schema, the statements that lead to it from the one before."""

_RECORD = "saga_id, saga_name, version, fingerprint, model, started_at, source, adapter, plan"
_SNAPSHOT = """
    s.snapshot_id, g.saga_id, s.saga_name, s.step_name, s.step_index, s.seq, s.phase, s.status, s.created_at, s.data,
    s.retention_until
"""
_SAGA = "(SELECT id FROM sagas WHERE saga_id = :saga_id)"

# ---- writing

FIND_PLACE = """
    SELECT
        g.id,
        (SELECT seq FROM saga_events WHERE saga = g.id ORDER BY seq DESC LIMIT 1),
        (SELECT at FROM saga_events WHERE saga = g.id ORDER BY seq DESC LIMIT 1),
        (SELECT seq FROM saga_snapshots WHERE saga = g.id ORDER BY seq DESC, snapshot_id DESC LIMIT 1),
        (SELECT created_at FROM saga_snapshots WHERE saga = g.id ORDER BY seq DESC, snapshot_id DESC LIMIT 1)
    FROM sagas g WHERE g.saga_id = ?
"""
ADD_SAGA = f"INSERT INTO sagas ({_RECORD}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
ADD_SAGA_ID = "INSERT INTO sagas (saga_id) VALUES (?)"
SET_RECORD = f"""
    UPDATE sagas SET ({_RECORD}) = (?, ?, ?, ?, ?, ?, ?, ?, ?) WHERE saga_id = ?1 AND saga_name IS NULL
"""
ADD_EVENT = """
    INSERT INTO saga_events (saga, seq, at, floor, kind, step, data) VALUES (?1, ?2, ?3, ?3, ?4, ?5, ?6)
    ON CONFLICT (saga, seq) DO NOTHING
"""
ADD_SNAPSHOT = """
    INSERT INTO saga_snapshots (
        saga, snapshot_id, saga_name, step_name, step_index, seq, phase, status, created_at, floor, data,
        retention_until
    )
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?9, ?10, ?11)
    ON CONFLICT (snapshot_id) DO NOTHING
"""
GET_EVENT = "SELECT at, kind, step, data FROM saga_events WHERE saga = ? AND seq = ?"
EVENT_FLOORS = "SELECT rowid, seq, at, floor FROM saga_events WHERE saga = ? ORDER BY seq DESC"
SET_EVENT_FLOOR = "UPDATE saga_events SET floor = ? WHERE rowid = ?"
SNAPSHOT_FLOORS = """
    SELECT rowid, seq, created_at, floor FROM saga_snapshots WHERE saga = ? ORDER BY seq DESC, snapshot_id DESC
"""
SET_SNAPSHOT_FLOOR = "UPDATE saga_snapshots SET floor = ? WHERE rowid = ?"
PUT_REPLAY = """
    INSERT INTO saga_replay_log (
        replay_id, original_saga_id, new_saga_id, checkpoint, initiated_by, status, created_at, override, plan,
        completed_at, error
    )
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (replay_id) DO UPDATE SET
        original_saga_id = excluded.original_saga_id, new_saga_id = excluded.new_saga_id,
        checkpoint = excluded.checkpoint, initiated_by = excluded.initiated_by, status = excluded.status,
        created_at = excluded.created_at, override = excluded.override, plan = excluded.plan,
        completed_at = excluded.completed_at, error = excluded.error
"""

# ---- reading

GET_SAGA = f"SELECT {_RECORD} FROM sagas WHERE saga_id = ? AND saga_name IS NOT NULL"
LIST_SAGAS = f"""
    SELECT {_RECORD} FROM sagas INDEXED BY sagas_recorded
    WHERE saga_id >= ? AND saga_id < ? AND saga_name IS NOT NULL ORDER BY saga_id LIMIT ?
"""
GET_SNAPSHOT = f"SELECT {_SNAPSHOT} FROM saga_snapshots s JOIN sagas g ON g.id = s.saga WHERE s.snapshot_id = ?"
LIST_SNAPSHOTS = f"""
    SELECT {_SNAPSHOT} FROM sagas g JOIN saga_snapshots s ON s.saga = g.id
    WHERE g.saga_id = ? AND (s.seq, s.snapshot_id) > (?, ?) ORDER BY s.seq, s.snapshot_id LIMIT ?
"""
COUNT_SNAPSHOTS = f"SELECT count(*) FROM saga_snapshots WHERE saga = {_SAGA}"
READ_EVENTS = f"""
    SELECT seq, at, kind, step, data, floor FROM saga_events WHERE saga = {_SAGA} AND seq > :after ORDER BY seq
"""
LIST_REPLAYS = """
    SELECT replay_id, original_saga_id, new_saga_id, checkpoint, initiated_by, status, created_at, override, plan,
        completed_at, error
    FROM saga_replay_log WHERE original_saga_id = ? ORDER BY created_at, replay_id
"""


def _latest(step: bool, phase: bool, until: bool) -> str:
    filters = " AND step_name = :step" * step + " AND phase = :phase" * phase
    highest = ":max_seq"
    if until:
        # By the floor the highest `seq` in question is known. Of the rows below it, those with a later time (there are
        # none unless the clock went back) are passed over.
        highest = """min(:max_seq, coalesce((
            SELECT seq FROM saga_snapshots WHERE saga = g.id AND floor <= :until ORDER BY floor DESC, seq DESC LIMIT 1
        ), -1))"""
        filters += " AND created_at <= :until"
    return f"""
        SELECT {_SNAPSHOT} FROM sagas g JOIN saga_snapshots s ON s.rowid = (
            SELECT rowid FROM saga_snapshots WHERE saga = g.id{filters} AND seq <= {highest}
            ORDER BY seq DESC, snapshot_id DESC LIMIT 1
        )
        WHERE g.saga_id = :saga_id
    """


LATEST = {
    (step, phase, until): _latest(step, phase, until)
    for step in (False, True)
    for phase in (False, True)
    for until in (False, True)
}
"""The statements for the latest snapshot, by which of step, phase and time are asked for."""

# ---- deleting

DELETE_SNAPSHOTS_BELOW = f"DELETE FROM saga_snapshots WHERE saga = {_SAGA} AND seq < :below"
DELETE_SNAPSHOTS = f"DELETE FROM saga_snapshots WHERE saga = {_SAGA}"
DELETE_EVENTS = f"DELETE FROM saga_events WHERE saga = {_SAGA}"
DELETE_SAGA = "DELETE FROM sagas WHERE saga_id = :saga_id"
DELETE_EXPIRED = """
    DELETE FROM saga_snapshots WHERE rowid IN (
        SELECT rowid FROM saga_snapshots WHERE retention_until < ? ORDER BY retention_until LIMIT 500
    )
"""
