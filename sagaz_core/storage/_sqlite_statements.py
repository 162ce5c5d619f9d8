"""The SQLite store's tables and every statement that it runs on them.

A write costs what it touches: each B-tree is a page more to log. So the tables are few and narrow:
- `saga` is the row of `sagas` that has the saga's id: a small number for a long text.
- The key of an event is `saga * 2**32 + seq`: a saga's events lie together, and need no index.
- Each snapshot has four *places*, rows of one table in which a saga's lie together: of its step and phase, of its step,
  of its phase, and of all. An empty blob, which no name is, stands for any. Triggers keep them.
- `floor` is the earliest time from a row on (by `seq`, within its saga). It never decreases with `seq`, which makes "up
  to the last row whose time is not after T" a range of an index, also when the clock went back.

Each statement is served by an index and reads no row that it does not return; a test asks SQLite for each one's plan.
"""

from __future__ import annotations

import re
from functools import lru_cache

APPLICATION_ID = 0x53414741  # "SAGA": tells our files from those of other applications
SCHEMA_VERSION = 4

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
            id INTEGER PRIMARY KEY,  -- saga * 2**32 + seq
            at INTEGER NOT NULL,
            floor INTEGER NOT NULL,
            kind TEXT NOT NULL,
            step TEXT,
            data BLOB NOT NULL
        )
        """,
        """
        CREATE TABLE saga_snapshots (
            id INTEGER PRIMARY KEY,
            snapshot_id TEXT NOT NULL UNIQUE,
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
        "CREATE INDEX snapshots_by_time ON saga_snapshots (saga, floor, seq, snapshot_id)",
        "CREATE INDEX snapshots_retained ON saga_snapshots (retention_until) WHERE retention_until IS NOT NULL",
        """
        CREATE TABLE saga_places (
            saga INTEGER NOT NULL,
            step_name NOT NULL,
            phase NOT NULL,
            seq INTEGER NOT NULL,
            snapshot_id TEXT NOT NULL,
            created_at INTEGER NOT NULL,
            snapshot INTEGER NOT NULL,
            PRIMARY KEY (saga, step_name, phase, seq, snapshot_id)
        ) WITHOUT ROWID
        """,
        """
        CREATE TRIGGER snapshot_added AFTER INSERT ON saga_snapshots BEGIN
            INSERT INTO saga_places VALUES
                (new.saga, new.step_name, new.phase, new.seq, new.snapshot_id, new.created_at, new.id),
                (new.saga, new.step_name, x'', new.seq, new.snapshot_id, new.created_at, new.id),
                (new.saga, x'', new.phase, new.seq, new.snapshot_id, new.created_at, new.id),
                (new.saga, x'', x'', new.seq, new.snapshot_id, new.created_at, new.id);
        END
        """,
        """
        CREATE TRIGGER snapshot_deleted AFTER DELETE ON saga_snapshots BEGIN
            DELETE FROM saga_places
            WHERE saga = old.saga AND step_name IN (old.step_name, x'') AND phase IN (old.phase, x'')
                AND seq = old.seq AND snapshot_id = old.snapshot_id;
        END
        """,
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
    2: (
        "ALTER TABLE saga_snapshots ADD COLUMN base_seq INTEGER",
        "ALTER TABLE sagas ADD COLUMN found_name TEXT",  # NULL until the saga's summary is written
        "ALTER TABLE sagas ADD COLUMN found_seq INTEGER",
        "ALTER TABLE sagas ADD COLUMN status TEXT",
        "ALTER TABLE sagas ADD COLUMN failed_step TEXT",
        "ALTER TABLE sagas ADD COLUMN failed_at INTEGER",
        "ALTER TABLE sagas ADD COLUMN tags TEXT",
        "CREATE INDEX sagas_by_status ON sagas (status, saga_id) WHERE status IS NOT NULL",
        "CREATE INDEX sagas_failed ON sagas (failed_at) WHERE failed_at IS NOT NULL",
        """
        CREATE TABLE saga_tags (
            key TEXT NOT NULL,
            value TEXT NOT NULL,
            saga_id TEXT NOT NULL,
            PRIMARY KEY (key, value, saga_id)
        ) WITHOUT ROWID
        """,
    ),
    3: (  # what is in the tables already has no checksums
        "ALTER TABLE sagas ADD COLUMN record_sum INTEGER",
        "ALTER TABLE sagas ADD COLUMN found_sum INTEGER",
        "ALTER TABLE saga_snapshots ADD COLUMN completed_steps TEXT",  # as JSON
        "ALTER TABLE saga_replay_log ADD COLUMN row_sum INTEGER",
    ),
    4: ("ALTER TABLE saga_snapshots ADD COLUMN tags TEXT",),  # as JSON
}
"""For each version of the schema, the statements that lead to it from the one before."""

