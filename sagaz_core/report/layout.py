"""Where a saga's steps are drawn: in rows by level, each below all that it depends on (Sugiyama, Tagawa, Toda 1981).

A step's level is the longest way to it. An edge that passes a level has a place of its own there, so that it does not
run behind a step; an edge that another way implies is not drawn. A row is in the order of the means of what is above.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sagaz_core.model import SagaModel


class Spot(NamedTuple):
    """A place in the grid: its row, and its column, which is a half where a row has fewer places than the widest."""

    row: int
    column: float


class Layout(NamedTuple):
    """Where the steps are, which spots each edge passes from its first step to its last, and how large the grid is."""

    steps: Mapping[str, Spot]
    edges: tuple[tuple[Spot, ...], ...]
    rows: int
    columns: int


Place = tuple[str, ...]  # (step,), or (step, dependent, level) where an edge passes


def layout(model: SagaModel) -> Layout:
    """Lay the steps out."""
    level = _levels(model)
    paths = [_path(above, below, level) for above, below in _needed_edges(model)]
    rows: list[list[Place]] = [[] for _ in range(max(level.values(), default=-1) + 1)]
    for name in model.order:
        rows[level[name]].append((name,))
    for path in paths:
        for place in path[1:-1]:
            rows[int(place[2])].append(place)
    _straighten(rows, paths)
    columns = max((len(row) for row in rows), default=0)
    spots = {
        place: Spot(number, index + (columns - len(row)) / 2)
        for number, row in enumerate(rows)
        for index, place in enumerate(row)
    }
    steps = {name: spots[(name,)] for name in model.order}
    return Layout(steps, tuple(tuple(spots[place] for place in path) for path in paths), len(rows), columns)


def _levels(model: SagaModel) -> dict[str, int]:
    level: dict[str, int] = {}
    for name in model.order:
        level[name] = 1 + max((level[above] for above in model.step(name).depends_on), default=-1)
    return level


def _needed_edges(model: SagaModel) -> list[tuple[str, str]]:
    edges = []
    for name in model.order:
        direct = dict.fromkeys(model.step(name).depends_on)
        implied = frozenset().union(*(model.ancestors[above] for above in direct))
        edges += [(above, name) for above in direct if above not in implied]
    return edges


def _path(above: str, below: str, level: Mapping[str, int]) -> list[Place]:
    between = [(above, below, str(row)) for row in range(level[above] + 1, level[below])]
    return [(above,), *between, (below,)]


def _straighten(rows: list[list[Place]], paths: list[list[Place]]) -> None:
    above: dict[Place, list[Place]] = {}
    for path in paths:
        for upper, lower in pairwise(path):
            above.setdefault(lower, []).append(upper)
    at: dict[Place, float] = {}
    for row in rows:
        order = {place: index for index, place in enumerate(row)}
        mean = {
            place: sum(at[upper] for upper in above[place]) / len(above[place]) if place in above else order[place]
            for place in row
        }
        row.sort(key=lambda place: (mean[place], order[place]))
        at |= {place: index - len(row) / 2 for index, place in enumerate(row)}
