"""The fixture `saga_aws`: what a saga leaves in S3, DynamoDB or SQS is an orphan with its key."""

from __future__ import annotations

import asyncio
import os
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.exceptions import ClientError

from sagaz_core import Saga, action, compensate
from sagaz_core.storage.codec import decode, encode

if TYPE_CHECKING:
    from shops import Shop

    from pytest_sagaz.sandbox.aws import SagaAws
    from pytest_sagaz.session import Sagaz
    from sagaz_core import World


@pytest.fixture
def aws(saga_aws: SagaAws) -> SagaAws:
    saga_aws.client("s3").create_bucket(Bucket="invoices")
    saga_aws.client("sqs").create_queue(QueueName="mail")
    saga_aws.client("dynamodb").create_table(
        TableName="orders",
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )
    return saga_aws


class Invoice(Saga):
    """Stores an order and its invoice, and tells of it last."""

    saga_name = "invoice"

    def __init__(self, aws: SagaAws) -> None:
        super().__init__()
        self.s3, self.sqs = aws.client("s3"), aws.client("sqs")
        self.orders = aws.resource("dynamodb").Table("orders")

    @action("store", in_doubt="compensate")
    async def store(self, ctx: Any) -> None:
        self.s3.put_object(Bucket="invoices", Key=f"{ctx['order']}.txt", Body=b"12.50")

    @compensate("store")
    async def remove(self, ctx: Any) -> None:
        self.s3.delete_object(Bucket="invoices", Key=f"{ctx['order']}.txt")

    @action("write", in_doubt="compensate")
    async def write(self, ctx: Any) -> None:
        self.orders.put_item(Item={"pk": ctx["order"], "state": "open"})

    @compensate("write")
    async def erase(self, ctx: Any) -> None:
        self.orders.delete_item(Key={"pk": ctx["order"]})

    @action("tell", pivot=True)
    async def tell(self, ctx: Any) -> None:
        url = self.sqs.get_queue_url(QueueName="mail")["QueueUrl"]
        self.sqs.send_message(QueueUrl=url, MessageBody=f"order {ctx['order']}")


class Careless(Invoice):
    """Undoes nothing whose reply was lost, and tells before it is done."""

    @action("store")
    async def store(self, ctx: Any) -> None:
        await super().store(ctx)

    @action("write")
    async def write(self, ctx: Any) -> None:
        await super().write(ctx)

    @action("tell")
    async def tell(self, ctx: Any) -> None:
        await super().tell(ctx)


def changes(sagaz: Sagaz, saga: Saga[Any], plan: str) -> list[str]:
    outcome = sagaz.run(saga, {"order": "W1"}, plan=plan)
    with pytest.raises(AssertionError):
        outcome.assert_sound()
    return [str(change) for change in outcome.world_changes]


def test_what_was_left_is_shown_with_its_key(sagaz: Sagaz, aws: SagaAws, saga_world: World) -> None:
    empty = saga_world.save()
    assert changes(sagaz, Careless(aws), "store@after") == ["aws.s3.invoices/W1.txt: (nothing) -> '12.50'"]
    saga_world.restore(empty)
    assert changes(sagaz, Careless(aws), "write@after") == [
        "aws.dynamodb.orders/W1: (nothing) -> {'pk': 'W1', 'state': 'open'}"
    ]
    saga_world.restore(empty)
    assert changes(sagaz, Careless(aws), "tell@after") == ["aws.sqs.mail/order W1: (nothing) -> 1"]


def test_a_sound_saga_is_sound_under_every_plan_before_its_pivot(sagaz: Sagaz, aws: SagaAws, saga_world: World) -> None:
    aws.client("s3").put_object(Bucket="invoices", Key="W0.txt", Body=b"1")
    before = saga_world.save()
    for step in ("store", "write"):
        for kind in ("before", "after", "cancel", "crash", "repeat"):
            sagaz.run(Invoice(aws), {"order": "W1"}, plan=f"{step}@{kind}").assert_sound()
            saga_world.restore(before)
    sagaz.run(Invoice(aws), {"order": "W1"}, plan="tell@before").assert_sound()
    assert saga_world.save() == before


def test_clients_of_the_saga_s_own_reach_the_same(sagaz: Sagaz, aws: SagaAws) -> None:
    class Own(Saga):
        @action("store")
        async def store(self, ctx: Any) -> None:
            boto3.client("s3").put_object(Bucket="invoices", Key="own", Body=b"x")

    sagaz.run(Own(), {}).assert_completed()
    assert aws.client("s3").get_object(Bucket="invoices", Key="own")["Body"].read() == b"x"


def test_what_the_machine_is_set_to_is_out_of_reach(monkeypatch: pytest.MonkeyPatch, request: Any) -> None:
    monkeypatch.setenv("AWS_PROFILE", "production")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "real")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    aws = request.getfixturevalue("saga_aws")
    boto3.client("s3").create_bucket(Bucket="mine")
    assert aws.client("s3").list_buckets()["Buckets"][0]["Name"] == "mine"
    assert os.environ["AWS_ACCESS_KEY_ID"] != "real"
    assert "AWS_PROFILE" not in os.environ


