"""Fixtures for the tests of stores."""

import asyncio
import uuid
from types import SimpleNamespace

import pytest

from sagaz_core.hookspecs import hookimpl
from sagaz_core.plugins import plugin_manager
from tests import servers


@pytest.fixture
def plugins():
    """The plugin manager, emptied afterwards of what the test put in."""
    manager = plugin_manager()
    before = manager.get_plugins()
    yield SimpleNamespace(manager=manager, hookimpl=hookimpl)
    for plugin in manager.get_plugins() - before:
        manager.unregister(plugin)


@pytest.fixture(scope="session")
def postgres_server():
    """A PostgreSQL of our own, which may be stopped and started."""
    with servers.own_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_database():
    """The URL of a database for this process: in the server that `SAGAZ_TEST_PG_URL` names, or in one of our own."""
    with servers.postgres_database() as url:
        yield url


@pytest.fixture
def postgres_url(postgres_database):
    """The URL of an empty store."""
    schema = f"test_{uuid.uuid4().hex}"
    separator = "&" if "?" in postgres_database else "?"
    yield f"{postgres_database}{separator}schema={schema}"
    servers.execute(postgres_database, f'DROP SCHEMA IF EXISTS "{schema}" CASCADE')


@pytest.fixture(scope="session")
def valkey_server():
    """A Valkey of our own, which may be stopped and started."""
    with servers.own_valkey() as server:
        yield server


@pytest.fixture(scope="session")
def redis_server_url():
    """The URL of the server that `SAGAZ_TEST_REDIS_URL` names, or of one of our own."""
    with servers.redis_server() as url:
        yield url


@pytest.fixture
def redis_url(redis_server_url):
    """The URL of an empty store."""
    prefix = f"test-{uuid.uuid4().hex}"
    separator = "&" if "?" in redis_server_url else "?"
    yield f"{redis_server_url}{separator}prefix={prefix}"
    servers.delete_keys(redis_server_url, prefix)


@pytest.fixture(scope="session")
def s3():
    """An S3 server of this worker's own."""
    from s3_server import running  # slow to import, and not needed by most

    yield running()
    running().stop()


@pytest.fixture
def do():
    """Do a work of a store on one event loop, and return what it gives."""
    with asyncio.Runner() as runner:

        async def main(work):
            return await work

        yield lambda work: runner.run(main(work))


@pytest.fixture
def bucket(s3):
    """The name of an empty bucket."""
    s3.forget_faults()
    return s3.bucket()
