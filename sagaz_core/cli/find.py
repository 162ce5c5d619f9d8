"""`sagaz find`: the sagas of a store, by how they stand and what they are about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sagaz_core.cli.listing import Listed, listed, tell_cursor, tell_damaged, tell_if_empty
from sagaz_core.cli.options import format_option, opened, settings_and_path, store_option
from sagaz_core.cli.past import View, print_rows
from sagaz_core.cli.running import run
from sagaz_core.cli.text import echo_json
from sagaz_core.errors import UsageError, nearest, quoted
from sagaz_core.state import SagaStatus
from sagaz_core.times import aware

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sagaz_core.storage.base import SagaSummary


@click.command()
@click.option("--status", metavar="STATUS", help="completed, rolled_back, failed (stuck), executing, compensating.")
@click.option("--saga-name", metavar="NAME", help="Of this name.")
@click.option("--step", metavar="STEP", help="That failed at this step.")
@click.option("--failed-from", metavar="TIME", help="That failed then or later, such as 2026-07-15T14:30:00Z.")
@click.option("--failed-to", metavar="TIME", help="That failed then or earlier.")
@click.option("--tag", "tags", metavar="KEY=VALUE", multiple=True, help="With this value in their context; repeatable.")
@click.option("--limit", metavar="N", type=int, default=100, show_default=True, help="At most so many.")
@click.option("--cursor", metavar="CURSOR", help="Go on where the page before ended.")
@format_option
@store_option
def find(
    status: str | None,
    saga_name: str | None,
    step: str | None,
    failed_from: str | None,
    failed_to: str | None,
    tags: Sequence[str],
    limit: int,
    cursor: str | None,
    form: str,
    store: str | None,
) -> None:
    """Find the recorded sagas of which all that is asked for is true, by id.

    \b
    sagaz find --step charge_payment --failed-from 2026-07-15T10:00Z --failed-to 2026-07-15T10:20Z
    sagaz find --status failed --tag customer=42

    A context's values are found by --tag when their keys were named in ReplayConfig(index_keys=[…]). Sagas that are
    damaged are named on stderr, and the exit code is then 1.
    """
    settings = settings_and_path()
    asked: dict[str, Any] = {"saga_name": saga_name, "step_name": step}
    asked["status"] = None if status is None else _status(status)
    asked["failed_between"] = _between(failed_from, failed_to)
    asked["tags"] = dict(map(_tag, tags))

    async def work() -> Listed:
        async with opened(store, settings) as storage:
            found = await listed(storage.find_sagas, limit, cursor, **asked)
            await tell_if_empty(storage, found)
            return found

    found = run(work())
    if form == "json":
        echo_json({"sagas": [_data(summary) for summary in found.items], "cursor": found.cursor})
    elif found.items:
        print_rows(["id", "saga", "status", "failed at", "when", "tags"], list(map(_row, found.items)), View(form))
    if form != "json":
        tell_cursor(found.cursor)
    tell_damaged(found.damaged)


def _status(text: str) -> str:
    known = [status.value for status in SagaStatus if status is not SagaStatus.PENDING]
    if text not in known:
        raise UsageError(f"--status {text!r} is none{nearest(text, known)}; there are {quoted(known)}")
    return text


def _between(first: str | None, last: str | None) -> tuple[datetime, datetime] | None:
    if first is None and last is None:
        return None
    between = aware(first or "0001-01-01T00:00:00Z"), aware(last or "9999-12-31T23:59:59.999999Z")
    if between[0] > between[1]:
        raise UsageError(f"--failed-from {first} is after --failed-to {last}: nothing is between them")
    return between


def _tag(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"--tag {text!r} is not KEY=VALUE: write it like customer=42")
    return key, value


def _data(summary: SagaSummary) -> dict[str, Any]:
    return {
        "saga_id": summary.saga_id,
        "saga_name": summary.saga_name,
        "status": summary.status,
        "step_name": summary.step_name,
        "failed_at": summary.failed_at.isoformat() if summary.failed_at else None,
        "tags": dict(summary.tags),
    }


def _row(summary: SagaSummary) -> list[str]:
    tags = " ".join(f"{key}={value}" for key, value in sorted(summary.tags.items()))
    failed_at = summary.failed_at.isoformat() if summary.failed_at else ""
    return [summary.saga_id, summary.saga_name, summary.status, summary.step_name, failed_at, tags]
