"""Every statement that the PostgreSQL store runs on its tables. `{s}` stands for the quoted schema and a dot.

Each query is served by an index. It reads no row that it does not return but, of one saga, those before `LONG`: these
are looked through, the last first, where an index of those from `LONG` on has nothing. A test asks PostgreSQL for each
one's plan.
"""

from __future__ import annotations

from sagaz_core.storage._postgres_schema import LONG

RECORD = "saga_id, saga_name, version, fingerprint, model, started_at, source, adapter, plan, record_sum"
SUMMARY = "saga_id, summary_name, summary_seq, status, failed_step, failed_at, tags::text, summary_sum"
EVENT = "seq, at, kind, step, data"
SET_OF_SUMMARY = "summary_seq, summary_name, status, failed_step, failed_at, tags, summary_sum"
OWN = """
    snapshot_id, saga_id, saga_name, step_name, step_index, seq, phase, status, created_at, data, retention_until,
    base_seq, completed_steps, tags
"""
_REPLAY = """
    replay_id, original_saga_id, new_saga_id, checkpoint, initiated_by, status, created_at, override, plan,
    completed_at, error, row_sum
"""
_BASES = """
    SELECT array_agg(b.{column} ORDER BY b.seq, b.snapshot_id) FROM {{s}}saga_snapshots b
    WHERE b.saga_id = s.saga_id AND b.seq >= s.base_seq AND (b.seq, b.snapshot_id) < (s.seq, s.snapshot_id)
"""
SNAPSHOT = f"""
    s.snapshot_id, s.saga_id, s.saga_name, s.step_name, s.step_index, s.seq, s.phase, s.status, s.created_at, s.data,
    s.retention_until, s.base_seq, s.completed_steps, s.tags,
    CASE WHEN s.base_seq IS NOT NULL THEN ({_BASES.format(column="snapshot_id")}) END,
    CASE WHEN s.base_seq IS NOT NULL THEN ({_BASES.format(column="data")}) END
"""

# ---- writing

EVENT_TYPES = ("text", "bigint", "timestamptz", "text", "text", "bytea")
SNAPSHOT_TYPES = (
    *("text", "text", "text", "text", "integer", "bigint", "text", "text", "timestamptz", "bytea", "timestamptz"),
    *("bigint", "jsonb", "jsonb"),
)


SEPARATOR, NONE = "\2\1\3", "\1"
"""What stands before each text of a column, and for one that is not there. No text has these: see `as_text`."""


def arrays(first: int, types: tuple[str, ...]) -> str:
    """Return parameters from that number on, each a column as `_postgres_columns` makes it.

    What is no bytes comes as one text: the driver takes longer for a thousand elements of arrays than the server does.
    """
    return ", ".join(_array(first + place, name) for place, name in enumerate(types))


def _array(number: int, name: str) -> str:
    if name == "bytea":
        return f"${number}::bytea[]"
    return f"(string_to_array(${number}::text, E'\\x02\\x01\\x03', E'\\x01'))[2:]::{name}[]"


def sought(first: int, types: tuple[str, ...]) -> str:
    """Return a table of such parameters, each row of which is looked up by an index.

    A plan is made without their values, once for a connection. It takes an array for ten rows, for which it would read
    the whole of a table that is small when it is made, and would go on to do so. Of a limit that it does not know it
    expects a tenth.
    """
    return (
        f"(SELECT * FROM unnest({arrays(first, types)}) WITH ORDINALITY LIMIT cardinality({_array(first, types[0])}))"
    )


