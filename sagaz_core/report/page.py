"""The report as one page of HTML. It fetches nothing, runs nothing, and has no value of any saga's context in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sagaz_core.faults.kinds import KINDS
from sagaz_core.prove.saga_coverage import totals
from sagaz_core.report.graph import STATES, graph
from sagaz_core.report.markup import Markup, escape, tag
from sagaz_core.report.style import STYLE
from sagaz_core.report.text import explored, notes, percent

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sagaz_core.prove.coverage import Coverage
    from sagaz_core.prove.discreet import Failure
    from sagaz_core.prove.saga_coverage import Pair, SagaCoverage


class Mark(NamedTuple):
    """What a cell of the table shows, says, and is coloured like."""

    symbol: str
    words: str
    look: str


BOTH = Mark("TE", "proved by tests and by exploration", "proved")
TESTS = Mark("T", "proved by tests", "proved")
EXPLORATION = Mark("E", "proved by exploration", "proved")
UNSOUND = Mark("✗", "unsound", "failing")
RAN = Mark("r", "run, not checked", "partly")
BLIND = Mark("?", "effect-blind", "blind")
NOT_TRIED = Mark("·", "not tried", "not")
CANNOT = Mark("–", "cannot have it", "none")
_LEGEND = (BOTH, TESTS, EXPLORATION, UNSOUND, RAN, BLIND, NOT_TRIED, CANNOT)


def marks(saga: SagaCoverage) -> dict[Pair, Mark]:
    """Return what is known of every pair, those included that the saga cannot have."""
    found = {pair: _mark(saga, pair) for pair in saga.applicable}
    return found | dict.fromkeys(saga.reasons, CANNOT) | dict.fromkeys(saga.unsound, UNSOUND)


def _mark(saga: SagaCoverage, pair: Pair) -> Mark:
    by = (pair in saga.tests, pair in saga.explored)
    if any(by):
        return BOTH if all(by) else TESTS if by[0] else EXPLORATION
    return RAN if pair in saga.ran else BLIND if pair[0] in saga.blind else NOT_TRIED


def page(coverage: Coverage) -> str:
    """Return the page."""
    body = tag(
        "main",
        tag("h1", "What is proved of the sagas"),
        _banner(coverage.incomplete),
        _summary(coverage),
        _legend(),
        *(_saga(name, saga, number) for number, (name, saga) in enumerate(coverage.sagas.items(), 1)),
    )
    safe = "default-src 'none'; style-src 'unsafe-inline'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=safe),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{'INCOMPLETE: ' if coverage.incomplete else ''}Compensation coverage"),
        tag("style", Markup(STYLE)),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', body), lang='en')}\n"


def _banner(missing: list[str]) -> Markup:
    if not missing:
        return Markup()
    lines = tag("ul", *(tag("li", line) for line in missing))
    return tag("div", tag("strong", "INCOMPLETE: this report does not show all that there is."), lines,
               class_="banner", role="alert")  # fmt: skip


def _summary(coverage: Coverage) -> Markup:
    rows = [_row(name, [saga]) for name, saga in coverage.sagas.items()]
    if not rows:
        return tag("p", "No saga was run, and none is named.")
    if len(rows) > 1:
        rows.append(_row("all", coverage.sagas.values()))
    head = ("saga", "your tests", "exploration", "together", "unsound", "failures")
    told = "Pairs of a step and a kind of fault whose runs were judged and are sound, of all that the saga can have"
    return tag(
        "div",
        tag("table", tag("caption", told), tag("thead", tag("tr", *(tag("th", text, scope="col") for text in head))),
            tag("tbody", *rows), class_="totals"),
        class_="wide",
    )  # fmt: skip


def _row(name: str, sagas: Iterable[SagaCoverage]) -> Markup:
    some = list(sagas)
    count = totals(some)
    parts = (percent(part, count.applicable) for part in (count.tests, count.explored, count.proved))
    failures = sum(len(saga.failures) for saga in some)
    return tag("tr", *(tag("td", text) for text in (name, *parts, count.unsound, failures)))


def _legend() -> Markup:
    marks = (tag("div", tag("dt", m.symbol, class_=m.look), tag("dd", m.words)) for m in _LEGEND)
    boxes = (tag("div", tag("dt", " ", class_=look), tag("dd", words)) for look, words in STATES.items())
    return tag(
        "section",
        tag("h3", "In the tables"), tag("dl", *marks, class_="legend"),
        tag("h3", "In the graphs"), tag("dl", *boxes, class_="legend"),
    )  # fmt: skip


def _saga(name: str, saga: SagaCoverage, number: int) -> Markup:
    heading = f"saga-{number}"
    count = totals([saga])
    tests, there_are = percent(count.tests, count.applicable), percent(count.explored, count.applicable)
    facts = [
        f"your tests {tests}, exploration {there_are}",
        *notes(saga),
        *(f"explored by {way.source}: {way.mode} ({way.reason}), {explored(way.depth, amount)}"
          for way, amount in sorted(saga.ways.items())),
        *([f"kinds that its engine cannot have: {', '.join(saga.cannot)}"] if saga.cannot else []),
    ]  # fmt: skip
    return tag(
        "section",
        tag("h2", name, id=heading),
        *(tag("p", fact) for fact in facts),
        tag("div", tag("div", graph(name, saga, number), class_="wide"), _pairs(saga), class_="both"),
        *([tag("h3", "Failures"), *(_failure(one) for _, one in sorted(saga.failures.items()))]
          if saga.failures else []),
        aria_labelledby=heading,
    )  # fmt: skip


def _pairs(saga: SagaCoverage) -> Markup:
    undo = sum(kind.undo for kind in KINDS.values())
    over = tag(
        "tr",
        tag("th", "step", scope="col", rowspan="2"),
        tag("th", "faults of the action", scope="colgroup", colspan=str(len(KINDS) - undo)),
        tag("th", "faults of the compensation", scope="colgroup", colspan=str(undo)),
    )
    kinds = tag("tr", *(tag("th", kind.name, scope="col", title=kind.meaning) for kind in KINDS.values()))
    shown, reasons = marks(saga), saga.reasons
    rows = (
        tag("tr", tag("th", step, scope="row"), *(_cell(pair, shown[pair], reasons.get(pair, "")) for pair in pairs))
        for step in saga.model.order
        for pairs in [[(step, kind) for kind in KINDS]]
    )
    return tag("div", tag("table", tag("thead", over, kinds), tag("tbody", *rows), class_="pairs"), class_="wide")


def _cell(pair: Pair, shown: Mark, reason: str) -> Markup:
    words = f"{shown.words}: {reason}" if shown is CANNOT else shown.words
    symbol = tag("span", shown.symbol, aria_hidden="true")
    said = tag("span", words, class_="said-only")
    return tag("td", symbol, said, class_=shown.look, title=f"{pair[0]}@{pair[1]}: {words}")


def _failure(failure: Failure) -> Markup:
    parts = [tag("h3", tag("code", failure.plan), f" {failure.verdict}: {failure.sentence}")]
    if failure.advice:
        parts.append(tag("p", f"→ {failure.advice}"))
    parts.append(tag("pre", failure.table))
    if failure.reproduce:
        parts.append(tag("p", "Again: ", tag("code", failure.reproduce)))
    found = f"found by {failure.source}" if failure.source else ""
    told = "; ".join(part for part in (found, f"accepted: {failure.accepted}" if failure.accepted else "") if part)
    return tag("article", *parts, tag("p", told, class_="faint") if told else escape(""), class_="failure")