def test_an_error_is_raised_at_once(aws: SagaAws) -> None:
    with pytest.raises(ClientError, match="NoSuchKey") as raised:
        aws.client("s3").get_object(Bucket="invoices", Key="none")
    assert raised.value.response["ResponseMetadata"]["RetryAttempts"] == 0


AWS_SHOP = """
from sagaz_core import Saga, action, compensate


class Invoice(Saga):
    saga_name = "invoice"

    def __init__(self, s3=None):
        super().__init__()
        self.s3 = s3

    @action("store", timeout=5)
    def store(self, ctx):
        if self.s3 is not None:
            self.s3.put_object(Bucket="invoices", Key="W1", Body=b"x")

    @compensate("store")
    def remove(self, ctx):
        self.s3.delete_object(Bucket="invoices", Key="W1")
"""


def test_a_replay_at_the_recorded_time_shows_what_was_left(shop: Shop) -> None:
    shop.write("invoice", AWS_SHOP)
    shop.record("invoice:Invoice")
    shop.write(
        "conftest",
        """
        import pytest
        from invoice import Invoice

        @pytest.fixture
        def saga_factory(saga_aws):
            saga_aws.client("s3").create_bucket(Bucket="invoices")
            return lambda: Invoice(saga_aws.client("s3"))
        """,
    )
    result = shop.replay()
    result.assert_outcomes(passed=4, failed=1)
    result.stdout.fnmatch_lines(["*store@after*", "world *aws.s3.invoices/W1: (nothing) -> 'x'", "ORPHAN *"])


def put_back(world: World, change: Any) -> dict[str, Any]:
    """Take the state, change it, put each of the two back, and return the first one."""
    before: dict[str, Any] = world.save()
    assert decode(encode(before)) == before
    change()
    after = world.save()
    assert after != before
    world.restore(decode(encode(before)))
    assert world.save() == before
    world.restore(decode(encode(after)))
    assert world.save() == after
    world.restore(before)
    return before


def test_objects_are_put_back_with_metadata_and_tags(aws: SagaAws, saga_world: World) -> None:
    s3 = aws.client("s3")
    s3.put_object(Bucket="invoices", Key="a/b", Body=b"\xff", Metadata={"by": "Ann"}, Tagging="paid=no")
    s3.put_object(Bucket="invoices", Key="c", Body=b"7", ContentType="text/plain")

    def change() -> None:
        s3.put_object_tagging(Bucket="invoices", Key="a/b", Tagging={"TagSet": [{"Key": "paid", "Value": "yes"}]})
        s3.put_object(Bucket="invoices", Key="c", Body=b"8")
        s3.put_object(Bucket="invoices", Key="d", Body=b"9")
        s3.create_bucket(Bucket="more")

    before = put_back(saga_world, change)
    assert before["aws"]["s3"]["invoices/a/b"] == {
        "body": b"\xff",
        "metadata": {"x-amz-meta-by": "Ann"},
        "tags": {"paid": "no"},
    }
    assert s3.get_object(Bucket="invoices", Key="a/b")["Metadata"] == {"by": "Ann"}
    assert s3.get_object(Bucket="invoices", Key="c")["ContentType"] == "text/plain"
    s3.create_bucket(Bucket="more")


def test_a_deleted_bucket_is_put_back(aws: SagaAws, saga_world: World) -> None:
    s3 = aws.client("s3")
    s3.put_object(Bucket="invoices", Key="c", Body=b"7")

    def change() -> None:
        s3.delete_object(Bucket="invoices", Key="c")
        s3.delete_bucket(Bucket="invoices")

    put_back(saga_world, change)
    assert s3.get_object(Bucket="invoices", Key="c")["Body"].read() == b"7"


def test_writing_the_same_object_again_is_no_change(aws: SagaAws, saga_world: World) -> None:
    s3 = aws.client("s3")
    s3.put_object(Bucket="invoices", Key="c", Body=b"7")
    before = saga_world.save()
    s3.put_object(Bucket="invoices", Key="c", Body=b"7")
    assert saga_world.save() == before


ITEM = {
    "pk": "1/2",
    "count": 3,
    "price": Decimal("9.50"),
    "raw": b"\xff",
    "flag": True,
    "none": None,
    "names": {"a", "b"},
    "numbers": {1, 2},
    "blobs": {b"x"},
    "list": [1, {"deep": b"y"}],
    "map": {"x": {"y": "z"}},
}


def test_items_of_every_type_are_put_back(aws: SagaAws, saga_world: World) -> None:
    orders = aws.resource("dynamodb").Table("orders")
    orders.put_item(Item=ITEM)
    found = orders.get_item(Key={"pk": "1/2"})["Item"]

    def change() -> None:
        orders.delete_item(Key={"pk": "1/2"})
        orders.put_item(Item={"pk": "2"})
        aws.client("dynamodb").delete_table(TableName="orders")

    before = put_back(saga_world, change)
    assert before["aws"]["dynamodb"]["orders/1%2F2"] == ITEM
    assert orders.get_item(Key={"pk": "1/2"})["Item"] == found
    assert orders.scan()["Count"] == 1