ANY = b""
"""Stands for any step or phase in `saga_places`."""

_RECORD = "saga_id, saga_name, version, fingerprint, model, started_at, source, adapter, plan, record_sum"
_SNAPSHOT = """
    s.snapshot_id, ?1, s.saga_name, s.step_name, s.step_index, s.seq, s.phase, s.status, s.created_at, s.data,
    s.retention_until, s.base_seq, s.completed_steps, s.tags
"""
_SAGA = "(SELECT id FROM sagas WHERE saga_id = ?1)"
_ALL_PLACES = "step_name = x'' AND phase = x''"
# The snapshot `t` and, before it, what its bytes may be a difference from. With one that stands alone no other is read.
_CHAIN = """
    LEFT JOIN saga_places p ON t.base_seq IS NOT NULL AND p.saga = t.saga AND p.step_name = x'' AND p.phase = x''
        AND p.seq >= t.base_seq AND (p.seq, p.snapshot_id) <= (t.seq, t.snapshot_id)
    LEFT JOIN saga_snapshots s ON s.id = p.snapshot
"""
_OF_CHAIN = re.sub(r"s\.(\w+)", r"CASE WHEN s.id IS NULL THEN t.\1 ELSE s.\1 END", _SNAPSHOT)
_IN_ORDER = "ORDER BY p.seq, p.snapshot_id"

# ---- writing