# What does not come behind: in a transaction, with the saga's row locked.
ADD_SAGA_ID = "INSERT INTO {s}sagas (saga_id) VALUES ($1) ON CONFLICT DO NOTHING"
LOCK_SAGA = f"SELECT {RECORD} FROM {{s}}sagas WHERE saga_id = $1 FOR UPDATE"
SET_RECORD = f"UPDATE {{s}}sagas SET ({RECORD}) = ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) WHERE saga_id = $1"
SET_SUMMARY = f"""
    UPDATE {{s}}sagas SET ({SET_OF_SUMMARY}) = ($2, $3, $4, $5, $6, $7, $8) WHERE saga_id = $1 AND summary_seq < $2
"""
ADD_EVENTS = f"""
    INSERT INTO {{s}}saga_events (saga_id, {EVENT}, floor)
    SELECT e.*, e.at FROM unnest({arrays(1, EVENT_TYPES)}) AS e (saga_id, {EVENT})
    ON CONFLICT DO NOTHING RETURNING 1
"""
ADD_SNAPSHOTS = f"""
    INSERT INTO {{s}}saga_snapshots ({OWN}, floor)
    SELECT {OWN}, created_at FROM unnest({arrays(1, SNAPSHOT_TYPES)}) AS n ({OWN})
    ON CONFLICT DO NOTHING RETURNING 1
"""
KNOWN_EVENTS = f"SELECT {EVENT} FROM {{s}}saga_events WHERE saga_id = $1 AND seq = ANY ($2::bigint[])"
KNOWN_SNAPSHOTS = f"""
    SELECT {OWN} FROM {sought(1, ("text",))} AS a (known_id, place) JOIN {{s}}saga_snapshots ON snapshot_id = known_id
"""


def _changed(table: str) -> str:
    """Return the condition of the rows from `LONG` on whose floor can have changed.

    A floor is that of the rows from it on: so these begin with the lowest new one, `$2`, or with the first below it
    whose floor is above the earliest new time, `$3`. The new ones have no right floor yet.
    """
    return f"""saga_id = $1 AND seq >= {LONG} AND seq >= least($2::bigint, (
        SELECT seq FROM {{s}}{table} WHERE saga_id = $1 AND seq >= {LONG} AND seq < $2 AND floor > $3::timestamptz
        ORDER BY floor, seq LIMIT 1
    ))"""


SET_EVENT_FLOORS = f"""
    UPDATE {{s}}saga_events e SET floor = f.floor FROM (
        SELECT seq, min(at) OVER (ORDER BY seq DESC) AS floor FROM {{s}}saga_events WHERE {_changed("saga_events")}
    ) f WHERE e.saga_id = $1 AND e.seq = f.seq AND e.floor <> f.floor
"""
SET_SNAPSHOT_FLOORS = f"""
    UPDATE {{s}}saga_snapshots s SET floor = f.floor FROM (
        SELECT snapshot_id, min(created_at) OVER (ORDER BY seq DESC, snapshot_id DESC) AS floor
        FROM {{s}}saga_snapshots WHERE {_changed("saga_snapshots")}
    ) f WHERE s.snapshot_id = f.snapshot_id AND s.floor <> f.floor
"""
SET_LAST = f"""
    UPDATE {{s}}sagas g SET
        last_event = coalesce(e.seq, -1), last_event_at = coalesce(e.at, '-infinity'),
        last_snapshot = coalesce(s.seq, {-(2**63)}), last_snapshot_id = coalesce(s.snapshot_id, ''),
        last_snapshot_at = coalesce(s.created_at, '-infinity')
    FROM (VALUES (1)) AS one
    LEFT JOIN (
        SELECT seq, at FROM {{s}}saga_events WHERE saga_id = $1 AND seq >= {LONG} ORDER BY seq DESC LIMIT 1
    ) e ON true
    LEFT JOIN (
        SELECT seq, snapshot_id, created_at FROM {{s}}saga_snapshots WHERE saga_id = $1 AND seq >= {LONG}
        ORDER BY seq DESC, snapshot_id DESC LIMIT 1
    ) s ON true
    WHERE g.saga_id = $1
"""
REPLAY_TYPES = (
    "text",
    "text",
    "text",
    "text",
    "text",
    "text",
    "timestamptz",
    "bytea",
    "text",
    "timestamptz",
    "text",
    "bigint",
)
_ON_REPLAY = f"ON CONFLICT (replay_id) DO UPDATE SET ({_REPLAY}) = ROW(excluded.*)"
PUT_REPLAY = f"""
    INSERT INTO {{s}}saga_replay_log ({_REPLAY}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) {_ON_REPLAY}
"""
PUT_REPLAYS = f"""
    INSERT INTO {{s}}saga_replay_log ({_REPLAY}) SELECT * FROM unnest({arrays(1, REPLAY_TYPES)}) {_ON_REPLAY}
"""

