"""`sagaz replay`: run a recorded saga again for real, and ask what it was."""

from __future__ import annotations

import asyncio
import getpass
import os
import socket
from typing import TYPE_CHECKING, Any

import click

from sagaz_core.cli import past
from sagaz_core.cli.failure import NOT_WELL, Failure, message_of
from sagaz_core.cli.live import Live, StepExit
from sagaz_core.cli.options import (
    app_option,
    apps_of,
    find,
    format_option,
    opened,
    read_json,
    secrets_option,
    settings_and_path,
    store_option,
)
from sagaz_core.cli.running import Signals, run
from sagaz_core.cli.text import printable, style
from sagaz_core.engine.load import load_record
from sagaz_core.errors import UsageError
from sagaz_core.faults.plan import NO_FAULTS, FaultPlan
from sagaz_core.replay import ReplayResult, ReplayStatus, SagaReplay

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.group(no_args_is_help=False)
def replay() -> None:
    """Run a recorded saga again, or ask what it was.

    A saga is named by its id in the store, or by the file of a recording.
    """


@replay.command("run")
@click.argument("target", metavar="ID|FILE")
@click.option("--from-step", "step", metavar="STEP", required=True, help="The first step to run.")
@click.option(
    "--override",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    help='Another value in the context; repeatable. JSON ({"$decimal": "9.99"} for exact types), else text.',
)
@click.option("--force-failure", "plan", metavar="PLAN", help="Make it fail so, such as charge@after.")
@click.option("--dry-run", is_flag=True, help="Check everything, and run nothing.")
@click.option("--allow-drift", is_flag=True, help="Also when the saga is not defined as it was recorded.")
@click.option("--strict", is_flag=True, help="An override of a key that the context does not have is an error.")
@click.option("--by", metavar="NAME", help="Who asks, for the log. Default: user@host.")
@store_option
@app_option
def run_(
    target: str,
    step: str,
    overrides: Sequence[str],
    plan: str | None,
    dry_run: bool,
    allow_drift: bool,
    strict: bool,
    by: str | None,
    store: str | None,
    apps: Sequence[str],
) -> None:
    """Run a saga on from the state just before a step, as a new saga: for real, in real time.

    The steps before that one are not run: their recorded results are taken. What runs has its effects, also for sagas
    of the sagaz package; to try one without, use pytest --sagaz-replay. The original stays as it is. The replay is
    logged before it starts (sagaz replay history).

    Exit code: 0 when it completed, or ended rolled back as the forced failure has it; 1 when it was rolled back without
    one, is stuck, or a forced failure never happened; 2 when nothing was run; 130 or 143 when it was stopped.
    """
    settings = settings_and_path()
    faults = NO_FAULTS if plan is None else FaultPlan.parse(plan)
    override = _overrides(overrides)
    live, signals = Live(), Signals()

    async def work() -> ReplayResult:
        async with opened(store, settings) as storage:
            found = await find(storage, target)
            again = SagaReplay(
                found.saga_id,
                storage,
                apps=apps_of(await load_record(found.storage, found.saga_id), apps, settings),
                initiated_by=_who() if by is None else by,
                interceptors=(live,),
                observers=(live,),
                origin=None if found.file is None else found.storage,
            )
            how: dict[str, Any] = {"allow_drift": allow_drift, "strict": strict}
            if not dry_run:  # a warning is of use before anything has its effect
                _warn(await again.from_checkpoint(step, override, faults, True, **how), live)
            started = again.from_checkpoint(step, override, faults, dry_run, **how)
            try:
                return await signals.guard(started)
            except asyncio.CancelledError:
                if signals.received:
                    raise signals.failure(None if not live.saga_id else await _state(storage, live.saga_id)) from None
                raise Failure("the replay was cancelled from inside", NOT_WELL) from None
            except StepExit as death:
                raise Failure(f"{death}; the replay, {live.saga_id!r}, is what a crash leaves", NOT_WELL) from death
            except Exception as error:  # anyone's, once the saga runs
                if live.saga_id and not isinstance(error, Failure):
                    raise Failure(f"{message_of(error)} (the replay is saga {live.saga_id!r})", NOT_WELL) from error
                raise

    with signals.handled():
        result = run(work())
    _show(result, live)
    _judge(result, faults)


async def _state(storage: Any, saga_id: str) -> Any:
    from sagaz_core.engine.load import load_state
    from sagaz_core.storage.codec import opaque_class

    return await load_state(storage, saga_id, resolve=opaque_class)


def _overrides(texts: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"--override {text!r}: write KEY=VALUE, such as quantity=3")
        if key in found:
            raise UsageError(f"--override gives {key!r} twice: say which")
        found[key] = _value(key, value)
    return found


