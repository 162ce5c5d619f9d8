"""The order saga as it is after a change: another step, and a value of its own."""

from __future__ import annotations

from typing import Any

import cli_shop

from sagaz_core import SagaContext, action


class DriftedOrderSaga(cli_shop.OrderSaga):
    """It has one more step."""

    @action("tell")
    async def tell(self, ctx: SagaContext) -> dict[str, Any]:
        return {"told": True}
