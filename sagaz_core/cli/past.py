"""What a recorded saga was, and what was asked of it: the questions of `sagaz replay`, answered in three forms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import click

from sagaz_core.cli.text import echo_json, echo_table, printable, show
from sagaz_core.engine.load import load_record
from sagaz_core.errors import UsageError, nearest, quoted
from sagaz_core.replay import SagaReplay
from sagaz_core.storage.base import ReplayRecord, SnapshotStorage, checked_id
from sagaz_core.storage.codec import decode, opaque_class
from sagaz_core.storage.jsonform import to_json
from sagaz_core.time_travel import HistoricalState, SagaTimeTravel, StateChange

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sagaz_core.cli.options import Found


class View(NamedTuple):
    """How an answer is shown: `text`, `table` or `json`, and with secrets or without (json always has them)."""

    form: str
    secrets: bool = False

    def show(self, value: Any, key: object = "") -> str:
        """Return a value's text."""
        return show(value, key, secrets=self.secrets)


async def state_at(found: Found, moment: str, key: str | None, view: View) -> None:
    """Print what the saga was at that time, or one key of its context then."""
    travel = SagaTimeTravel(found.saga_id, found.storage, resolve=opaque_class)
    state = await travel.get_state_at(moment)
    if key is None:
        _print_state(state, view)
        return
    if key not in state.context:
        await _check_key(travel, key)
    if view.form == "json":
        echo_json(to_json(state.context.get(key), key))
    elif view.form == "table":
        echo_table(["key", "value"], [[key, _value_then(state, key, view)]])
    else:
        click.echo(_value_then(state, key, view))


def _value_then(state: HistoricalState, key: str, view: View) -> str:
    if not state.started:
        return "not started yet"
    if key not in state.context:
        return "(not set)"
    value = state.context[key]
    shown = view.show(value, key)
    return printable(value) if type(value) is str and shown != "***" else shown


async def _check_key(travel: SagaTimeTravel, key: str) -> None:
    """Raise `UsageError` for a key that the context never had."""
    known: dict[str, None] = {}
    cursor: str | None = None
    while True:
        page = await travel.list_state_changes(limit=1000, cursor=cursor)
        for change in page.items:
            known.update(dict.fromkeys(change.changed_keys))
        cursor = page.cursor
        if cursor is None:
            break
    if known and key not in known:
        hint = nearest(key, known) or f"; it has had {quoted(known)}"
        raise UsageError(f"the context of saga {travel.saga_id!r} never had a key {key!r}{hint}")


def _print_state(state: HistoricalState, view: View) -> None:
    if view.form == "json":
        echo_json(_state_json(state))
        return
    rows = _state_rows(state, view)
    if view.form == "table":
        echo_table(["", "value"], rows)
        return
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        click.echo(f"{name:<{width}}  {text}".rstrip())


def _state_rows(state: HistoricalState, view: View) -> list[tuple[str, str]]:
    status = state.status.value.replace("_", " ") if state.started else "not started yet"
    rows = [
        ("saga", f"{printable(state.saga_id)} ({printable(state.saga_name)})"),
        ("at", state.timestamp.isoformat()),
        ("status", status),
    ]
    if not state.started:
        return rows
    assert state.at is not None
    rows.append(("last event", f"{state.seq} at {state.at.isoformat()}"))
    named = [
        ("current step", (state.current_step,) if state.current_step else ()),
        ("done", state.completed_steps),
        ("undone", state.compensated_steps),
        ("stuck", state.stuck),
    ]
    rows += [(name, ", ".join(map(printable, steps))) for name, steps in named if steps]
    if state.error is not None:
        rows.append(("error", printable(str(state.error))))
    return rows + [(printable(f"context {key}"), view.show(value, key)) for key, value in state.context.items()]


