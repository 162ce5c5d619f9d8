"""`sagaz store`: what a store holds, and moving, upgrading and pruning it."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from sagaz_core.cli.failure import Failure
from sagaz_core.cli.options import opened
from sagaz_core.cli.running import run
from sagaz_core.cli.text import echo_json, printable
from sagaz_core.clock import utc_now
from sagaz_core.errors import UsageError
from sagaz_core.storage.copying import Copied, copy_store
from sagaz_core.storage.url import safe_url
from sagaz_core.times import aware

if TYPE_CHECKING:
    from datetime import datetime

    from sagaz_core.storage.base import SnapshotStorage, StoreInfo


@click.group(no_args_is_help=False)
def store() -> None:
    """See what a store holds; copy, upgrade and prune it. URL is such as sqlite:///path/to/file.db."""


@store.command()
@click.argument("url")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def info(url: str, form: str) -> None:
    """Print the version of a store's schema, how much it holds, and how large it is."""

    async def work() -> StoreInfo:
        async with opened(url) as storage:
            return await storage.info()

    found = run(work())
    if form == "json":
        echo_json({**asdict(found), "url": safe_url(found.url)})
        return
    click.echo(printable(safe_url(found.url)))
    if not found.schema_version:
        click.echo("  nothing is there yet")
        return
    click.echo(f"  schema     {found.schema_version}")
    for name in ("sagas", "events", "snapshots", "replays", "bytes"):
        click.echo(f"  {name:<10} {getattr(found, name):,}")


@store.command()
@click.argument("url")
def upgrade(url: str) -> None:
    """Create a store, or bring it to the schema of this release. Any number of processes may do it at once."""

    async def work() -> tuple[int, int]:
        async with opened(url) as storage:
            before = (await storage.info()).schema_version
            return before, await storage.upgrade()

    before, version = run(work())
    click.echo(f"schema {version}" + ("" if before == version else ", created" if not before else f", from {before}"))


@store.command()
@click.argument("url")
@click.option("--batch", type=int, default=500, show_default=True, help="Delete so many snapshots at a time.")
@click.option("--now", "moment", metavar="TIME", help="What has expired by then. Default: now.")
def prune(url: str, batch: int, moment: str | None) -> None:
    """Delete snapshots that have expired. What later ones are based on stays, unseen, as long as they need it."""
    now = utc_now() if moment is None else aware(moment)

    async def work() -> int:
        async with opened(url) as storage:
            return await storage.prune(now, batch=batch)

    gone = run(work())
    click.echo(f"{gone:,} snapshot{'' if gone == 1 else 's'} deleted")


@store.command()
@click.argument("from_url", metavar="FROM")
@click.argument("to_url", metavar="TO")
@click.option("--saga-name", metavar="NAME", help="Only the sagas of this name.")
@click.option("--since", metavar="TIME", help="Only sagas that started then or later, such as 2026-07-15T14:30:00Z.")
def copy(from_url: str, to_url: str, saga_name: str | None, since: str | None) -> None:
    """Copy sagas from one store to another, with their events, snapshots and replay log.

    Each is read again from TO and compared by checksums. A copy that was stopped goes on where it was when the same
    command is given again. Nothing in TO is changed or deleted. What is damaged in FROM is listed and left out, and the
    exit code is then 1.
    """
    start = None if since is None else aware(since)

    async def work() -> Copied:
        async with opened(from_url) as source, opened(to_url) as target:
            if source.url == target.url:
                raise UsageError(f"{safe_url(source.url)} is both stores: name two")
            return await _copied(source, target, saga_name, start)

    done = run(work())
    if not done.sagas and not done.damaged:
        named = "" if saga_name is None else f" of the name {saga_name!r}"
        started = "" if start is None else f" that started at {start.isoformat()} or later"
        click.echo(printable(f"there is no saga{named}{started} in {safe_url(from_url)}"), err=True)
    there = f" ({done.there:,} of them were there already)" if done.there else ""
    click.echo(
        f"{done.sagas:,} sagas{there}, {done.events:,} events, {done.snapshots:,} snapshots, {done.replays:,} replays: "
        f"copied and verified"
    )
    if done.damaged:
        for damage in done.damaged:
            click.echo(printable(f"  {damage}"))
        count = len(done.damaged)
        what = "1 record was" if count == 1 else f"{count:,} records were"
        raise Failure(f"{what} damaged in {safe_url(from_url)}, and left out", 1)


async def _copied(
    source: SnapshotStorage, target: SnapshotStorage, saga_name: str | None, since: datetime | None
) -> Copied:
    held = await source.info()
    if not held.schema_version:
        raise UsageError(f"there is no store at {safe_url(source.url)}: nothing to copy")
    if sys.stderr is None or not sys.stderr.isatty():
        return await copy_store(source, target, saga_name=saga_name, since=since)
    with click.progressbar(length=held.sagas, label="sagas", file=sys.stderr) as bar:
        return await copy_store(source, target, saga_name=saga_name, since=since, on_saga=lambda: bar.update(1))
