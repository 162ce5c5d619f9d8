"""For all tests. This is loaded by `pytest --sagaz-replay` in this folder too, where the test extra may be missing."""

from __future__ import annotations

import contextlib
import os

import pytest

pytest_plugins = ["pytester"]
os.environ["PYTEST_ADDOPTS"] = "-p no:valkey"  # so tests start others: not as we were, and without a slow plugin
pytest.register_assert_rewrite("sagaz_core.storage.contract")  # here: anything else may import it

with contextlib.suppress(ImportError):
    # A test that runs pytest in this process drops what was imported meanwhile, and this one must not come twice:
    # from 0.31 on it ends the process (https://github.com/MagicStack/asyncpg/issues/1292).
    import asyncpg  # noqa: F401 - that it is imported is all that is wanted

try:
    from hypothesis import HealthCheck, settings
except ImportError:
    pass
else:
    # How fast examples are made says nothing on a busy machine.
    settings.register_profile("sagaz", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("sagaz")