def _state_json(state: HistoricalState) -> dict[str, Any]:
    return {
        "saga_id": state.saga_id,
        "saga_name": state.saga_name,
        "timestamp": state.timestamp.isoformat(),
        "status": state.status.value,
        "started": state.started,
        "seq": state.seq,
        "at": None if state.at is None else state.at.isoformat(),
        "current_step": state.current_step,
        "completed_steps": list(state.completed_steps),
        "compensated_steps": list(state.compensated_steps),
        "stuck": list(state.stuck),
        "error": None if state.error is None else state.error._asdict(),
        "context": to_json(dict(state.context)),
        "results": to_json(dict(state.results), "results"),
    }


async def changes(
    found: Found, after: str | None, before: str | None, limit: int, cursor: str | None, view: View
) -> None:
    """Print a page of what happened to the saga."""
    travel = SagaTimeTravel(found.saga_id, found.storage, resolve=opaque_class)
    page = await travel.list_state_changes(after, before, limit, cursor)
    items: Sequence[StateChange] = page.items
    if view.form == "json":
        rows = [_change_json(change) for change in items]
        echo_json({"saga_id": found.saga_id, "changes": rows, "cursor": page.cursor})
        return
    shown = [
        [
            str(change.seq),
            change.at.isoformat(),
            change.kind,
            change.step or "",
            change.status.value,
            " ".join(change.changed_keys) or change.detail,
        ]
        for change in items
    ]
    print_rows(["seq", "at", "what", "step", "status", "changed"], shown, view)
    if page.cursor is not None:
        click.echo(f"more with --cursor {page.cursor}")


def _change_json(change: StateChange) -> dict[str, Any]:
    return {
        "seq": change.seq,
        "at": change.at.isoformat(),
        "kind": change.kind,
        "step": change.step,
        "status": change.status.value,
        "changed_keys": list(change.changed_keys),
        "detail": change.detail,
    }


async def checkpoints(found: Found, view: View) -> None:
    """Print the steps from which the saga can be replayed."""
    steps = await SagaReplay(found.saga_id, found.storage).list_available_checkpoints()
    if view.form == "json":
        echo_json({"saga_id": found.saga_id, "checkpoints": steps})
    else:
        print_rows(["step"], [[step] for step in steps], view)


async def replays(storage: SnapshotStorage, saga_id: str, view: View) -> None:
    """Print the log of the saga's replays. Those of a recording in a file are known by its saga's id."""
    found = await storage.list_replays(checked_id(saga_id))
    if not found:
        await load_record(storage, saga_id)
    if view.form == "json":
        echo_json({"saga_id": saga_id, "replays": [_replay_json(record) for record in found]})
        return
    rows = [
        [
            record.created_at.isoformat(),
            record.new_saga_id,
            record.checkpoint,
            record.status,
            record.plan,
            " ".join(f"{key}={view.show(value, key)}" for key, value in _override(record).items()),
            record.initiated_by,
            record.error,
        ]
        for record in found
    ]
    print_rows(["at", "new saga", "from", "status", "plan", "override", "by", "error"], rows, view)


def _override(record: ReplayRecord) -> Mapping[str, Any]:
    found: Mapping[str, Any] = decode(record.override, resolve=opaque_class) if record.override else {}
    return found


def _replay_json(record: ReplayRecord) -> dict[str, Any]:
    ended = record.completed_at
    return {
        "replay_id": record.replay_id,
        "new_saga_id": record.new_saga_id,
        "checkpoint": record.checkpoint,
        "status": record.status,
        "plan": record.plan,
        "override": to_json(dict(_override(record)), "override"),
        "initiated_by": record.initiated_by,
        "created_at": record.created_at.isoformat(),
        "completed_at": None if ended is None else ended.isoformat(),
        "error": record.error,
    }


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[str]], view: View) -> None:
    """Print rows as a table, or as text: a line each, columns apart by two spaces or more, no heading."""
    if view.form == "table":
        echo_table(columns, rows)
        return
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
