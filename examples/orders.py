"""An order that is sound: whatever fails, nothing is left behind.

Three things make it so. Every service knows an order by its id, so doing or undoing a thing twice is the same as once.
Each step says `in_doubt="compensate"`: when a reply is lost, the step is undone although it seemed to fail. And a
service that has undone an order refuses it from then on, so a request that was delayed on its way changes nothing.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from sagaz_core import Saga, SagaContext, StepRejected, World, action, compensate


class Service:
    """Stands for a service of the shop: what it did, by order id, and which orders it will not hear of again."""

    def __init__(self) -> None:
        self.done: dict[str, Any] = {}
        self.closed: set[str] = set()

    async def do(self, order_id: str, what: Any) -> str:
        """Do it once for this order, however often it is asked, and return its reference."""
        if order_id in self.closed:
            raise StepRejected(f"order {order_id} was undone here")
        self.done.setdefault(order_id, what)
        return f"{type(self).__name__.lower()}-{order_id}"

    async def undo(self, order_id: str) -> None:
        """Undo what was done for this order, if anything was."""
        self.closed.add(order_id)
        self.done.pop(order_id, None)


class Stock(Service):
    """Reserves goods."""


class Payments(Service):
    """Charges cards."""


class Shipping(Service):
    """Sends parcels."""


class OrderSaga(Saga):
    """Reserve the goods, charge the card, ship, and tell the customer."""

    saga_name = "order"
    version = "1.0"

    def __init__(self, stock: Stock | None = None, payments: Payments | None = None, shipping: Shipping | None = None):
        super().__init__()
        self.stock = stock or Stock()
        self.payments = payments or Payments()
        self.shipping = shipping or Shipping()

    @action("reserve_inventory", timeout=5.0, retries=2, in_doubt="compensate")
    async def reserve(self, ctx: SagaContext) -> dict[str, Any]:
        """Reserve the goods."""
        return {"reservation": await self.stock.do(ctx["order_id"], (ctx["sku"], ctx["quantity"]))}

    @compensate("reserve_inventory", timeout=5.0)
    async def release(self, ctx: SagaContext) -> None:
        """Release the goods."""
        await self.stock.undo(ctx["order_id"])

    @action("charge_payment", timeout=10.0, retries=2, in_doubt="compensate")
    async def charge(self, ctx: SagaContext) -> dict[str, Any]:
        """Charge the card."""
        total = Decimal(str(ctx["price"])) * ctx["quantity"]
        return {"charge": await self.payments.do(ctx["order_id"], total), "total": total}

    @compensate("charge_payment", timeout=10.0)
    async def refund(self, ctx: SagaContext) -> None:
        """Give the money back."""
        await self.payments.undo(ctx["order_id"])

    @action("ship_order", timeout=30.0, in_doubt="compensate")
    async def ship(self, ctx: SagaContext) -> dict[str, Any]:
        """Hand the parcel over."""
        return {"parcel": await self.shipping.do(ctx["order_id"], ctx["address"])}

    @compensate("ship_order", timeout=30.0)
    async def recall(self, ctx: SagaContext) -> None:
        """Call the parcel back."""
        await self.shipping.undo(ctx["order_id"])

    @action("confirm_order")
    async def confirm(self, ctx: SagaContext) -> dict[str, Any]:
        """Say what the customer will be told; there is nothing to undo."""
        return {"message": f"Your order {ctx['order_id']} is on its way."}


def world(saga: OrderSaga) -> World:
    """Return what the saga acts on. Which orders are closed only grows; that is no trace of one."""
    seen = World()
    for service in (saga.stock, saga.payments, saga.shipping):
        seen.fake(service, append_only=["closed"])
    return seen
