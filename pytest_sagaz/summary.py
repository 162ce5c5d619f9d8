"""The section at the end of a run, made from what the reports carry: so it is the same with workers and without."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from pytest_sagaz.reports import DRIFT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pytest

    Group = list[tuple[pytest.TestReport, dict[str, Any]]]

_MANY = 20  # sagas, of which each has a line of its own


def summary(reports: Sequence[pytest.TestReport]) -> list[str]:
    """Return how many plans of each saga were tried, and how many are sound; of many sagas only what is to be told."""
    groups: dict[str, Group] = {}
    for report in reports:
        facts = dict(report.user_properties)
        name = facts.get("sagaz_id") or facts.get("sagaz_saga")
        if name is not None and (report.when == "call" or not report.passed):
            groups.setdefault(str(name), []).append((report, facts))
    lines = []
    named = groups if len(groups) <= _MANY else {name: group for name, group in groups.items() if _is_news(group)}
    for name, group in list(named.items())[:_MANY]:
        lines += [f"{name}: {_counts(group)}".rstrip(), *_drift(group), *_explored(group)]
    if len(groups) > _MANY:
        everything = [one for group in groups.values() for one in group]
        lines.append(f"{len(groups)} sagas: {_counts(everything, several=True)}")
    return lines


def _is_news(group: Group) -> bool:
    return any(not report.passed for report, _ in group) or any(_drift(group))


def _drift(group: Group) -> Iterator[str]:
    for report, _ in group:
        for title, text in report.sections:
            if DRIFT in title and report.passed:
                yield "  drift, which passes without --sagaz-strict:"
                yield from (f"  {row}" for row in text.split("\n"))


def _explored(group: Group) -> Iterator[str]:
    for _, facts in group:
        yield from (f"  {line}" for line in str(facts.get("sagaz_explored", "")).splitlines())


def _counts(group: Group, *, several: bool = False) -> str:
    faithful = [facts for _, facts in group if facts.get("sagaz_plan") == "faithful" and "sagaz_verdict" in facts]
    verdicts = Counter(str(facts["sagaz_verdict"]).lower() for facts in faithful)
    parts = [f"{count} {verdict}" if several else verdict for verdict, count in verdicts.items()]
    plans = [one for one in group if one[1].get("sagaz_plan") != "faithful"]
    plans = [one for one in plans if "sagaz_explored" not in one[1]]
    for what in (False, True):
        some = [one for one in plans if ("sagaz_killed" in one[1]) is what]
        parts += _tally(some, "kill" if what else "plan") if some else []
    return ", ".join(parts)


def _tally(group: Group, noun: str) -> Iterator[str]:
    ran = [facts for _, facts in group if "sagaz_verdict" in facts]
    sound = sum(1 for facts in ran if facts["sagaz_verdict"] == "CLEAN")
    yield f"{len(group)} {noun}{'s' if len(group) != 1 else ''}, {sound} sound"
    known = sum(1 for report, _ in group if hasattr(report, "wasxfail"))
    not_run = sum(1 for report, facts in group if report.skipped and "sagaz_verdict" not in facts)
    others = {
        "not": len(ran) - sound - known,
        "known not to be": known,
        "not run": not_run,
        "failed to run": len(group) - len(ran) - not_run,
    }
    yield from (f"{count} {what}" for what, count in others.items() if count > 0)