# ---- reading

GET_SAGA = f"SELECT {RECORD} FROM {{s}}sagas WHERE saga_id = $1 AND saga_name IS NOT NULL"
LIST_SAGAS = f"""
    SELECT {RECORD} FROM {{s}}sagas
    WHERE saga_id >= $1 AND saga_id < $2 AND saga_name IS NOT NULL ORDER BY saga_id LIMIT $3
"""
FIND_SAGAS = f"""
    SELECT {SUMMARY} FROM {{s}}sagas WHERE summary_name IS NOT NULL {{where}} ORDER BY saga_id LIMIT $1
"""
_SERVED = "(s.retention_until IS NULL OR s.retention_until >= {now})"
GET_SNAPSHOT = f"SELECT {SNAPSHOT} FROM {{s}}saga_snapshots s WHERE s.snapshot_id = $1 AND {_SERVED.format(now='$2')}"
# Of one that is not served what it takes to see that it has expired, and was not changed so.
_LISTED = SNAPSHOT.replace(
    "s.data,", f"CASE WHEN {_SERVED.format(now='$5')} THEN s.data ELSE substr(s.data, 1, 14) END,"
).replace("CASE WHEN s.base_seq IS NOT NULL", f"CASE WHEN s.base_seq IS NOT NULL AND {_SERVED.format(now='$5')}")
LIST_SNAPSHOTS = f"""
    SELECT {_LISTED} FROM {{s}}saga_snapshots s
    WHERE s.saga_id = $1 AND (s.seq, s.snapshot_id) > ($2, $3) ORDER BY s.seq, s.snapshot_id LIMIT $4
"""
COUNT_SNAPSHOTS = f"""
    SELECT count(*) FILTER (WHERE {_SERVED.format(now="$2")}), count(*) FROM {{s}}saga_snapshots s WHERE saga_id = $1
"""
_HEAD = OWN.replace(" data,", " substr(data, 1, 14),")
EXPIRED_OF_SAGA = f"SELECT {_HEAD} FROM {{s}}saga_snapshots WHERE saga_id = $1 AND retention_until < $2"
_LAST_FIRST = "s.seq DESC, s.snapshot_id DESC"
_HIGHEST = f"ORDER BY {_LAST_FIRST} LIMIT 1"


def latest(*, step: bool, phase: bool, until: bool, max_seq: bool) -> str:
    """Return the query of the latest snapshot, with these conditions.

    Its parameters: the saga, the present time, and then those of the conditions, in this order. By the floor the
    highest `seq` in question is known. Of the rows below it, those with a later time (there are none unless the clock
    went back) are passed over.
    """
    places = iter(range(3, 7))
    where = [_SERVED.format(now="$2")]
    order, highest = _LAST_FIRST, ""
    if step:
        where.append(f"s.step_name = ${next(places)}")
    if phase:
        where.append(f"s.phase = ${next(places)}")
    if until:
        time = f"${next(places)}"
        where.append(f"s.created_at <= {time}")
        if step or phase or max_seq:
            highest = f"AND s.seq <= ({_last_at('saga_snapshots', time)})"
        else:
            highest, order = f"AND s.floor <= {time}", f"s.floor DESC, {order}"
    if max_seq:
        where.append(f"s.seq <= ${next(places)}")
    if not (step or phase or until):
        return f"SELECT {SNAPSHOT} FROM {{s}}saga_snapshots s WHERE s.saga_id = $1 AND {' AND '.join(where)} {_HIGHEST}"
    found = _long_or_short("$1", " AND ".join(where), highest, order)
    return f"SELECT {SNAPSHOT} FROM {{s}}saga_snapshots s WHERE s.snapshot_id = {found}"


