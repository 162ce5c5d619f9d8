"""Fixtures for the tests of stores."""

from types import SimpleNamespace

import pytest

from sagaz_core.hookspecs import hookimpl
from sagaz_core.plugins import plugin_manager

pytest.register_assert_rewrite("sagaz_core.storage.contract")


@pytest.fixture
def plugins():
    """The plugin manager, emptied afterwards of what the test put in."""
    manager = plugin_manager()
    before = manager.get_plugins()
    yield SimpleNamespace(manager=manager, hookimpl=hookimpl)
    for plugin in manager.get_plugins() - before:
        manager.unregister(plugin)


@pytest.fixture(scope="session")
def s3():
    """An S3 server of this worker's own."""
    from s3_server import running  # slow to import, and not needed by most

    yield running()
    running().stop()
