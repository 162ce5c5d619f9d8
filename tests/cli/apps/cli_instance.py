"""A saga that is an instance, not a class."""

import cli_shop

an_order = cli_shop.OrderSaga()