FIND_PLACE = f"""
    SELECT g.id, e.id, e.at, s.seq, s.snapshot_id, s.created_at FROM sagas g
    LEFT JOIN saga_events e ON e.id = (
        SELECT id FROM saga_events WHERE id >= g.id << 32 AND id < (g.id + 1) << 32 ORDER BY id DESC LIMIT 1
    )
    LEFT JOIN saga_snapshots s ON s.id = (
        SELECT snapshot FROM saga_places WHERE saga = g.id AND {_ALL_PLACES} ORDER BY seq DESC, snapshot_id DESC LIMIT 1
    )
    WHERE g.saga_id = ?
"""
ADD_SAGA = f"INSERT INTO sagas ({_RECORD}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
ADD_SAGA_ID = "INSERT INTO sagas (saga_id) VALUES (?)"
SET_RECORD = f"""
    UPDATE sagas SET ({_RECORD}) = (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) WHERE saga_id = ?1 AND saga_name IS NULL
"""
ADD_EVENT = """
    INSERT INTO saga_events (id, at, floor, kind, step, data) VALUES (?1, ?2, ?2, ?3, ?4, ?5)
    ON CONFLICT (id) DO NOTHING
"""
ADD_SNAPSHOT = """
    INSERT INTO saga_snapshots (
        saga, snapshot_id, saga_name, step_name, step_index, seq, phase, status, created_at, floor, data,
        retention_until, base_seq, completed_steps, tags
    )
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?9, ?10, ?11, ?12, ?13, ?14)
    ON CONFLICT (snapshot_id) DO NOTHING
"""
GET_STORED = f"""
    SELECT {_SNAPSHOT.replace("?1", "g.saga_id")} FROM saga_snapshots s JOIN sagas g ON g.id = s.saga
    WHERE s.snapshot_id = ?
"""
GET_SUMMARY = "SELECT found_seq, tags FROM sagas WHERE id = ?"
SET_SUMMARY = """
    UPDATE sagas SET found_name = ?, found_seq = ?, status = ?, failed_step = ?, failed_at = ?, tags = ?,
        found_sum = ?
    WHERE id = ?
"""
ADD_TAG = "INSERT INTO saga_tags (key, value, saga_id) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
DELETE_TAG = "DELETE FROM saga_tags WHERE key = ? AND value = ? AND saga_id = ?"
GET_EVENT = "SELECT at, kind, step, data FROM saga_events WHERE id = ?"
EVENT_FLOORS = """
    SELECT id, id, at, floor FROM saga_events WHERE id >= ?1 << 32 AND id < (?1 + 1) << 32 ORDER BY id DESC
"""
SET_EVENT_FLOOR = "UPDATE saga_events SET floor = ? WHERE id = ?"
SNAPSHOT_FLOORS = """
    SELECT s.id, s.seq, s.created_at, s.floor FROM saga_places p CROSS JOIN saga_snapshots s ON s.id = p.snapshot
    WHERE p.saga = ? AND p.step_name = x'' AND p.phase = x'' ORDER BY p.seq DESC, p.snapshot_id DESC
"""
SET_SNAPSHOT_FLOOR = "UPDATE saga_snapshots SET floor = ? WHERE id = ?"
PUT_REPLAY = """
    INSERT INTO saga_replay_log (
        replay_id, original_saga_id, new_saga_id, checkpoint, initiated_by, status, created_at, override, plan,
        completed_at, error, row_sum
    )
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (replay_id) DO UPDATE SET
        original_saga_id = excluded.original_saga_id, new_saga_id = excluded.new_saga_id,
        checkpoint = excluded.checkpoint, initiated_by = excluded.initiated_by, status = excluded.status,
        created_at = excluded.created_at, override = excluded.override, plan = excluded.plan,
        completed_at = excluded.completed_at, error = excluded.error, row_sum = excluded.row_sum
"""

# ---- reading

