"""A second saga of the name of another one."""

import cli_shop


class OtherOrderSaga(cli_shop.OrderSaga):
    """It has the name of its base."""
