"""The fixture `shop`."""

from __future__ import annotations

import pytest
from shops import Shop


@pytest.fixture
def shop(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """Give a shop in which nothing was recorded yet."""
    for name in ("PYTEST_XDIST_WORKER", "SAGAZ_STORE", "SAGAZ_KINDS", "SAGAZ_DEPTH", "SAGAZ_SAGAS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    return Shop(pytester, monkeypatch)