GET_SAGA = f"SELECT {_RECORD} FROM sagas WHERE saga_id = ? AND saga_name IS NOT NULL"
LIST_SAGAS = f"""
    SELECT {_RECORD} FROM sagas INDEXED BY sagas_recorded
    WHERE saga_id >= ? AND saga_id < ? AND saga_name IS NOT NULL ORDER BY saga_id LIMIT ?
"""
GET_SNAPSHOT = f"""
    SELECT {_OF_CHAIN.replace("?1", "g.saga_id")} FROM saga_snapshots t CROSS JOIN sagas g ON g.id = t.saga {_CHAIN}
    WHERE t.snapshot_id = ?1 {_IN_ORDER}
"""
LIST_SNAPSHOTS = f"""
    SELECT {_SNAPSHOT} FROM saga_places p CROSS JOIN saga_snapshots s ON s.id = p.snapshot
    WHERE p.saga = {_SAGA} AND p.step_name = x'' AND p.phase = x'' AND (p.seq, p.snapshot_id) > (?2, ?3)
    {_IN_ORDER} LIMIT ?4
"""
LIST_STORED = f"""
    SELECT {_SNAPSHOT} FROM saga_places p CROSS JOIN saga_snapshots s ON s.id = p.snapshot
    WHERE p.saga = {_SAGA} AND p.step_name = x'' AND p.phase = x'' AND p.seq >= ?2 AND p.seq <= ?3
    {_IN_ORDER}
"""
COUNT_SNAPSHOTS = f"""
    SELECT count(CASE WHEN s.retention_until IS NULL OR s.retention_until >= ?3 THEN 1 END), count(*)
    FROM saga_places p CROSS JOIN saga_snapshots s ON s.id = p.snapshot
    WHERE p.saga = {_SAGA} AND p.step_name = x'' AND p.phase = x'' AND p.seq < ?2
"""
# Of those that have expired what it takes to see that they have, and were not changed so.
EXPIRED_OF_SAGA = f"""
    SELECT {_SNAPSHOT.replace("s.data", "substr(s.data, 1, 14)")}
    FROM saga_places p CROSS JOIN saga_snapshots s ON s.id = p.snapshot
    WHERE p.saga = {_SAGA} AND p.step_name = x'' AND p.phase = x'' AND s.retention_until < ?2
"""
READ_EVENTS = f"""
    SELECT id, at, kind, step, data, floor FROM saga_events
    WHERE id > ({_SAGA} << 32) + ?2 AND id < ({_SAGA} + 1) << 32 ORDER BY id
"""
_IN_PLACE = f"SELECT snapshot FROM saga_places WHERE saga = {_SAGA} AND step_name = ?2 AND phase = ?3 AND seq <= "
_HIGHEST = "ORDER BY seq DESC, snapshot_id DESC LIMIT 1"
LATEST_SNAPSHOT = f"""
    SELECT {_OF_CHAIN} FROM saga_snapshots t {_CHAIN} WHERE t.id = ({_IN_PLACE} ?4 {_HIGHEST}) {_IN_ORDER}
"""
# By the floor the highest `seq` in question is known. Of the rows below it, those with a later time (there are none
# unless the clock went back) are passed over.
LATEST_SNAPSHOT_UNTIL = f"""
    SELECT {_OF_CHAIN} FROM saga_snapshots t {_CHAIN} WHERE t.id = ({_IN_PLACE} min(?4, (
        SELECT seq FROM saga_snapshots WHERE saga = {_SAGA} AND floor <= ?5 ORDER BY floor DESC, seq DESC LIMIT 1
    )) AND created_at <= ?5 {_HIGHEST}) {_IN_ORDER}
"""
LATEST_SNAPSHOT_OF_ALL_UNTIL = f"""
    SELECT {_OF_CHAIN} FROM saga_snapshots t {_CHAIN} WHERE t.id = (
        SELECT id FROM saga_snapshots WHERE saga = {_SAGA} AND floor <= ?2 AND created_at <= ?2
        ORDER BY floor DESC, seq DESC, snapshot_id DESC LIMIT 1
    ) {_IN_ORDER}
"""
# Asked when the one that the others find has expired.
LATEST_SERVED = f"""
    SELECT {_OF_CHAIN} FROM saga_snapshots t {_CHAIN} WHERE t.id = (
        SELECT f.snapshot FROM saga_places f CROSS JOIN saga_snapshots r ON r.id = f.snapshot
        WHERE f.saga = {_SAGA} AND f.step_name = ?2 AND f.phase = ?3 AND f.seq <= ?4 AND f.created_at <= ?5
            AND (r.retention_until IS NULL OR r.retention_until >= ?6)
        ORDER BY f.seq DESC, f.snapshot_id DESC LIMIT 1
    ) {_IN_ORDER}
"""
LIST_REPLAYS = """
    SELECT replay_id, original_saga_id, new_saga_id, checkpoint, initiated_by, status, created_at, override, plan,
        completed_at, error, row_sum
    FROM saga_replay_log WHERE original_saga_id = ? ORDER BY created_at, replay_id
"""

_SUMMARY = "g.saga_id, g.found_name, g.found_seq, g.status, g.failed_step, g.failed_at, g.tags, g.found_sum"
_FOUND_BY = {
    "tag": (
        "saga_tags t CROSS JOIN sagas g ON g.saga_id = t.saga_id WHERE t.key = ?8 AND t.value = ?9 AND t.saga_id > ?1"
    ),
    "failed_at": "sagas g INDEXED BY sagas_failed WHERE g.failed_at >= ?5 AND g.failed_at <= ?6 AND g.saga_id > ?1",
    "status": "sagas g INDEXED BY sagas_by_status WHERE g.status = ?2 AND g.saga_id > ?1",
    "id": "sagas g WHERE g.saga_id > ?1",
}