def _last_at(table: str, time: str) -> str:
    """Return the query of the highest `seq` of saga `$1` in question at that time, among those from `LONG` on."""
    return f"""
        SELECT seq FROM {{s}}{table} WHERE saga_id = $1 AND seq >= {LONG} AND floor <= {time}
        ORDER BY floor DESC, seq DESC LIMIT 1
    """


def _long_or_short(saga: str, where: str, long_where: str = "", order: str = _LAST_FIRST) -> str:
    """Return the id of the latest snapshot: by an index of those from `LONG` on, or else by a look through the rest."""
    return f"""coalesce(
        (
            SELECT s.snapshot_id FROM {{s}}saga_snapshots s
            WHERE s.saga_id = {saga} AND s.seq >= {LONG} AND {where} {long_where} ORDER BY {order} LIMIT 1
        ),
        (
            SELECT s.snapshot_id FROM {{s}}saga_snapshots s
            WHERE s.saga_id = {saga} AND s.seq < {LONG} AND {where} {_HIGHEST}
        )
    )"""


READ_EVENTS = f"SELECT {EVENT}, NULL FROM {{s}}saga_events WHERE saga_id = $1 AND seq > $2 ORDER BY seq LIMIT $3"
# The last column is the highest `seq` in question. One event more shows that it is.
READ_EVENTS_UNTIL = f"""
    SELECT e.*, l.highest FROM (
        SELECT coalesce(({_last_at("saga_events", "$4")}), (
            SELECT seq FROM {{s}}saga_events WHERE saga_id = $1 AND seq < {LONG} AND at <= $4
            ORDER BY seq DESC LIMIT 1
        )) AS highest
    ) l CROSS JOIN LATERAL (
        SELECT {EVENT} FROM {{s}}saga_events WHERE saga_id = $1 AND seq > $2
            AND seq <= l.highest + (l.highest < {2**63 - 1})::int
        ORDER BY seq LIMIT $3
    ) e ORDER BY e.seq
"""
# For each saga and step: the record, the seq of its last snapshot, the latest one before the step, the events after it.
CHECKPOINT_TYPES = ("text", "text")
READ_CHECKPOINTS = f"""
    SELECT {", ".join(f"g.{name.strip()}" for name in RECORD.split(","))}, l.seq, l.retention_until,
        e.seqs, e.kinds, e.steps, b.*
    FROM {sought(2, CHECKPOINT_TYPES)} AS a (saga_id, step, place)
    LEFT JOIN {{s}}sagas g ON g.saga_id = a.saga_id AND g.saga_name IS NOT NULL
    LEFT JOIN LATERAL (
        SELECT {SNAPSHOT} FROM {{s}}saga_snapshots s WHERE s.snapshot_id = {
    _long_or_short("a.saga_id", f"s.step_name = a.step AND s.phase = 'before' AND {_SERVED.format(now='$1')}")
}
    ) b ON true
    LEFT JOIN LATERAL (
        SELECT s.seq, s.retention_until FROM {{s}}saga_snapshots s
        WHERE s.saga_id = a.saga_id AND {_SERVED.format(now="$1")} {_HIGHEST}
    ) l ON true
    LEFT JOIN LATERAL (
        SELECT array_agg(o.seq) AS seqs, array_agg(o.kind) AS kinds, array_agg(o.step) AS steps FROM (
            SELECT seq, kind, step FROM {{s}}saga_events e WHERE e.saga_id = a.saga_id AND e.seq > coalesce(b.seq, -1)
            ORDER BY e.seq
        ) o
    ) e ON true
    ORDER BY a.place
"""
LIST_REPLAYS = f"""
    SELECT {_REPLAY} FROM {{s}}saga_replay_log WHERE original_saga_id = $1 ORDER BY created_at, replay_id
"""
INFO = """
    SELECT
        (SELECT max(version) FROM {s}saga_schema),
        (SELECT count(*) FROM {s}sagas WHERE saga_name IS NOT NULL),
        (SELECT count(*) FROM {s}saga_events),
        (SELECT count(*) FROM {s}saga_snapshots),
        (SELECT count(*) FROM {s}saga_replay_log),
        pg_total_relation_size('{s}sagas') + pg_total_relation_size('{s}saga_events')
            + pg_total_relation_size('{s}saga_snapshots') + pg_total_relation_size('{s}saga_replay_log')
"""