def test_items_with_a_sort_key_are_put_back(saga_aws: SagaAws, saga_world: World) -> None:
    dynamodb = saga_aws.client("dynamodb", "eu-west-1")
    dynamodb.create_table(
        TableName="lines",
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "no", "KeyType": "RANGE"}],
        AttributeDefinitions=[
            {"AttributeName": "pk", "AttributeType": "S"},
            {"AttributeName": "no", "AttributeType": "N"},
        ],
        BillingMode="PAY_PER_REQUEST",
    )
    dynamodb.put_item(TableName="lines", Item={"pk": {"S": "1"}, "no": {"N": "1"}})
    dynamodb.put_item(TableName="lines", Item={"pk": {"S": "1"}, "no": {"N": "2"}})

    def change() -> None:
        dynamodb.delete_item(TableName="lines", Key={"pk": {"S": "1"}, "no": {"N": "1"}})
        dynamodb.put_item(TableName="lines", Item={"pk": {"S": "1"}, "no": {"N": "2"}, "x": {"BOOL": False}})

    before = put_back(saga_world, change)
    assert set(before["aws"]["dynamodb"]) == {"eu-west-1:lines/", "eu-west-1:lines/1/1", "eu-west-1:lines/1/2"}


def test_messages_are_put_back_in_order_and_with_their_handles(aws: SagaAws, saga_world: World) -> None:
    sqs = aws.client("sqs")
    url = sqs.get_queue_url(QueueName="mail")["QueueUrl"]
    attributes = {"kind": {"DataType": "String", "StringValue": "x"}}
    sqs.send_message(QueueUrl=url, MessageBody="b")
    sqs.send_message(QueueUrl=url, MessageBody="a")
    sqs.send_message(QueueUrl=url, MessageBody="a", MessageAttributes=attributes)
    first = sqs.receive_message(QueueUrl=url)["Messages"][0]
    assert first["Body"] == "b"

    def change() -> None:
        sqs.delete_message(QueueUrl=url, ReceiptHandle=first["ReceiptHandle"])
        sqs.receive_message(QueueUrl=url)
        sqs.send_message(QueueUrl=url, MessageBody="c")

    before = put_back(saga_world, change)
    assert before["aws"]["sqs"] == {
        "mail/": "(queue)",
        "mail/a": [{"attributes": {"kind": "x"}}, {}],
        "mail/b": [{"in_flight": True}],
    }
    sqs.delete_message(QueueUrl=url, ReceiptHandle=first["ReceiptHandle"])
    received = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, MessageAttributeNames=["All"])["Messages"]
    assert ["MessageAttributes" in message for message in received] == [False, True]
    saga_world.restore(before)
    assert len(sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10)["Messages"]) == 2


def test_a_message_comes_back_in_the_time_of_the_saga_and_no_receiver_waits_really(sagaz: Sagaz, aws: SagaAws) -> None:
    sqs = aws.client("sqs")
    url = sqs.get_queue_url(QueueName="mail")["QueueUrl"]
    sqs.send_message(QueueUrl=url, MessageBody="b")

    class Receive(Saga):
        @action("receive")
        async def receive(self, ctx: Any) -> dict[str, Any]:
            counts = []
            for pause in (0, 29, 2):
                await asyncio.sleep(pause)
                found = sqs.receive_message(QueueUrl=url, WaitTimeSeconds=20, VisibilityTimeout=30)
                counts.append(len(found.get("Messages", ())))
            return {"counts": counts}

    assert sagaz.run(Receive(), {}).context["counts"] == [1, 0, 1]


def test_a_message_that_is_let_go_is_there_again(aws: SagaAws, saga_world: World) -> None:
    sqs = aws.client("sqs")
    url = sqs.get_queue_url(QueueName="mail")["QueueUrl"]
    sqs.send_message(QueueUrl=url, MessageBody="b")
    before = saga_world.save()
    handle = sqs.receive_message(QueueUrl=url)["Messages"][0]["ReceiptHandle"]
    assert saga_world.save() != before
    sqs.change_message_visibility(QueueUrl=url, ReceiptHandle=handle, VisibilityTimeout=0)
    assert saga_world.save() == before


def test_nothing_is_written_when_nothing_differs(
    aws: SagaAws, saga_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moto.s3.models import S3Backend

    s3 = aws.client("s3")
    s3.put_object(Bucket="invoices", Key="c", Body=b"7")
    s3.put_object(Bucket="invoices", Key="d", Body=b"7")
    saved = saga_world.save()
    s3.put_object(Bucket="invoices", Key="d", Body=b"8")
    written: list[str] = []
    put_object = S3Backend.put_object

    def watched(self: Any, bucket: str, key: str, *args: Any, **more: Any) -> Any:
        written.append(key)
        return put_object(self, bucket, key, *args, **more)

    monkeypatch.setattr(S3Backend, "put_object", watched)
    saga_world.restore(saved)
    saga_world.restore(saved)
    assert written == ["d"]