def _value(key: str, text: str) -> Any:
    try:
        return read_json(text, f"--override {key}")
    except UsageError:
        if text.lstrip()[:2] == '{"' and '"$' in text:  # meant as a type, and not one: no text
            raise
        return text


def _who() -> str:
    user = os.environ.get("SUDO_USER", "")
    try:
        user = user or getpass.getuser()
    except (OSError, KeyError, ImportError):  # a user without a name, as in many a container
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def _warn(result: ReplayResult, live: Live) -> None:
    for warning in result.warnings:
        live.say(style(f"warning: {printable(warning)}", fg="yellow"))


def _show(result: ReplayResult, live: Live) -> None:
    if result.replay_status is ReplayStatus.DRY_RUN:
        _warn(result, live)
    rows = [("from", (result.checkpoint,)), ("served", result.served), ("again", result.reran)]
    if result.replay_status is ReplayStatus.DRY_RUN:
        rows.append(("would run", result.ran))
    else:
        rows += [("ran", result.ran), ("undone", result.compensated), ("stuck", result.stuck)]
    for name, steps in rows:
        if steps:
            live.say(f"{name + ':':<10} {', '.join(map(printable, steps))}")
    live.say(f"{'replay of:':<10} {printable(result.original_saga_id)}")
    if result.new_saga_id is not None:
        live.say(f"{'new saga:':<10} {printable(result.new_saga_id)}")
    live.say(style(result.replay_status.value.replace("_", " "), bold=True))


def _judge(result: ReplayResult, plan: FaultPlan) -> None:
    """Fail unless it ended as it was asked to."""
    problems = []
    if result.stuck or result.replay_status is ReplayStatus.FAILED:
        problems.append(f"the replay, saga {result.new_saga_id!r}, is stuck at {', '.join(result.stuck) or 'its end'}")
    elif result.replay_status is ReplayStatus.ROLLED_BACK and not any(fault.described.fatal for fault in plan):
        problems.append(f"the replay, saga {result.new_saga_id!r}, was rolled back")
    if problems and result.error:
        problems[-1] += f" ({result.error})"
    if result.missed:
        problems.append(f"the forced failure {', '.join(result.missed)} never happened: the saga did not get there")
    if problems:
        raise Failure("; ".join(problems), NOT_WELL)


@replay.command("time-travel")
@click.argument("target", metavar="ID|FILE")
@click.option(
    "--at", "moment", metavar="TIME", required=True, help="ISO 8601 with a zone, such as 2026-07-15T14:30:00Z."
)
@click.option("--key", metavar="KEY", help="Only this key of the context.")
@format_option
@secrets_option
@store_option
def time_travel(target: str, moment: str, key: str | None, form: str, secrets: bool, store: str | None) -> None:
    """Show what a saga was at a time: its status, steps and context.

    Before its start the answer is that it had not started. A key that the context did not have then is shown as unset
    (null in json); one that it never had is an error.
    """
    _ask(store, target, lambda found: past.state_at(found, moment, key, past.View(form, secrets)))


@replay.command("list-changes")
@click.argument("target", metavar="ID|FILE")
@click.option("--after", metavar="TIME", help="Only what is later.")
@click.option("--before", metavar="TIME", help="Only what is earlier.")
@click.option("--limit", metavar="N", type=int, default=100, show_default=True, help="At most so many.")
@click.option("--cursor", metavar="CURSOR", help="Go on where the page before ended.")
@format_option
@store_option
def list_changes(
    target: str,
    after: str | None,
    before: str | None,
    limit: int,
    cursor: str | None,
    form: str,
    store: str | None,
) -> None:
    """List what happened to a saga, in order, and which keys of the context it changed."""
    _ask(store, target, lambda found: past.changes(found, after, before, limit, cursor, past.View(form)))


@replay.command("history")
@click.argument("target", metavar="ID")
@format_option
@secrets_option
@store_option
def history(target: str, form: str, secrets: bool, store: str | None) -> None:
    """List the replays of a saga: when, from where, with what override and plan, by whom, and how they ended.

    One that is still `started` has not ended, or its process died.
    """
    settings = settings_and_path()

    async def work() -> None:
        async with opened(store, settings) as storage:
            await past.replays(storage, target, past.View(form, secrets))

    run(work())


@replay.command("checkpoints")
@click.argument("target", metavar="ID|FILE")
@format_option
@store_option
def checkpoints(target: str, form: str, store: str | None) -> None:
    """List the steps from which a saga can be replayed."""
    _ask(store, target, lambda found: past.checkpoints(found, past.View(form)))


def _ask(store: str | None, target: str, question: Any) -> None:
    settings = settings_and_path()

    async def work() -> None:
        async with opened(store, settings) as storage:
            await question(await find(storage, target))

    run(work())
