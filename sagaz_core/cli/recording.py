"""`sagaz recording`: look at recorded sagas, and carry them from store to store in files."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sagaz_core.adapters.locate import find_saga, import_module
from sagaz_core.cli.listing import Listed, listed, tell_cursor, tell_damaged, tell_if_empty
from sagaz_core.cli.live import ending, line_of, text_of
from sagaz_core.cli.options import (
    app_option,
    checked_output,
    find,
    format_option,
    opened,
    settings_and_path,
    store_option,
)
from sagaz_core.cli.past import View, print_rows
from sagaz_core.cli.running import run
from sagaz_core.cli.text import echo_json, printable, style
from sagaz_core.engine.load import load_state
from sagaz_core.engine.run import source_of
from sagaz_core.errors import CorruptDataError, UnknownSagaClassError, UsageError
from sagaz_core.recording import Recording
from sagaz_core.storage.codec import known_class, opaque_class
from sagaz_core.storage.records import unpack_state

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sagaz_core.storage.base import SagaRecord, SnapshotStorage


@click.group(no_args_is_help=False)
def recording() -> None:
    """Look at recorded sagas, and carry them from store to store in files."""


@recording.command()
@click.argument("target", metavar="ID|FILE")
@click.option("-o", "--output", "output", metavar="FILE", required=True, help="The file to write.")
@click.option("--force", is_flag=True, help="Overwrite the file.")
@click.option(
    "--redact", metavar="KEY,KEY…", help="Replace the values under these keys by pseudonyms, wherever they stand."
)
@click.option(
    "--redact-key-env",
    "variable",
    metavar="NAME",
    default="SAGAZ_REDACT_KEY",
    show_default=True,
    help="The environment variable that holds the secret of the pseudonyms.",
)
@store_option
def export(target: str, output: str, force: bool, redact: str | None, variable: str, store: str | None) -> None:
    """Write a recorded saga to a file: one JSON document that a person can read, compare and check in.

    Under --redact, equal values get equal pseudonyms of their own type, as long as the secret is the same. A key that
    stands nowhere in the recording is an error: misspelt, it would let out what it was to hide.
    """
    settings = settings_and_path()
    out = checked_output(output, force=force)
    keys = None if redact is None else _keys(redact)
    secret = "" if keys is None else _secret(variable)

    async def work() -> None:
        async with opened(store, settings) as storage:
            found = await find(storage, target)
            made = found.file or await Recording.from_storage(storage, found.saga_id, resolve=opaque_class)
        if keys is not None:
            made = made.redacted(keys, secret)
        made.save(out)
        click.echo(f"{printable(made.saga_id)}: {len(made.events)} events in {printable(str(out))}")

    run(work())


def _keys(text: str) -> list[str]:
    keys = [key.strip() for key in text.split(",") if key.strip()]
    if not keys:
        raise UsageError("--redact names no keys: write them like email,card_number")
    return keys


def _secret(variable: str) -> str:
    secret = os.environ.get(variable, "")
    if not secret:
        raise UsageError(
            f"--redact needs a secret in the environment variable {variable}: set it to a text of your own"
        )
    return secret


@recording.command("import")
@click.argument("file", metavar="FILE")
@store_option
@app_option
def import_(file: str, store: str | None, apps: Sequence[str]) -> None:
    """Put the recording of a file into the store.

    A file may come from anyone, so it is not believed where its classes are: the saga's, and those of its values, are
    only taken from the modules of --app. Without the saga's, --app has to name it when it is replayed.
    """
    settings = settings_and_path()
    named = tuple(apps) or settings.sagas
    for module in named:
        import_module(module.partition(":")[0])
    loaded = Recording.load(Path(file), resolve=known_class)
    for snapshot in loaded.snapshots:  # kept as it is; but what it names must not be imported for it later
        unpack_state(snapshot, known_class)
    found = replace(loaded, record=loaded.record._replace(source=_source(loaded.saga_name, named)))

    async def work() -> None:
        async with opened(store, settings) as storage:
            await found.to_storage(storage)
            where = (
                f"saga class {found.record.source}" if found.record.source else "its class is not known here: see --app"
            )
            click.echo(f"{printable(found.saga_id)}: {len(found.events)} events, {printable(where)}")

    run(work())


def _source(saga_name: str, modules: Sequence[str]) -> str:
    try:
        found = find_saga(saga_name, modules)
    except UnknownSagaClassError:
        return ""
    return source_of(found)


@recording.command()
@click.argument("target", metavar="ID|FILE")
@store_option
def show(target: str, store: str | None) -> None:
    """Print what a recorded saga did. Values of its context are not printed: see sagaz replay time-travel."""
    settings = settings_and_path()

    async def work() -> Recording:
        async with opened(store, settings) as storage:
            found = await find(storage, target)
            return found.file or await Recording.from_storage(storage, found.saga_id, resolve=opaque_class)

    made = run(work())
    record = made.record
    click.echo(
        f"{style(printable(made.saga_id), bold=True)}  {printable(record.saga_name)} {printable(record.version)}"
    )
    facts = [("started", record.started_at.isoformat()), ("class", record.source), ("plan", record.plan)]
    for name, fact in facts:
        if fact:
            click.echo(f"  {name}: {printable(fact)}")
    for event in made.events:
        line = line_of(event)
        if line is not None:
            click.echo(text_of(line))
    click.echo(style(printable(ending(made.state)), bold=True))


@recording.command("list")
@click.option("--prefix", metavar="TEXT", default="", help="Only ids that begin so.")
@click.option("--limit", metavar="N", type=int, default=100, show_default=True, help="At most so many.")
@click.option("--cursor", metavar="CURSOR", help="Go on where the page before ended.")
@format_option
@store_option
def list_(prefix: str, limit: int, cursor: str | None, form: str, store: str | None) -> None:
    """List the recorded sagas of the store, by id. Those that are damaged are named on stderr: exit code 1."""
    settings = settings_and_path()

    async def work() -> Listed:
        async with opened(store, settings) as storage:
            found, rows = await listed(storage.list_sagas, limit, cursor, prefix=prefix), list[dict[str, Any]]()
            for record in found.items:
                try:
                    rows.append(await _row(storage, record))
                except CorruptDataError as error:
                    found.damaged.append(str(error))
            await tell_if_empty(storage, found)
            return found._replace(items=rows)

    found = run(work())
    if form == "json":
        echo_json({"sagas": found.items, "cursor": found.cursor})
    else:
        rows = [list(row.values())[:5] for row in found.items]
        print_rows(["id", "saga", "version", "started", "status"], rows, View(form))
        tell_cursor(found.cursor)
    tell_damaged(found.damaged)


async def _row(storage: SnapshotStorage, record: SagaRecord) -> dict[str, Any]:
    state = await load_state(storage, record.saga_id, resolve=opaque_class)
    return {
        "saga_id": record.saga_id,
        "saga_name": record.saga_name,
        "version": record.version,
        "started_at": record.started_at.isoformat(),
        "status": state.status.value,
        "source": record.source,
        "plan": record.plan,
    }
