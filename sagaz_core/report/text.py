"""Coverage in a terminal: a table, a row a saga, and what was explored."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sagaz_core.prove.explain import table
from sagaz_core.prove.saga_coverage import totals

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sagaz_core.prove.coverage import Coverage
    from sagaz_core.prove.saga_coverage import Amount, SagaCoverage, Way


def percent(part: int, whole: int) -> str:
    """Return `23/160 (14 %)`. It is 100 % only when nothing is missing."""
    return f"{part:,}/{whole:,} ({math.floor(100 * part / whole) if whole else 0} %)"


def coverage_lines(coverage: Coverage) -> list[str]:
    """Return the table and the lines below it."""
    sagas = coverage.sagas
    if not sagas:
        return ["no saga was run, and none is named: name their modules in the ini sagaz_sagas"]
    rows = [_row(name, [saga]) for name, saga in sagas.items()]
    if len(sagas) > 1:
        rows.append(_row("all", sagas.values()))
    lines = table(("saga", "your tests", "exploration", "together", "unsound"), rows)
    for name, saga in sagas.items():
        lines += [f"{name}: {text}" for text in notes(saga)]
    return lines


def _row(name: str, sagas: Iterable[SagaCoverage]) -> tuple[str, ...]:
    count = totals(sagas)
    whole = count.applicable
    parts = (percent(part, whole) for part in (count.tests, count.explored, count.proved))
    return (name, *parts, str(count.unsound or ""))


def notes(saga: SagaCoverage) -> list[str]:
    """Return what is to be said of one saga besides its numbers."""
    lines = []
    if saga.ways:
        lines.append(explored(*deepest(saga.ways)))
    if not (saga.tests or saga.ran or saga.explored):
        lines.append("nothing runs it under a fault")
    unchecked = len(saga.ran & set(saga.applicable) - saga.tests - saga.unsound)
    if unchecked:
        lines.append(f"{counted(unchecked, 'pair')} run by tests and not checked: assert_sound() checks a run")
    if saga.blind:
        lines.append(f"effect-blind: {', '.join(sorted(saga.blind))} (no ledger and no world sees what they do)")
    return lines


def deepest(ways: dict[Way, Amount]) -> tuple[int, Amount]:
    """Return the greatest depth that was explored, and how much was explored with it."""
    depth = max(way.depth for way in ways)
    plans, executions, not_run = zip(*(amount for way, amount in ways.items() if way.depth == depth), strict=True)
    return depth, type(next(iter(ways.values())))(sum(plans), sum(executions), sum(not_run))


def explored(depth: int, amount: Amount) -> str:
    """Return `4,851 of 4,851 plans of up to 2 faults by 1,034 executions`."""
    faults = "1 fault" if depth == 1 else f"up to {depth} faults"
    there_are = amount.plans + amount.not_run
    return f"{amount.plans:,} of {counted(there_are, 'plan')} of {faults} by {counted(amount.executions, 'execution')}"


def counted(number: int, what: str) -> str:
    """Return the number with its noun."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
