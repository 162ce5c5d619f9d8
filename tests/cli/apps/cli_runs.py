"""A saga whose module runs an event loop when it is imported, and one of its own types."""

import asyncio
from dataclasses import dataclass

from sagaz_core import Saga, SagaContext


@dataclass
class Kept:
    """What the first step returns."""

    number: int


async def make() -> Saga:
    """Make the saga, as if that needed a loop."""
    await asyncio.sleep(0)
    return Saga("runs").add_step("one", one).add_step("two", two)


def one(ctx: SagaContext) -> dict[str, Kept]:
    """Return a type of the module."""
    return {"kept": Kept(1)}


def two(ctx: SagaContext) -> None:
    """Read it."""
    assert ctx["kept"] == Kept(1)


saga = asyncio.run(make())
