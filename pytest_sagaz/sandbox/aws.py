"""S3, DynamoDB and SQS in memory (moto), whose state is seen and put back, and whose time is that of the sagas."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from sagaz_core.errors import MissingExtraError

try:
    import boto3
    from botocore.config import Config
    from moto import mock_aws

    from pytest_sagaz.sandbox._dynamodb import DynamoDBState
    from pytest_sagaz.sandbox._s3 import S3State
    from pytest_sagaz.sandbox._sqs import SQSState, sqs_time
except ImportError as error:
    raise MissingExtraError("saga_aws needs the sandbox extra: pip install 'pytest-sagaz[sandbox]'") from error

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sagaz_core.clock import Clock

REGION = "us-east-1"

_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_SESSION_TOKEN": "testing",
    "AWS_DEFAULT_REGION": REGION,
    "AWS_REGION": REGION,
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_MAX_ATTEMPTS": "1",  # a retry would sleep, and really
}


class SagaAws:
    """Clients of the mocked AWS; those of any other `boto3` call in the test reach the same."""

    def __init__(self) -> None:
        self.session = boto3.Session(region_name=REGION)
        self._clients: dict[tuple[str, str], Any] = {}

    def client(self, service: str, region_name: str = REGION) -> Any:
        """Return the boto3 client of a service, the same one each time."""
        key = service, region_name
        if key not in self._clients:
            self._clients[key] = self.session.client(service, region_name=region_name, config=_without_retries())
        return self._clients[key]

    def resource(self, service: str, region_name: str = REGION) -> Any:
        """Return the boto3 resource of a service."""
        return self.session.resource(service, region_name=region_name, config=_without_retries())


class AwsState:
    """What is in the mocked AWS, as plain data; a `World` asks a fake for `snapshot()` and `restore(state)`.

    `{"s3": {"bucket/key": body}, "dynamodb": {"table/key": item}, "sqs": {"queue/body": 1}}`, without what a
    run of its own gets new: ETags, message ids, times. A service that has nothing is not there.
    """

    def __init__(self) -> None:
        self._services: dict[str, S3State | DynamoDBState | SQSState] = {
            "s3": S3State(),
            "dynamodb": DynamoDBState(REGION),
            "sqs": SQSState(REGION),
        }

    def snapshot(self) -> dict[str, dict[str, Any]]:
        """Return what is there."""
        found = {name: service.read() for name, service in self._services.items()}
        return {name: state for name, state in found.items() if state}

    def restore(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Put back what `snapshot` returned, touching only what differs."""
        for name, service in self._services.items():
            service.write(state.get(name, {}))


@contextlib.contextmanager
def mocked_aws(clock: Clock) -> Iterator[None]:
    """Mock AWS, with credentials that are none and in the time that the clock has."""
    # Settings of the machine, such as AWS_PROFILE or AWS_ENDPOINT_URL, would lead elsewhere.
    outer = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    with patch.dict(os.environ, {**outer, **_ENVIRONMENT}, clear=True), mock_aws(), sqs_time(clock):
        yield


def _without_retries() -> Config:
    return Config(retries={"total_max_attempts": 1})
