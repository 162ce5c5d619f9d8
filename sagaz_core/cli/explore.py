"""`sagaz explore`: every failure of a saga, tried and judged."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sagaz_core.adapters.locate import adapter_for, load_made
from sagaz_core.cli.failure import NOT_WELL, Failure
from sagaz_core.cli.options import read_context, settings_and_path
from sagaz_core.cli.running import run
from sagaz_core.cli.text import echo_json, style
from sagaz_core.cli.worlds import world_of, world_option
from sagaz_core.faults.kinds import parse_kinds
from sagaz_core.faults.plan import NO_FAULTS, FaultPlan
from sagaz_core.prove.budget import deadline, seconds_of
from sagaz_core.prove.coverage import Coverage, blind_steps, struck
from sagaz_core.prove.exploration import MODES, Exploration
from sagaz_core.prove.explorer import explore_subject, with_seen_world
from sagaz_core.prove.failures import FILE, Failures
from sagaz_core.prove.schedules import in_both_orders
from sagaz_core.prove.scripts import Scripts
from sagaz_core.prove.search import DEFAULT_DEPTH, Search
from sagaz_core.prove.trial import Subject, describe, reference_reading
from sagaz_core.prove.watch import watched_calls
from sagaz_core.settings import Settings

if TYPE_CHECKING:
    from sagaz_core.prove.outcome import Outcome

SHOWN = 5


@click.command()
@click.argument("saga", metavar="MODULE:CLASS")
@click.option("--context", metavar="JSON|@FILE|-", default="{}", help="What it begins with. Default: nothing.")
@click.option(
    "--depth", type=click.IntRange(0, 20), default=DEFAULT_DEPTH, show_default=True, help="How many faults at a time."
)
@click.option("--kinds", default="all", show_default=True, help="Kinds of faults: quick, all, or a list.")
@world_option
@click.option(
    "--mode",
    type=click.Choice(["auto", *MODES]),
    default="auto",
    show_default=True,
    help="merged and tree fork the saga between its steps; packed runs each plan from the start.",
)
@click.option("--plan", "plans", metavar="PLAN", multiple=True, help="Run only this plan (or none); repeatable.")
@click.option("--max-executions", type=click.IntRange(1), metavar="N", help="Call no more actions and compensations.")
@click.option("--budget", metavar="TIME", help="Stop after this long, such as 30s, and say how far it came.")
@click.option("--report", metavar="DIR", help="Write a page of HTML, and the same as JSON, into this folder.")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def explore(
    saga: str,
    context: str,
    depth: int,
    kinds: str,
    world_spec: str | None,
    mode: str,
    plans: tuple[str, ...],
    max_executions: int | None,
    budget: str | None,
    report: str | None,
    form: str,
) -> None:
    """Try every plan of at most --depth faults of a saga, in virtual time and off the network, and judge each end.

    With --world, a function that gives the fakes that the saga acts on, it is forked between its steps and equal states
    are merged: all plans of two faults take milliseconds. Without, each plan is run from the start. Plans that failed
    before are kept in .sagaz/failures.db and tried first.

    Exit code: 0 when what was tried is sound, which is everything, or as much as the budget allows (the summary says
    INCOMPLETE then); 1 when something is not sound, when the budget was too small for any plan, or when something could
    not be tried because the saga fails by itself; 2 when nothing was run.
    """
    settings = settings_and_path()
    initial = read_context(context)
    seconds = None if budget is None else seconds_of(budget)
    wanted = parse_kinds(kinds)
    given = [NO_FAULTS if plan == "none" else FaultPlan.parse(plan) for plan in plans]
    folder = None if report is None else _folder(report)
    target = load_made(saga)
    command = _command(saga, context, world_spec)
    subject = Subject(lambda: target, initial, reproduce=f"{command} --plan={{plan}}")
    if world_spec is not None:
        made = adapter_for(target).create(target)  # the one that the world is of
        subject = replace(subject, make=lambda: made, world=world_of(world_spec, made))
    if given:
        tried = run(_ran(subject, given), virtual=True)
        if folder is not None:
            _report_plans(folder, tried)
        _show_plans(tried, wanted, form)
        return
    failures = _failures(settings)
    with _progress(form) as on_progress:
        search = Search(
            wanted,
            depth,
            mode,
            max_executions,
            known=failures.of(run(describe(subject), virtual=True)[1].name),
            over=deadline(seconds),
            on_progress=on_progress,
            again=command + ("" if depth == DEFAULT_DEPTH else f" --depth {depth}"),
        )
        exploration = run(_explored(subject, search), virtual=True)
    failed = [outcome.plan for outcome in exploration.failures]
    failures.keep(exploration.saga_name, [*failed, *search.not_asked_for(exploration.model)])
    if folder is not None:
        _report(folder, exploration)
    if form == "json":
        echo_json(_data(exploration))
    else:
        _show(exploration)
    if exploration.failures:
        wrong = len(exploration.failures)
        raise Failure("1 thing is not sound" if wrong == 1 else f"{wrong} things are not sound", NOT_WELL)
    if exploration.unproved:
        raise Failure(exploration.unproved, NOT_WELL)


def _folder(name: str) -> Path:
    from sagaz_core.report.write import check_folder

    check_folder(Path(name), "--report")
    return Path(name)


def _report(folder: Path, exploration: Exploration) -> None:
    from sagaz_core.report.write import write_report

    coverage = Coverage()
    coverage.add_exploration(exploration, "sagaz explore")
    write_report(folder, coverage)


def _report_plans(folder: Path, outcomes: list[Outcome]) -> None:
    from sagaz_core.report.write import write_report

    coverage = Coverage()
    for outcome in outcomes:
        coverage.add_item(outcome, "sagaz explore --plan")
    write_report(folder, coverage)


async def _explored(subject: Subject, search: Search) -> Exploration:
    from sagaz_core.network import no_network

    with no_network():
        return await explore_subject(subject, search)


async def _ran(subject: Subject, plans: list[FaultPlan]) -> list[Outcome]:
    from sagaz_core.network import no_network

    outcomes = []
    with no_network():
        subject, _ = with_seen_world(subject)
        with watched_calls(subject) as subject:
            reference = await reference_reading(subject)
            saved = subject.world.save() if subject.world else None
            for plan in plans:
                outcomes.append(await in_both_orders(subject, plan, reference=reference))
                if subject.world and saved is not None:
                    subject.world.restore(saved)
    return outcomes


def _failures(settings: Settings) -> Failures:
    return Failures((settings.folder / FILE) if settings.folder is not None else FILE)


def _command(saga: str, context: str, world: str | None) -> str:
    parts = ["sagaz", "explore", saga]
    parts += ["--context", context] if context != "{}" else []
    parts += ["--world", world] if world is not None else []
    return shlex.join(parts)


def _show_plans(outcomes: list[Outcome], kinds: tuple[str, ...], form: str) -> None:
    if form == "json":
        echo_json(_data(_as_exploration(outcomes, kinds)))
    else:
        for outcome in outcomes:
            click.echo(outcome.explain())
    wrong = sum(bool(outcome.findings) for outcome in outcomes)
    if wrong:
        raise Failure(f"{wrong} of {len(outcomes)} plans {'is' if wrong == 1 else 'are'} not sound", NOT_WELL)


def _as_exploration(outcomes: list[Outcome], kinds: tuple[str, ...]) -> Exploration:
    """Return what runs of single plans come to, in the form of an exploration."""
    model = outcomes[0].evidence.model
    applicable = Scripts(model, kinds).pairs()
    return Exploration(
        model=model,
        mode="packed",
        reason="only the plans that --plan names",
        engine=outcomes[0].evidence.engine,
        depth=max(len(outcome.plan.faults) for outcome in outcomes),
        plans=len(outcomes),
        possible=len(outcomes),
        executions=sum(len(outcome.evidence.ledger.entries) for outcome in outcomes),
        outcomes=tuple(outcomes),
        failures=tuple(outcome for outcome in outcomes if outcome.findings),
        checked=frozenset(pair for outcome in outcomes for pair in struck(outcome.evidence)) & applicable,
        applicable=applicable,
        blind=frozenset(step for outcome in outcomes for step in blind_steps(outcome.evidence)),
    )


def _show(exploration: Exploration) -> None:
    summary = exploration.summary()
    first, _, rest = summary.partition("\n")
    click.echo(style(first, bold=True) + (f"\n{rest}" if rest else ""))
    for outcome in exploration.failures[:SHOWN]:
        click.echo(f"\n{outcome.explain()}")
    more = exploration.failures[SHOWN:]
    if more:
        click.echo(f"\nand {len(more)} more: {', '.join(f'{o.plan} ({o.verdict.value})' for o in more)}")


def _data(exploration: Exploration) -> dict[str, Any]:
    done, there_are = exploration.coverage
    return {
        "saga": exploration.saga_name,
        "mode": exploration.mode,
        "reason": exploration.reason,
        "depth": exploration.depth,
        "plans": exploration.plans,
        "possible": exploration.possible,
        "executions": exploration.executions,
        "orders": exploration.orders,
        "checked": done,
        "applicable": there_are,
        "blind": [name for name in exploration.model.order if name in exploration.blind],
        "not_run": dict(exploration.not_run),
        "notes": list(exploration.notes),
        "complete": exploration.complete,
        "unproved": exploration.unproved,
        "failures": [_outcome_data(outcome) for outcome in exploration.failures],
        "outcomes": [_outcome_data(outcome) for outcome in exploration.outcomes],
    }


def _outcome_data(outcome: Outcome) -> dict[str, Any]:
    return {
        "plan": str(outcome.plan) or "none",
        "status": outcome.status.value,
        "verdict": outcome.verdict.value,
        "completed": outcome.completed,
        "compensated": outcome.compensated,
        "stuck": outcome.stuck,
        "reproduce": outcome.reproduce,
        "findings": [
            {
                "verdict": finding.verdict.value,
                "step": finding.step,
                "sentence": finding.sentence,
                "advice": finding.advice,
            }
            for finding in outcome.findings
        ],
    }


@contextmanager
def _progress(form: str) -> Iterator[Callable[[int, int], object] | None]:
    """Show a bar on a terminal."""
    if form != "text" or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("plans"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("plans")
        yield lambda done, total: bar.update(task, completed=done, total=total)