# ---- deleting

# What a snapshot that stays needs as a base stays too, and is hidden as if it had expired for ever.
DELETE_SNAPSHOTS_BELOW = """
    WITH needed AS (
        SELECT coalesce(min(base_seq), $2) AS seq FROM {s}saga_snapshots WHERE saga_id = $1 AND seq >= $2
    ), shown AS (
        SELECT snapshot_id, retention_until IS NULL OR retention_until >= $3 AS served
        FROM {s}saga_snapshots s, needed n
        WHERE s.saga_id = $1 AND s.seq < $2 AND s.seq >= n.seq AND s.retention_until IS DISTINCT FROM '-infinity'
    ), hidden AS (
        UPDATE {s}saga_snapshots s SET retention_until = '-infinity' FROM shown h WHERE s.snapshot_id = h.snapshot_id
        RETURNING h.served
    ), deleted AS (
        DELETE FROM {s}saga_snapshots s USING needed n WHERE s.saga_id = $1 AND s.seq < least($2, n.seq)
        RETURNING s.retention_until IS NULL OR s.retention_until >= $3 AS served
    )
    SELECT (SELECT count(*) FROM hidden WHERE served) + (SELECT count(*) FROM deleted WHERE served)
"""
# With the saga's row locked. It is one statement: so it sees all of a batch that is added meanwhile, or nothing of it.
DELETE_SAGA = """
    WITH saga AS (DELETE FROM {s}sagas WHERE saga_id = $1 RETURNING 1),
    snapshots AS (DELETE FROM {s}saga_snapshots WHERE saga_id = $1 RETURNING 1),
    events AS (DELETE FROM {s}saga_events WHERE saga_id = $1 RETURNING 1)
    SELECT EXISTS (SELECT FROM saga) OR EXISTS (SELECT FROM snapshots) OR EXISTS (SELECT FROM events)
"""
EXPIRED = f"""
    SELECT {_HEAD} FROM {{s}}saga_snapshots WHERE retention_until < $1 AND (retention_until, snapshot_id) > ($2, $3)
    ORDER BY retention_until, snapshot_id LIMIT $4
"""
# The second limit is for the plan alone: see `sought`.
PRUNE = """
    DELETE FROM {s}saga_snapshots WHERE snapshot_id IN (SELECT snapshot_id FROM (
        SELECT snapshot_id FROM {s}saga_snapshots e
        WHERE retention_until < $1 AND saga_id <> ALL ($3::text[]) AND NOT EXISTS (
            SELECT 1 FROM {s}saga_snapshots s
            WHERE s.saga_id = e.saga_id AND (s.seq, s.snapshot_id) > (e.seq, e.snapshot_id) AND s.base_seq <= e.seq
                AND (s.retention_until IS NULL OR s.retention_until >= $1)
        ) ORDER BY retention_until LIMIT $2 FOR UPDATE SKIP LOCKED
    ) pruned LIMIT $2)
"""
