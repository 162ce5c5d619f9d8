"""The graph of a saga as SVG: a box a step, coloured by what is proved of it, which it also says in words.

The colours of the attributes are for a drawing that was taken out of its page; in it the style sheet has the word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sagaz_core.report.layout import Spot, layout
from sagaz_core.report.markup import Markup, tag
from sagaz_core.report.style import LIGHT

if TYPE_CHECKING:
    from sagaz_core.prove.saga_coverage import SagaCoverage

_WIDE, _HIGH = 216, 46  # a box
_APART, _BELOW = 22, 34  # boxes in a row, and rows
_MARGIN = 8
_LONGEST = 26  # characters of a name in a box
_WRITTEN = {"text_anchor": "middle", "fill": LIGHT["ink"], "stroke": "none"}

STATES = {
    "failing": "unsound",
    "proved": "proved",
    "partly": "partly proved",
    "blind": "effect-blind",
    "not": "not proved",
}
"""What is known of a step, by the class of its box."""


class Standing(NamedTuple):
    """How much of a step is proved. `state` is a key of `STATES`."""

    state: str
    proved: int
    applicable: int

    @property
    def words(self) -> str:
        """What its box says."""
        return f"{STATES[self.state]} {self.proved}/{self.applicable}"


def standings(saga: SagaCoverage) -> dict[str, Standing]:
    """Return how every step stands."""
    proved, failing = saga.proved(), saga.failing_steps()
    found = {}
    for name in saga.model.order:
        pairs = {pair for pair in saga.applicable if pair[0] == name}
        got = len(pairs & proved)
        state = "partly" if got else "blind" if name in saga.blind else "not"
        if name in failing:
            state = "failing"
        elif got == len(pairs) and pairs:
            state = "proved"
        found[name] = Standing(state, got, len(pairs))
    return found


def graph(name: str, saga: SagaCoverage, number: int) -> Markup:
    """Return the drawing of the saga called `name`; `number` keeps its ids apart from those of other drawings."""
    where = layout(saga.model)
    wide = where.columns * (_WIDE + _APART) - _APART + 2 * _MARGIN
    high = where.rows * (_HIGH + _BELOW) - _BELOW + 2 * _MARGIN
    arrow, title, told = f"arrow-{number}", f"graph-{number}", f"graph-told-{number}"
    stand = standings(saga)
    head = tag("path", d="M0 0 L8 4 L0 8 z")
    return tag(
        "svg",
        tag("title", f"The steps of {name}", id=title),
        tag("desc", "; ".join(f"{step}: {stand[step].words}" for step in saga.model.order), id=told),
        tag("defs", tag("marker", head, id=arrow, viewBox="0 0 8 8", refX="8", refY="4", markerWidth="8",
                        markerHeight="8", orient="auto")),
        *(tag("path", d=_curve(edge), class_="edge", fill="none", stroke=LIGHT["faint"], marker_end=f"url(#{arrow})")
          for edge in where.edges),
        *(_box(saga, step, stand[step], spot) for step, spot in where.steps.items()),
        role="img", aria_labelledby=f"{title} {told}", class_="graph", width=str(wide), height=str(high),
        viewBox=f"0 0 {wide} {high}", xmlns="http://www.w3.org/2000/svg",
    )  # fmt: skip


def _corner(spot: Spot) -> tuple[float, int]:
    return _MARGIN + spot.column * (_WIDE + _APART), _MARGIN + spot.row * (_HIGH + _BELOW)


def _box(saga: SagaCoverage, name: str, stand: Standing, spot: Spot) -> Markup:
    x, y = _corner(spot)
    step = saga.model.step(name)
    traits = ["pivot"] * step.pivot + ["no undo"] * (not step.has_compensation)
    said = " · ".join([stand.words, *traits])
    short = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
    centre = f"{x + _WIDE / 2:g}"
    return tag(
        "g",
        tag("title", f"{name}: {said}"),
        tag("rect", x=f"{x:g}", y=str(y), width=str(_WIDE), height=str(_HIGH), rx="7"),
        tag("text", short, x=centre, y=str(y + 20), class_="name", font_size="13", **_WRITTEN),
        tag("text", said, x=centre, y=str(y + 36), class_="said", font_size="11", **_WRITTEN),
        class_=f"step {stand.state}",
        fill=LIGHT[stand.state],  # of the group: what the style sheet says of that, its box inherits
        stroke=LIGHT[f"{stand.state}-line"],
    )


def _curve(spots: tuple[Spot, ...]) -> str:
    points = [(_corner(spot)[0] + _WIDE / 2, _corner(spot)[1]) for spot in spots]
    x, y = points[0][0], points[0][1] + _HIGH
    parts = [f"M{x:g} {y}"]
    for index, (to_x, to_y) in enumerate(points[1:], 1):
        half = (y + to_y) / 2
        parts.append(f"C{x:g} {half:g} {to_x:g} {half:g} {to_x:g} {to_y}")
        x, y = to_x, to_y
        if index < len(points) - 1:  # it passes this row
            y += _HIGH
            parts.append(f"L{x:g} {y}")
    return " ".join(parts)
