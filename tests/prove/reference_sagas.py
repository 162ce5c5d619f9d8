"""Sagas that are sound whatever fails, each with its context and a world of plain dicts; mutants are made of them.

What makes them sound: an effect is kept under a key of the order, so that doing or undoing it again changes nothing; a
compensation takes back precisely what is there, or nothing; and what was undone stays closed, so that a request that
comes late is refused. What makes them worth mutating: each step needs what the steps before it put into the context,
forward and back, and changes two places.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from sagaz_core import Saga, StepRejected, World, action, compensate
from sagaz_core.saga.step import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Desk = dict[str, Any]
    Reference = tuple[Callable[[], Saga[Any]], dict[str, Any], World]

STOCK = 10


def linear(n: int = 5) -> Reference:
    """A chain of `n` steps. The first one also rewrites the customer, whom the others act for."""
    return _built("linear", {f"s{i}": [f"s{i - 1}"] if i else [] for i in range(n)}, rewrites="s0")


def dag() -> Reference:
    """A diamond, with an edge that the others imply."""
    steps: dict[str, list[str]] = {
        "reserve": [],
        "charge": ["reserve"],
        "pack": ["reserve"],
        "ship": ["reserve", "charge", "pack"],
    }
    return _built("dag", steps, rewrites="reserve")


def chains(count: int = 4, length: int = 3) -> Reference:
    """Chains side by side, that nothing joins."""
    steps = {f"c{i}s{j}": [f"c{i}s{j - 1}"] if j else [] for i in range(count) for j in range(length)}
    return _built("chains", steps)


def with_pivot() -> Reference:
    """Two steps that are undone, a pivot, and two that go forward only."""
    steps = {f"s{i}": [f"s{i - 1}"] if i else [] for i in range(5)}
    return _built("with-pivot", steps, rewrites="s0", pivot="s2")


def sync() -> Reference:
    """A chain of sync functions. It has no timeouts, which would bring threads."""
    return _built("sync", {f"s{i}": [f"s{i - 1}"] if i else [] for i in range(3)}, rewrites="s0", is_async=False)


class Order(BaseModel):
    """The context of the typed one."""

    order: str
    customer: str
    reservation: str | None = None
    charge: str | None = None


def typed() -> Reference:
    """Two steps over a pydantic model."""
    desk, world = _outside(["reserve", "charge"])

    class TypedSaga(Saga[Order]):
        saga_name = "typed"

        @action("reserve", timeout=5, retries=2, in_doubt="compensate")
        async def reserve(self, ctx: Order) -> dict[str, str]:
            do(desk, "reserve", f"{ctx.order}:reserve", ctx.customer)
            return {"reservation": f"r-{ctx.order}", "customer": ctx.customer.upper()}

        @compensate("reserve", timeout=5)
        async def release(self, ctx: Order) -> None:
            undo(desk, "reserve", f"{ctx.order}:reserve")

        @action("charge", timeout=5, retries=2, in_doubt="compensate")
        async def charge(self, ctx: Order) -> dict[str, str]:
            do(desk, "charge", f"{ctx.customer}:{ctx.reservation}", ctx.customer)
            return {"charge": f"c-{ctx.order}"}

        @compensate("charge", timeout=5)
        async def refund(self, ctx: Order) -> None:
            undo(desk, "charge", f"{ctx.customer}:{ctx.reservation}")

    return TypedSaga, {"order": "o1", "customer": "ann"}, world


CORRECT: dict[str, Callable[[], Reference]] = {
    "linear": linear,
    "dag": dag,
    "chains": chains,
    "with_pivot": with_pivot,
    "sync": sync,
    "typed": typed,
}


def do(desk: Desk, step: str, key: str, whose: str) -> None:
    """Have the effect once for this key, unless it was undone before."""
    if key in desk["closed"]:
        raise StepRejected(f"{key} was undone before")
    if key not in desk["held"]:
        desk["held"][key] = whose
        desk["stock"][step] -= 1


def undo(desk: Desk, step: str, key: str) -> None:
    """Take the effect back if it is there, and let none come from now on."""
    if key not in desk["closed"]:
        desk["closed"].append(key)
    if desk["held"].pop(key, None) is not None:
        desk["stock"][step] += 1


def _outside(steps: Iterable[str]) -> tuple[Desk, World]:
    world = World()
    desk: Desk = {"stock": dict.fromkeys(steps, STOCK), "held": {}, "closed": []}
    world.fake(desk, "desk", append_only=["closed"])
    return desk, world


def _built(
    name: str, steps: dict[str, list[str]], *, rewrites: str = "", pivot: str = "", is_async: bool = True
) -> Reference:
    desk, world = _outside(steps)
    saga: Saga[Any] = Saga(name)
    passed = False
    for place, (step, before) in enumerate(steps.items()):
        forward, back = _functions(desk, step, before, rewrites=step == rewrites)
        passed = passed or step == pivot
        saga.add_step(
            step,
            _awaited(forward) if is_async else forward,
            None if passed and step != pivot else _awaited(back) if is_async else back,
            depends_on=before,
            timeout=5 if is_async else None,
            retries=2,
            backoff=Backoff(first=0.1 + place / 100),  # no two wait for the same moment, so their order is certain
            compensation_timeout=5 if is_async else None,
            compensation_retries=2,
            pivot=step == pivot,
            in_doubt="ignore" if passed and step != pivot else "compensate",
        )
    return (lambda: saga), {"order": "o1", "customer": "ann"}, world


def _functions(
    desk: Desk, step: str, before: list[str], *, rewrites: bool
) -> tuple[Callable[[Any], dict[str, str]], Callable[[Any], None]]:
    def key(ctx: Any) -> str:
        tickets = ",".join(ctx[f"{other}_ticket"] for other in before)
        return f"{ctx['order']}:{step}" if rewrites else f"{ctx['customer']}:{ctx['order']}:{step}({tickets})"

    def forward(ctx: Any) -> dict[str, str]:
        do(desk, step, key(ctx), ctx["customer"])
        written = {f"{step}_ticket": f"{step}-{ctx['order']}"}
        return {**written, "customer": ctx["customer"].upper()} if rewrites else written

    def back(ctx: Any) -> None:
        undo(desk, step, key(ctx))

    return forward, back


def _awaited(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    async def awaited(ctx: Any) -> Any:
        return function(ctx)

    return awaited
