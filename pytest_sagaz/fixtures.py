"""The fixtures. Each imports what it needs when a test asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_sagaz.cases import Case
    from pytest_sagaz.goldens import GoldenAssertion
    from pytest_sagaz.runner import SagaClock
    from pytest_sagaz.sandbox.aws import SagaAws
    from pytest_sagaz.sandbox.redis import SagaRedis
    from pytest_sagaz.session import Sagaz
    from sagaz_core.prove.world import World
    from sagaz_core.recording.base import Recording
    from sagaz_core.storage.base import SnapshotStorage


@pytest.fixture
def sagaz(request: pytest.FixtureRequest) -> Sagaz:
    """Runs sagas: `run(saga, context)`, `arun`, `replay(recording, step)`, `explore(saga, context)`."""
    from pytest_sagaz.session import Sagaz

    return Sagaz(request)


@pytest.fixture
def recording(request: pytest.FixtureRequest) -> Recording:
    """The recorded saga of the test: of its `replay_from` marker, or of `--sagaz-replay`."""
    from pytest_sagaz.given import given_recording

    return given_recording(request)


@pytest.fixture
def saga_case(request: pytest.FixtureRequest, saga_factory: Any, saga_world: World) -> Case:
    """The saga, plan and start that `saga_matrix`, `replay_from` and `force_failure` say, ready to `run()`."""
    from pytest_sagaz.given import given_case

    return given_case(request, saga_factory, saga_world)


@pytest.fixture
def saga_factory() -> Any:
    """What sagas are made by. Override it to hand in fakes: with a function that makes the saga (it may take the saga's
    name), a saga, or a mapping from names to these.
    """
    return None


@pytest.fixture
def saga_world() -> World:
    """The outside that sagas act on. Override it, or register probes and fakes in it, to have it looked at too."""
    from sagaz_core.prove.world import World

    return World()


@pytest.fixture
def saga_store(request: pytest.FixtureRequest) -> Iterator[SnapshotStorage]:
    """The store of recorded sagas that `--sagaz-store` and the settings name."""
    from pytest_sagaz.given import closing_store

    yield from closing_store(request)


@pytest.fixture
def saga_clock(request: pytest.FixtureRequest) -> SagaClock:
    """The virtual clock of the sagas that the test runs: `now()`, `advance(seconds)`, `start_at(moment)`."""
    from pytest_sagaz.runner import SagaClock, runner_of

    return SagaClock(runner_of(request.node))


@pytest.fixture
def saga_golden(request: pytest.FixtureRequest) -> GoldenAssertion:
    """Compares an outcome with a text file next to the test: `assert outcome == saga_golden`."""
    from pytest_sagaz.goldens import golden_fixture

    return golden_fixture(request)


@pytest.fixture
def saga_redis(request: pytest.FixtureRequest, saga_world: World) -> Iterator[SagaRedis]:
    """An asynchronous client of a Redis of the test's own, which is `redis` in its `saga_world`; the synchronous one is
    `saga_redis.sync_client`.
    """
    from pytest_sagaz.runner import runner_of
    from pytest_sagaz.sandbox.redis import RedisState, SagaRedis, redis_time

    with redis_time(runner_of(request.node).now):
        client = SagaRedis()
        saga_world.fake(RedisState(client.server), "redis")
        yield client


@pytest.fixture
def saga_aws(request: pytest.FixtureRequest, saga_world: World) -> Iterator[SagaAws]:
    """S3, DynamoDB and SQS of the test's own, which are `aws` in its `saga_world`: `saga_aws.client("s3")`, and any
    client of boto3.
    """
    from pytest_sagaz.runner import runner_of
    from pytest_sagaz.sandbox.aws import AwsState, SagaAws, mocked_aws

    with mocked_aws(runner_of(request.node).now):
        saga_world.fake(AwsState(), "aws")
        yield SagaAws()
