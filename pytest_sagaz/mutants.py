"""What a run with `--sagaz-mutate` says at its end, made of plain data: the same with workers and without."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sagaz_core.mutation.operators import OPERATORS
from sagaz_core.mutation.score import shown
from sagaz_core.prove.explain import table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    Row = dict[str, Any]

_PLANS = {
    "needs-result": "{step}@after",
    "not-idempotent": "{step}@repeat",
    "undo-not-idempotent": "{step}@undo-repeat",
}


class Report:
    """The score of all sagas, and what nobody noticed."""

    def __init__(
        self, rows: Mapping[tuple[str, str], Mapping[str, Row]], lost_workers: int = 0, spoiled: Iterable[str] = ()
    ) -> None:
        self._lost = lost_workers
        self._spoiled = sorted(set(spoiled))
        self._sagas: dict[tuple[str, str], dict[str, Row]] = {}
        self._wired: set[tuple[str, str]] = set()
        for key in sorted(rows):
            self._sagas[key] = {name: row for name, row in rows[key].items() if row["operator"] != "control"}
            if any(row["caught"] for row in rows[key].values() if row["operator"] == "control"):
                self._wired.add(key)

    @property
    def _scored(self) -> list[Row]:
        """The rows of the sagas whose control was caught."""
        return [row for key, rows in self._sagas.items() if key in self._wired for row in rows.values()]

    @property
    def percent(self) -> float:
        """How many of 100 mutants made a test fail."""
        scored = self._scored
        return 100 * sum(bool(row["caught"]) for row in scored) / len(scored) if scored else 0.0

    def reaches(self, limit: float) -> bool:
        """Whether the score is whole and not below the limit."""
        return not self._lost and self._wired == self._sagas.keys() and self.percent >= limit

    def lines(self, limit: float | None) -> Iterator[str]:
        """Iterate the lines of the report."""
        if not self._sagas and not self._lost:
            yield "no test that passed ran a saga of sagaz_core: there is no score"
        if self._lost:
            yield f"incomplete: {self._lost} worker{'s' if self._lost > 1 else ''} sent nothing"
        for name in self._spoiled:
            yield f"{name} was not used to its end: once a mutant made it fail, it fails without one (it keeps state)"
        for key in self._sagas:
            if key not in self._wired:
                yield (
                    f"{key[0]}: no score: no test fails when the first action of it does, so either they look at "
                    f"nothing, or the mutants do not reach the runs"
                )
        if self._scored:
            yield from self._table()
            yield from self._survivors()
            sagas = len(self._wired)
            caught = sum(bool(row["caught"]) for row in self._scored)
            of = f" of {sagas} sagas" if sagas > 1 else ""
            yield f"your tests caught {caught} of {len(self._scored)} mutants{of} ({shown(self.percent)} %)"
        if limit is not None and not self.reaches(limit):
            yield f"that is not the {limit:g} % of --sagaz-mutate-fail-under"

    def _table(self) -> Iterator[str]:
        rows = []
        for operator in OPERATORS:
            mine = [row for row in self._scored if row["operator"] == operator]
            if mine:
                rows.append((operator, str(sum(bool(row["caught"]) for row in mine)), str(len(mine))))
        yield from table(("operator", "caught", "of"), rows)
        yield ""

    def _survivors(self) -> Iterator[str]:
        for key, rows in self._sagas.items():
            left = {name: row for name, row in rows.items() if not row["caught"]} if key in self._wired else {}
            for name, row in sorted(left.items(), key=_place):
                yield f"{key[0]}: nobody notices that {row['sentence']}  ({name})"
                yield f"  -> {_advice(row)}"
            if left:
                yield ""


def _place(named: tuple[str, Row]) -> tuple[int, str]:
    return list(OPERATORS).index(named[1]["operator"]), named[0]


def _advice(row: Row) -> str:
    if row["operator"] == "lose-edge":
        return "sagaz.explore(…).assert_sound() with a world; if it changes nothing there, take the edge out"
    plan = _PLANS.get(row["operator"], "end@before").format(step=row["step"])
    count = row["tests"]
    runs = "no test runs it" if not count else "1 test runs it" if count == 1 else f"{count} tests run it"
    return f'{runs}: sagaz.run(…, plan="{plan}", world=…).assert_sound()'
