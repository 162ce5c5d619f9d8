"""The table that a failure prints: one row a step, what was done, undone and left, and what to change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sagaz_core.model import END
from sagaz_core.prove.verdict import MEANING, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sagaz_core.prove.outcome import Outcome


def explain(outcome: Outcome) -> str:
    """Return the report of one outcome."""
    evidence, state = outcome.evidence, outcome.evidence.state
    ended = "was given up" if evidence.endless is not None else f"ended {outcome.status.value}"
    lines = [f"saga {outcome.saga_name!r}{outcome.under} {ended}: {outcome.verdict.value}"]
    if outcome.findings:
        lines[0] += f", {MEANING[outcome.verdict]}"
    lines += ["", *table(("step", "done", "undone", "left"), _rows(outcome)), ""]
    actual = [entry.step for entry in evidence.ledger.entries if entry.undo and entry.happened]
    expected = [step for step in reversed(evidence.model.order) if step in actual]
    if actual:
        lines.append(f"undone in the order  {', '.join(actual)}")
        if any(finding.verdict is Verdict.OUT_OF_ORDER for finding in outcome.findings):
            lines.append(f"a legal order        {', '.join(expected)}")
    if evidence.oldest_first and outcome.findings:
        lines.append("and newest first      it is sound: if one of them needs what another did, declare depends_on")
    if state.error is not None:
        lines.append(f"turned back by       {state.failed_step or 'the run'}: {state.error}")
    lines += [f"world                {change}" for change in outcome.world_changes]
    for finding in outcome.findings:
        lines.append(f"{finding.verdict.value:<20} {finding.sentence}")
        if finding.advice:
            lines.append(f"{'':<20} -> {finding.advice}")
    if outcome.reproduce:
        lines.append(f"again                {outcome.reproduce}")
    return "\n".join(lines)


def _rows(outcome: Outcome) -> Iterable[tuple[str, str, str, str]]:
    evidence = outcome.evidence
    wrong = {
        step: finding.verdict.value
        for finding in reversed(outcome.findings)
        for step in (finding.step, *finding.culprits)
    }
    for name in evidence.model.order:
        done, undone = evidence.ledger.effects(name)
        step = evidence.model.step(name)
        alive = bool(done) and done[-1] > (undone[-1] if undone else -1)
        did = (
            "recorded"
            if done[:1] == [0]
            else _times(len(done))
            if done
            else "tried"
            if evidence.ledger.touched(name)
            else ""
        )
        undid = _times(len(undone)) if undone else "" if step.has_compensation else "(nothing to run)"
        left = ""
        if name in wrong:
            left = wrong[name]
        elif alive and outcome.evidence.turned_back:
            left = "stuck" if name in outcome.stuck else "kept"
        yield name, did, undid, left
    if wrong.get(END):
        yield END, "", "", wrong[END]


def _times(count: int) -> str:
    return "yes" if count == 1 else f"{count} times"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a plain text table, a line each."""
    all_rows = [tuple(head), *(tuple(row) for row in rows)]
    widths = [max(len(row[column]) for row in all_rows) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in all_rows]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def explain_difference(what: str, expected: set[str], got: set[str]) -> str:
    """Return one line that says which steps should have been `what` and were not, and the other way round."""
    parts = []
    if expected - got:
        parts.append(f"not {what}: {', '.join(sorted(expected - got))}")
    if got - expected:
        parts.append(f"{what} though not expected: {', '.join(sorted(got - expected))}")
    return "; ".join(parts)
