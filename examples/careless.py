"""An order that looks right, and is not: a lost reply of the payment service leaves a charge that nobody refunds."""

from __future__ import annotations

from typing import Any

from examples.orders import Payments, Stock
from sagaz_core import Saga, SagaContext, action, compensate


class CarelessOrderSaga(Saga):
    """Reserve and charge, as most people write it first."""

    saga_name = "careless-order"

    def __init__(self) -> None:
        super().__init__()
        self.stock = Stock()
        self.payments = Payments()

    @action("reserve_inventory", in_doubt="compensate")
    async def reserve(self, ctx: SagaContext) -> dict[str, Any]:
        """Reserve the goods."""
        return {"reservation": await self.stock.do(ctx["order_id"], ctx["quantity"])}

    @compensate("reserve_inventory")
    async def release(self, ctx: SagaContext) -> None:
        """Release the goods."""
        await self.stock.undo(ctx["order_id"])

    @action("charge_payment")  # in_doubt="compensate" is missing
    async def charge(self, ctx: SagaContext) -> dict[str, Any]:
        """Charge the card."""
        return {"charge": await self.payments.do(ctx["order_id"], ctx["price"])}

    @compensate("charge_payment")
    async def refund(self, ctx: SagaContext) -> None:
        """Give the money back."""
        await self.payments.undo(ctx["order_id"])
