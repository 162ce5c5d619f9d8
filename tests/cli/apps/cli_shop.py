"""Sagas for the tests of the command line. Their effects are lines in effects.log in the current folder."""

from __future__ import annotations

import abc
import asyncio
import enum
import sys
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from sagaz_core import Saga, SagaContext, StepRejected, action, compensate


def effect(text: str) -> None:
    """Have an effect that outlives the process."""
    with Path("effects.log").open("a") as file:
        file.write(text + "\n")


@dataclass
class Money:
    """An amount."""

    amount: Decimal
    iban: str = "NO93"


class Size(enum.Enum):
    """The size of a parcel."""

    SMALL = 1


class OrderSaga(Saga):
    """Reserve, charge, ship; `fail` in the context names a step that refuses."""

    saga_name = "shop-order"

    async def _do(self, ctx: SagaContext, step: str) -> None:
        if ctx.get("fail") == step:
            raise StepRejected(f"{step} refused")
        effect(f"do {step}")

    @action("reserve", timeout=5.0, retries=1)
    async def reserve(self, ctx: SagaContext) -> dict[str, Any]:
        await self._do(ctx, "reserve")
        return {"reservation": "R1"}

    @compensate("reserve")
    async def release(self, ctx: SagaContext, result: Any) -> None:
        effect(f"undo reserve {result['reservation']}")

    @action("charge", timeout=5.0, in_doubt="compensate")
    async def charge(self, ctx: SagaContext) -> dict[str, Any]:
        await self._do(ctx, "charge")
        return {"charged": Money(Decimal("12.50")), "size": Size.SMALL, "card_token": "tok-123"}

    @compensate("charge", retries=0)
    async def refund(self, ctx: SagaContext) -> None:
        if ctx.get("fail") == "refund":
            raise OSError("the bank is closed")
        effect("undo charge")

    @action("ship")
    async def ship(self, ctx: SagaContext) -> dict[str, Any]:
        await self._do(ctx, "ship")
        return {"parcel": f"{ctx.get('quantity', 1)} pieces"}


class SlowSaga(Saga):
    """Its second step never ends by itself."""

    saga_name = "slow"

    @action("reserve")
    async def reserve(self, ctx: SagaContext) -> dict[str, Any]:
        effect("do reserve")
        return {"reservation": "R1"}

    @compensate("reserve")
    async def release(self, ctx: SagaContext) -> None:
        effect("undo reserve")

    @action("charge")
    async def charge(self, ctx: SagaContext) -> dict[str, Any]:
        if not ctx.get("quick"):
            await asyncio.Event().wait()
        effect("do charge")
        return {"charged": 1}

    @compensate("charge")
    async def refund(self, ctx: SagaContext) -> None:
        effect("undo charge")


class HastySaga(SlowSaga):
    """It has no patience."""

    saga_name = "hasty"

    @action("charge", timeout=0.01, in_doubt="compensate")
    async def charge(self, ctx: SagaContext) -> dict[str, Any]:
        effect("do charge")
        return {"charged": 1}


class StubbornSaga(SlowSaga):
    """Its compensation never ends either."""

    saga_name = "stubborn"

    @compensate("reserve")
    async def release(self, ctx: SagaContext) -> None:
        await asyncio.Event().wait()


class ExitSaga(Saga):
    """Its second step ends the process if `exit` is in the context, and fails over two lines if `fail` is."""

    saga_name = "exit"

    @action("first")
    async def first(self, ctx: SagaContext) -> None:
        effect("do first")

    @compensate("first")
    async def undo_first(self, ctx: SagaContext) -> None:
        effect("undo first")

    @action("second")
    async def second(self, ctx: SagaContext) -> None:
        if "exit" in ctx:
            sys.exit(ctx["exit"])
        if "fail" in ctx:
            raise RuntimeError("one line\nand another")


class YearSaga(Saga):
    """It waits for a year."""

    saga_name = "year"

    @action("wait")
    async def wait(self, ctx: SagaContext) -> None:
        await asyncio.sleep(365 * 86400)


class ConflictSaga(Saga):
    """Two steps side by side write one key."""

    saga_name = "conflict"

    @action("left", depends_on=[])
    async def left(self, ctx: SagaContext) -> dict[str, Any]:
        return {"key": 1}

    @compensate("left")
    async def unleft(self, ctx: SagaContext) -> None:
        effect("undo left")

    @action("right", depends_on=[])
    async def right(self, ctx: SagaContext) -> dict[str, Any]:
        return {"key": 2}


class CycleSaga(Saga):
    """Its steps wait for each other."""

    @action("one", depends_on=["two"])
    async def one(self, ctx: SagaContext) -> None: ...

    @action("two", depends_on=["one"])
    async def two(self, ctx: SagaContext) -> None: ...


class MissingSaga(Saga):
    """It waits for a step that is not."""

    @action("one", depends_on=["tow"])
    async def one(self, ctx: SagaContext) -> None: ...

    @action("two", depends_on=[])
    async def two(self, ctx: SagaContext) -> None: ...


class EmptySaga(Saga):
    """It has no steps."""


class BareSaga(OrderSaga):
    """Does not begin as a saga."""

    saga_name = "bare"

    def __init__(self) -> None:
        self.stock = 1


class AbstractSaga(Saga, abc.ABC):
    """It cannot be made."""

    @abc.abstractmethod
    def price(self) -> int: ...

    @action("one")
    async def one(self, ctx: SagaContext) -> None: ...


class PickySaga(Saga):
    """It needs an argument."""

    def __init__(self, bank: object) -> None:
        super().__init__()

    @action("one")
    async def one(self, ctx: SagaContext) -> None: ...


class BrokenSaga(Saga):
    """Making it fails."""

    def __init__(self) -> None:
        raise RuntimeError("no bank\nat all")

    @action("one")
    async def one(self, ctx: SagaContext) -> None: ...


class Order(BaseModel):
    """A typed context."""

    quantity: int
    note: str = ""


class TypedSaga(Saga[Order]):
    """Its context is a model."""

    saga_name = "typed"

    @action("one")
    async def one(self, ctx: Order) -> dict[str, Any]:
        return {"note": "n" * ctx.quantity}


class SocketSaga(Saga):
    """Its first step returns what cannot be stored."""

    saga_name = "socket"

    @action("one")
    async def one(self, ctx: SagaContext) -> Any:
        effect("do one")
        return {"handle": object()}

    @compensate("one")
    async def unone(self, ctx: SagaContext) -> None:
        effect("undo one")


NOT_A_SAGA = 7


class BuildSaga(Saga):
    saga_name = "build"

    async def build(self) -> None:
        raise KeyError("config")


class CarelessSaga(Saga):
    saga_name = "careless"

    def __init__(self) -> None:
        super().__init__()
        len(None)  # type: ignore[arg-type] # the mistake that is to be told of
