"""What a run tells the store about itself, so that it can be found."""

import uuid
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum

import pytest

from sagaz_core import InMemorySnapshotStorage, Recording, ReplayConfig, Saga, SagaConfig
from sagaz_core.engine.run import RunOptions, resume_stored, run_saga
from sagaz_core.engine.summary import tag_text
from sagaz_core.recording.file import recording_from_json
from sagaz_core.storage.base import SagaSummary
from sagaz_core.storage.codec import known_class
from sagaz_core.storage.frames import state_bytes
from sagaz_core.virtual_time import run

TEN = datetime(2024, 3, 1, 10, tzinfo=UTC)


class Counting(InMemorySnapshotStorage):
    def __init__(self):
        super().__init__()
        self.summaries = []

    async def write(self, batch):
        if batch.summary is not None:
            self.summaries.append(batch.summary)
        await super().write(batch)


class Land(Enum):
    DE = "de"


def order(store, *, fails="", keys=()):
    async def act(ctx):
        return {"paid": True}

    async def fail(ctx):
        raise OSError("down")

    made = Saga("order", snapshot_storage=store, replay_config=ReplayConfig(index_keys=list(keys)))
    for step in ("reserve_stock", "charge_payment", "ship"):
        made.add_step(step, fail if step == fails else act, lambda ctx: None)
    return made


def at(minute):
    times = iter(range(10_000))
    return lambda: TEN + timedelta(minutes=minute, milliseconds=next(times))


def ran(store, saga, saga_id, context=None, minute=0):
    return run(run_saga(saga, context or {}, saga_id=saga_id, options=RunOptions(storage=store, clock=at(minute))))


def found(store, **asked):
    return [summary.saga_id for summary in run(store.find_sagas(**asked)).items]


def test_each_snapshot_has_the_tags_of_its_moment():
    store = InMemorySnapshotStorage()
    ran(
        store,
        order(store, keys=["state", "customer"]).add_step("close", lambda ctx: {"state": "closed"}),
        "A",
        {"customer": 7},
    )
    recording = run(Recording.from_storage(store, "A"))
    tags = [snapshot.tags for snapshot in recording.snapshots]
    assert tags == [(("customer", "7"),)] * 4 + [(("customer", "7"), ("state", "closed"))]
    copy = Recording(*recording_from_json(recording.to_json(), "here", known_class))
    assert [snapshot.tags for snapshot in copy.snapshots] == tags
    assert all(state_bytes(snapshot) for snapshot in copy.snapshots)
    hidden = recording.redacted(["customer"], "secret")
    assert {snapshot.tags[0] for snapshot in hidden.snapshots} == {("customer", str(hidden.context["customer"]))}
    bare = InMemorySnapshotStorage()
    ran(bare, order(bare), "A")
    assert {snapshot.tags for snapshot in run(bare.list_snapshots("A")).items} == {()}


def test_the_orders_that_failed_at_a_step_within_some_minutes_are_found():
    store = InMemorySnapshotStorage()
    for number, (minute, fails) in enumerate(
        [(5, "charge_payment"), (12, "charge_payment"), (15, "ship"), (19, "charge_payment"), (15, "")]
    ):
        ran(store, order(store, fails=fails), f"s{number}", minute=minute)
    between = (TEN + timedelta(minutes=10), TEN + timedelta(minutes=20))
    assert found(store, step_name="charge_payment", failed_between=between, saga_name="order") == ["s1", "s3"]
    assert found(store, status="completed") == ["s4"]
    assert found(store, status="rolled_back", step_name="ship") == ["s2"]


def test_a_saga_that_goes_well_tells_twice():
    store = Counting()
    ran(store, order(store), "s")
    assert [summary.status for summary in store.summaries] == ["executing", "completed"]
    assert store.summaries[-1].failed_at is None


def test_a_saga_that_fails_tells_when_and_where():
    store = Counting()
    result = ran(store, order(store, fails="ship"), "s")
    failed = next(event for event in result.events if type(event).__name__ == "StepFailed")
    assert store.summaries[-1] == SagaSummary("s", "order", result.events[-1].seq, "rolled_back", "ship", failed.at, {})


def test_tags_are_the_values_of_the_named_keys_as_they_are_now():
    store = Counting()
    context = {"customer": 42, "land": Land.DE, "secret": "x"}
    ran(store, order(store, keys=["customer", "land", "paid", "missing"]), "s", context)
    assert store.summaries[0].tags == {"customer": "42", "land": "de"}
    assert store.summaries[-1].tags == {"customer": "42", "land": "de", "paid": "true"}
    assert found(store, tags={"customer": "42"}) == ["s"]
    assert found(store, tags={"customer": "43"}) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x", "x"),
        (1, "1"),
        (1.5, "1.5"),
        (True, "true"),
        (Decimal("1.50"), "1.50"),
        (date(2024, 2, 29), "2024-02-29"),
        (TEN, "2024-03-01T10:00:00+00:00"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Land.DE, "de"),
        (None, None),
        ([1], None),
        ({"a": 1}, None),
        (b"x", None),
        ("\ud800", None),
    ],
)
def test_a_tag_is_readable_text(value, text):
    assert tag_text(value) == text


def test_a_text_that_is_too_long_is_no_tag():
    store = Counting()
    ran(store, order(store, keys=["short", "long"]), "s", {"short": "x" * 255, "long": "x" * 256})
    assert list(store.summaries[-1].tags) == ["short"]


class Dying(Counting):
    """A store that gets nothing more of a run once it has turned back, as if its process had died."""

    mortal, dead = True, False

    async def write(self, batch):
        if not self.dead:
            await super().write(batch)
        if self.mortal and batch.summary is not None and batch.summary.status == "compensating":
            self.dead = True


def test_a_run_that_another_process_ends_keeps_when_it_failed():
    store = Dying()
    ran(store, order(store, fails="ship"), "s")
    before = store.summaries[-1]
    assert (before.status, before.step_name) == ("compensating", "ship")
    assert before.failed_at is not None
    store.mortal = store.dead = False
    run(resume_stored(order(store, fails="ship"), "s"))
    assert (store.summaries[-1].status, store.summaries[-1].step_name) == ("rolled_back", "ship")
    assert store.summaries[-1].failed_at == before.failed_at


def test_an_attempt_that_is_tried_again_is_no_failure():
    store = Counting()
    saga = Saga("order", snapshot_storage=store)
    attempts = []

    async def flaky(ctx):
        attempts.append(1)
        if len(attempts) == 1:
            raise OSError("down")

    saga.add_step("a", flaky, retries=1)
    saga.add_step("b", lambda ctx: None)
    ran(store, saga, "s")
    assert [(summary.status, summary.step_name) for summary in store.summaries] == [
        ("executing", ""),
        ("completed", ""),
    ]


@pytest.mark.parametrize("pivot", ["", "charge_payment"])
def test_an_imported_saga_is_found_as_the_recorded_one_is(pivot):
    async def fail(ctx):
        raise OSError("down")

    store, other = Counting(), Counting()
    saga = Saga("order", snapshot_storage=store, replay_config=ReplayConfig(), config=SagaConfig(forward_retries=0))
    saga.add_step("charge_payment", lambda ctx: None, pivot=bool(pivot)).add_step("ship", fail)
    ran(store, saga, "s")
    run(_copy(store, other))
    assert other.summaries == store.summaries[-1:]
    assert found(other, step_name="ship") == found(store, step_name="ship") == ["s"]


async def _copy(store, other):
    await (await Recording.from_storage(store, "s")).to_storage(other)