@lru_cache(maxsize=64)
def find_sagas(by: str, more_tags: int) -> str:
    """Return the statement that finds sagas with the index `by`, and asks for so many tags more than the first.

    By the time of the failure it reads all that failed between the two times, and then puts them in order.
    """
    more = "".join(
        f" AND EXISTS (SELECT 1 FROM saga_tags WHERE key = ?{10 + 2 * n} AND value = ?{11 + 2 * n}"
        f" AND saga_id = g.saga_id)"
        for n in range(more_tags)
    )
    return f"""
        SELECT {_SUMMARY} FROM {_FOUND_BY[by]} AND g.found_seq IS NOT NULL
            AND (?2 IS NULL OR g.status = ?2) AND (?3 IS NULL OR g.found_name = ?3)
            AND (?4 IS NULL OR g.failed_step = ?4) AND (?5 IS NULL OR g.failed_at >= ?5)
            AND (?6 IS NULL OR g.failed_at <= ?6) AND (?8 IS NULL OR ?9 IS NOT NULL) {more}
        ORDER BY {"t" if by == "tag" else "g"}.saga_id LIMIT ?7
    """


COUNT_ALL = """
    SELECT
        (SELECT count(*) FROM sagas INDEXED BY sagas_recorded WHERE saga_name IS NOT NULL),
        (SELECT count(*) FROM saga_events), (SELECT count(*) FROM saga_snapshots),
        (SELECT count(*) FROM saga_replay_log)
"""

# ---- deleting

FIRST_NEEDED = f"""
    SELECT min(s.base_seq) FROM saga_places p CROSS JOIN saga_snapshots s ON s.id = p.snapshot
    WHERE p.saga = {_SAGA} AND p.step_name = x'' AND p.phase = x'' AND p.seq >= ?2
        AND (s.retention_until IS NULL OR s.retention_until >= ?3)
"""
DELETE_SNAPSHOTS_BELOW = f"""
    DELETE FROM saga_snapshots WHERE id IN (
        SELECT snapshot FROM saga_places WHERE saga = {_SAGA} AND {_ALL_PLACES} AND seq < ?2
    )
"""
HIDE_SNAPSHOTS = f"""
    UPDATE saga_snapshots SET retention_until = ?4 WHERE id IN (
        SELECT snapshot FROM saga_places WHERE saga = {_SAGA} AND {_ALL_PLACES} AND seq >= ?2 AND seq < ?3
    )
"""
DELETE_SNAPSHOTS = f"DELETE FROM saga_snapshots WHERE saga = {_SAGA}"
DELETE_EVENTS = f"DELETE FROM saga_events WHERE id >= {_SAGA} << 32 AND id < ({_SAGA} + 1) << 32"
DELETE_SAGA = "DELETE FROM sagas WHERE saga_id = ?1"
_BYTES = ", ".join(f"CAST({name} AS BLOB)" for name in ("found_name", "status", "failed_step", "tags"))
GET_BYTES = f"SELECT found_seq, failed_at, found_sum, {_BYTES} FROM sagas WHERE saga_id = ?"
DELETE_ALL_TAGS = "DELETE FROM saga_tags WHERE saga_id = ?"
EXPIRED = """
    SELECT retention_until, id, saga FROM saga_snapshots
    WHERE (retention_until, id) > (?2, ?3) AND retention_until < ?1 ORDER BY retention_until, id LIMIT ?4
"""
SAGA_ID = "SELECT saga_id FROM sagas WHERE id = ?"
ALL_OF_SAGA = """
    SELECT s.id, s.seq, s.base_seq, s.retention_until
    FROM saga_places p CROSS JOIN saga_snapshots s ON s.id = p.snapshot
    WHERE p.saga = ? AND p.step_name = x'' AND p.phase = x'' ORDER BY p.seq DESC, p.snapshot_id DESC
"""
DELETE_SNAPSHOT = "DELETE FROM saga_snapshots WHERE id = ?"
