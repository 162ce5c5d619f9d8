"""What every store must do, as tests that any store's project can run.

    import pytest
    from sagaz_core.storage.contract import SnapshotStorageContract

    class TestMyStore(SnapshotStorageContract):
        @pytest.fixture
        def storage(self):
            storage = open_storage("mystore://…")    # an empty store for each test
            yield storage
            self.do(storage.close())

The methods are plain tests; pytest finds them in the subclass. They do not need an async plugin: `do` runs a coroutine
on one event loop a test, also in the fixture. For readable failures, let `pytest.register_assert_rewrite` have this
module in your conftest.py.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from itertools import permutations, product
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from sagaz_core.errors import CannotStoreError, DuplicateSagaError, NaiveTimeError, UsageError
from sagaz_core.storage.base import (
    Base,
    Batch,
    Page,
    ReplayRecord,
    SagaRecord,
    SagaSnapshot,
    SagaSummary,
    SnapshotStorage,
    StoredEvent,
)
from sagaz_core.storage.codec import decode, encode
from sagaz_core.storage.frames import FrameWriter, state_bytes
from sagaz_core.storage.snapshot_ids import snapshot_name
from sagaz_core.storage.together import answers_together

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

T0 = datetime(2024, 2, 29, 23, 59, 59, 123456, tzinfo=UTC)
TICK = timedelta(microseconds=1)
HOSTILE = (
    "../../etc/passwd",
    "/etc/passwd",
    "C:\\x",
    "nul\0in the middle",
    "\0",
    'it\'s "quoted"; DROP TABLE sagas; --',
    "100%_",
    "[a-z]*?",
    "{'json': 1}",
    "line\nbreak\r\n",
    " spaces ",
    "a/b",
    "a:b",
    "a#b?c&d=e",
    ".",
    "..",
    "-",
    "0",
    "1e3",
    "None",
    "Ünïcödé",
    "ẞtraße",
    "日本語",
    "🦄🧵",
    "\u202eright to left",
    "e\u0301",
    "\u00e9",
    "\U0010ffff",
    "\ud7ff",
    "\ue000",
    "x" * 255,
    "🦄" * 255,
)
Result = TypeVar("Result")


def a_saga(saga_id: str, **fields: Any) -> SagaRecord:
    """Return a saga record with something in every field."""
    given: dict[str, Any] = {
        "saga_name": "order",
        "version": "2.1",
        "fingerprint": "0123456789abcdef",
        "model": {"name": "order", "steps": [{"name": "reserve", "depends_on": [], "timeout": 1.5, "pivot": False}]},
        "started_at": T0,
        "source": "shop.orders:OrderSaga",
        "adapter": "native",
        "plan": "reserve@after",
    }
    return SagaRecord(saga_id, **{**given, **fields})


def an_event(saga_id: str, seq: int, at: datetime | None = None, data: bytes = b"data") -> StoredEvent:
    """Return an event; by default its time is `seq` seconds after `T0`."""
    return StoredEvent(saga_id, seq, at or T0 + timedelta(seconds=seq), "StepStarted", f"step{seq}", data)


def a_snapshot(saga_id: str, seq: int, created_at: datetime | None = None, **fields: Any) -> SagaSnapshot:
    """Return a snapshot; by default its time is `seq` seconds after `T0`."""
    given: dict[str, Any] = {
        "snapshot_id": f"{saga_id[:80]}/{seq}",
        "saga_id": saga_id,
        "saga_name": "order",
        "step_name": "reserve",
        "step_index": seq,
        "seq": seq,
        "phase": "before",
        "status": "executing",
        "created_at": created_at or T0 + timedelta(seconds=seq),
        "data": b"state",
    }
    return SagaSnapshot(**{**given, **fields})


def a_summary(saga_id: str, seq: int = 0, **fields: Any) -> SagaSummary:
    """Return a summary of a saga that goes on."""
    given: dict[str, Any] = {"saga_name": "order", "seq": seq, "status": "executing"}
    return SagaSummary(saga_id, **{**given, **fields})


def a_replay(replay_id: str, saga_id: str, **fields: Any) -> ReplayRecord:
    """Return a replay record that has not ended."""
    given: dict[str, Any] = {
        "new_saga_id": "new",
        "checkpoint": "charge",
        "initiated_by": "an operator",
        "status": "started",
        "created_at": T0,
    }
    return ReplayRecord(replay_id, saga_id, **{**given, **fields})


def _end(processes: Iterable[subprocess.Popen[str]]) -> None:
    for process in processes:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None and not stream.closed:
                stream.close()


def chain(saga_id: str, length: int, every: int = 16) -> list[SagaSnapshot]:
    """Return snapshots each of which is based on those before it, and stands alone where one in `every` begins."""
    return [
        a_snapshot(saga_id, seq, data=b"%d" % seq, base_seq=seq - seq % every if seq % every else None)
        for seq in range(length)
    ]


def bases_of(snapshot: SagaSnapshot) -> list[int]:
    """Return which snapshots of a `chain` came with this one."""
    return [int(base.data) for base in snapshot.bases]


class SnapshotStorageContract:
    """Tests of a store. A subclass gives a fixture `storage`: an empty store for each test, closed afterwards."""

    large = 10_000_000
    """The bytes of the largest payload that is tried. A store that cannot take 10 MB says here what it can."""

    shared = True
    """Whether another process reaches the same store by its `address`, which is one that `open_storage` knows."""

    def address(self, storage: SnapshotStorage) -> str:
        """Return the URL by which another process opens the store: its own, unless that leaves secrets out."""
        return storage.url

    _runner: asyncio.Runner | None = None

    def do(self, work: Awaitable[Result]) -> Result:
        """Run the coroutine on this test's event loop."""
        if self._runner is None:
            self._runner = asyncio.Runner()

        async def main() -> Result:
            return await work

        return self._runner.run(main())

    def teardown_method(self) -> None:
        """Close the test's event loop. pytest calls it, after the fixtures of the subclass are done."""
        if self._runner is not None:
            self._runner.close()

    def at(self, storage: SnapshotStorage, moment: datetime) -> None:
        """Let it be this time for the store."""
        storage.clock = lambda: moment

    def events(self, storage: SnapshotStorage, saga_id: str, **asked: Any) -> list[StoredEvent]:
        """Return what `read_events` gives, as a list."""

        async def collected() -> list[StoredEvent]:
            return [event async for event in storage.read_events(saga_id, **asked)]

        return self.do(collected())

    def pages(self, get: Callable[..., Awaitable[Page]], limit: int) -> list[Any]:
        """Return all records of a listing, which is read in pages of `limit`."""
        found: list[Any] = []
        cursor: str | None = None
        for _ in range(1000):
            page = self.do(get(limit=limit, cursor=cursor))
            assert len(page.items) <= limit
            found += page.items
            if page.cursor is None:
                return found
            assert len(page.items) == limit, "a page that is not the last one must be full"
            cursor = page.cursor
        raise AssertionError("the listing does not end")

    def listed(self, storage: SnapshotStorage, saga_id: str) -> list[int]:
        """Return the `seq` of each snapshot that is served."""
        return [snapshot.seq for snapshot in self.pages(lambda **asked: storage.list_snapshots(saga_id, **asked), 100)]

    def refused(self, error: type[Exception], work: Awaitable[Any]) -> None:
        """Check that the call raises the error, in one line."""
        try:
            self.do(work)
        except error as caught:
            message = str(caught)
        else:
            raise AssertionError(f"{error.__name__} was not raised")
        assert "\n" not in message

    # ---- round trips

    def test_a_saga_record_comes_back_as_it_was(self, storage: SnapshotStorage) -> None:
        bare = SagaRecord("bare", "n", "1", "f", {}, T0)
        for record in (a_saga("full"), bare):
            self.do(storage.write(Batch(record.saga_id, record)))
        assert self.do(storage.get_saga("full")) == a_saga("full")
        assert self.do(storage.get_saga("bare")) == bare

    def test_a_model_is_any_json(self, storage: SnapshotStorage) -> None:
        model = {
            "t": True,
            "n": None,
            "f": 0.1,
            "i": -(2**70),
            "s": "é\0🦄\ud800",
            "": [[], {}, [1, [2]]],
            "z": {"y": "x"},
        }
        self.do(storage.write(Batch("s", a_saga("s", model=model))))
        found = self.do(storage.get_saga("s"))
        assert found is not None
        assert found.model == model

    def test_a_model_that_is_not_json_is_refused(self, storage: SnapshotStorage) -> None:
        self.refused(CannotStoreError, storage.write(Batch("s", a_saga("s", model={"x": object()}))))
        assert self.do(storage.get_saga("s")) is None

    def test_an_event_comes_back_as_it_was(self, storage: SnapshotStorage) -> None:
        events = [
            StoredEvent("s", 0, T0, "SagaStarted", None, b""),
            StoredEvent("s", 1, T0, "StepStarted", "", bytes(range(256))),
            StoredEvent("s", 2, T0, "StepSucceeded", "é\0🦄", b"\0"),
        ]
        self.do(storage.write(Batch("s", events=events)))
        assert self.events(storage, "s") == events

    def test_a_snapshot_comes_back_as_it_was(self, storage: SnapshotStorage) -> None:
        self.at(storage, T0)
        full = a_snapshot("s", 1, step_name="é\0🦄", data=bytes(range(256)), retention_until=T0 + timedelta(days=30))
        full = full._replace(completed_steps=("reserve", "é\0🦄", ""), tags=(("", ""), ("a", "1"), ("é\0🦄", "é\0🦄")))
        bare = a_snapshot("s", 2, step_name="", step_index=0, data=b"")
        self.do(storage.write(Batch("s", snapshots=[full, bare])))
        assert self.do(storage.get_snapshot(full.snapshot_id)) == full
        assert self.do(storage.get_snapshot(bare.snapshot_id)) == bare
        assert self.do(storage.list_snapshots("s")).items == [full, bare]
        assert self.do(storage.latest_snapshot("s", max_seq=1)) == full

    def test_a_replay_comes_back_as_it_was(self, storage: SnapshotStorage) -> None:
        bare = a_replay("1", "s")
        full = a_replay("2", "s", override=bytes(range(256)), plan="a@before", completed_at=T0 + TICK, error="é\0\n🦄")
        for record in (bare, full):
            self.do(storage.log_replay(record))
        assert list(self.do(storage.list_replays("s"))) == [bare, full]

    def test_times_are_exact(self, storage: SnapshotStorage) -> None:
        times = [
            datetime.min.replace(tzinfo=UTC),
            datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
            datetime(1970, 1, 1, tzinfo=UTC),
            datetime(2024, 3, 31, 2, 30, 0, 1, tzinfo=timezone(timedelta(hours=2, minutes=17))),
            datetime(2038, 1, 19, 3, 14, 8, tzinfo=UTC),
            datetime.max.replace(tzinfo=UTC),
        ]
        self.at(storage, times[0])
        for number, time in enumerate(times):
            saga_id = str(number)
            snapshot = a_snapshot(saga_id, 0, time, retention_until=time)
            record = a_saga(saga_id, started_at=time)
            self.do(storage.write(Batch(saga_id, record, [an_event(saga_id, 0, time)], [snapshot])))
            self.do(storage.log_replay(a_replay(saga_id, saga_id, created_at=time, completed_at=time)))
            found = self.do(storage.get_saga(saga_id))
            assert found is not None
            assert found.started_at == time
            assert found.started_at.tzinfo is not None
            assert [event.at for event in self.events(storage, saga_id)] == [time]
            assert self.do(storage.latest_snapshot(saga_id, until=time)) == snapshot
            assert [replay.completed_at for replay in self.do(storage.list_replays(saga_id))] == [time]

    def test_a_time_without_a_timezone_is_refused(self, storage: SnapshotStorage) -> None:
        naive = T0.replace(tzinfo=None)
        for work in (
            storage.write(Batch("s", a_saga("s", started_at=naive))),
            storage.write(Batch("s", events=[an_event("s", 0, naive)])),
            storage.write(Batch("s", snapshots=[a_snapshot("s", 0, naive)])),
            storage.write(Batch("s", snapshots=[a_snapshot("s", 0, retention_until=naive)])),
            storage.write(Batch("s", summary=a_summary("s", failed_at=naive))),
            storage.latest_snapshot("s", until=naive),
            storage.find_sagas(failed_between=(naive, T0)),
            storage.find_sagas(failed_between=(T0, naive)),
            storage.prune(naive),
            storage.log_replay(a_replay("r", "s", created_at=naive)),
        ):
            self.refused(NaiveTimeError, work)
        assert self.events(storage, "s") == []
        assert list(self.do(storage.list_replays("s"))) == []

    def test_payloads_of_100_kb_and_of_the_largest_size(self, storage: SnapshotStorage) -> None:
        for seq, size in enumerate((100_000, self.large)):
            data = bytes(range(251)) * (size // 251 + 1)
            self.do(storage.write(Batch("s", events=[an_event("s", seq, data=data)])))
            self.do(storage.write(Batch("s", snapshots=[a_snapshot("s", seq, data=data)])))
            found = self.do(storage.latest_snapshot("s"))
            assert found is not None
            assert found.data == data
        assert [len(event.data) > 99_999 for event in self.events(storage, "s")] == [True, True]

    def test_states_of_100_kb_and_of_the_largest_size_are_read_as_they_were(self, storage: SnapshotStorage) -> None:
        frames = FrameWriter()
        text = bytes(range(256)) * (self.large // 512 // 2)
        states = [text[:100_000], text, text + b"and a little more"]
        snapshots = [frames.frame(a_snapshot("s", seq), state) for seq, state in enumerate(states)]
        for snapshot in snapshots:
            self.do(storage.write(Batch("s", snapshots=[snapshot])))
        assert [state_bytes(one) for one in self.do(storage.list_snapshots("s")).items] == states
        found = self.do(storage.latest_snapshot("s", step="reserve", until=T0 + timedelta(seconds=9)))
        assert found is not None
        assert state_bytes(found) == states[-1]

    def test_values_of_every_type_come_back_as_they_were(self, storage: SnapshotStorage) -> None:
        value = {
            "decimal": Decimal("1.10"),
            "times": [T0, T0.date(), timedelta(microseconds=-1), T0.time()],
            "id": UUID(int=7),
            "bytes": bytes(range(256)),
            "tuple": (1, (2.5, None), [True]),
            "sets": [{1, 2}, frozenset({"a"})],
            "keys": {1: "one", (2, 3): "pair", None: "none"},
            "path": PurePosixPath("/a/b"),
            "text": "é\0🦄",
            "large": 2**70,
            "kind": Page([], None),
        }
        snapshot = FrameWriter().frame(a_snapshot("s", 0), encode(value))
        event = an_event("s", 0, data=encode(value))
        self.do(storage.write(Batch("s", events=[event], snapshots=[snapshot])))
        found = self.do(storage.latest_snapshot("s"))
        assert found is not None
        for data in (state_bytes(found), self.events(storage, "s")[0].data):
            assert decode(data) == value
            assert encode(decode(data)) == encode(value)

    def test_any_text_is_an_id(self, storage: SnapshotStorage) -> None:
        for number, text in enumerate(HOSTILE):
            snapshot = a_snapshot(text, 0, snapshot_id=text, data=str(number).encode())
            event = an_event(text, 0, data=str(number).encode())
            self.do(storage.write(Batch(text, a_saga(text), [event], [snapshot])))
            self.do(storage.log_replay(a_replay(text, text, error=str(number))))
        for number, text in enumerate(HOSTILE):
            data = str(number).encode()
            found = self.do(storage.get_snapshot(text))
            assert found is not None
            assert (found.saga_id, found.data) == (text, data)
            assert self.do(storage.latest_snapshot(text)) == found
            assert self.do(storage.get_saga(text)) == a_saga(text)
            assert [event.data for event in self.events(storage, text)] == [data]
            assert [replay.error for replay in self.do(storage.list_replays(text))] == [str(number)]
        listed = [record.saga_id for record in self.pages(storage.list_sagas, 7)]
        assert listed == sorted(HOSTILE)
        for text in HOSTILE:
            assert self.do(storage.delete_saga(text))
        assert self.do(storage.list_sagas()).items == []

    def test_a_snapshot_may_be_named_by_its_saga_whatever_that_is_called(self, storage: SnapshotStorage) -> None:
        written = [
            [
                a_snapshot(text, 12, snapshot_id=snapshot_name(text, 12, number), data=b"%d" % number)
                for number in (0, 1)
            ]
            for text in HOSTILE
        ]
        for text, snapshots in zip(HOSTILE, written, strict=True):
            self.do(storage.write(Batch(text, a_saga(text), (), snapshots)))
        for text, snapshots in zip(HOSTILE, written, strict=True):
            assert [self.do(storage.get_snapshot(one.snapshot_id)) for one in snapshots] == snapshots
            assert self.do(storage.list_snapshots(text)).items == snapshots
            assert self.do(storage.get_snapshot(snapshot_name(text, 11))) is None

    def test_an_id_that_is_none_is_refused(self, storage: SnapshotStorage) -> None:
        for saga_id in ("", "x" * 256):
            self.refused(UsageError, storage.write(Batch(saga_id, a_saga(saga_id))))
            self.refused(UsageError, storage.write(Batch(saga_id, events=[an_event(saga_id, 0)])))

    # ---- isolation

    def test_what_was_written_does_not_change_with_the_callers_objects(self, storage: SnapshotStorage) -> None:
        record, events, snapshots = a_saga("s"), [an_event("s", 0)], [a_snapshot("s", 0)]
        self.do(storage.write(Batch("s", record, events, snapshots)))
        record.model["steps"].append("another")
        events.append(an_event("s", 1))
        snapshots.append(a_snapshot("s", 1))
        assert self.do(storage.get_saga("s")) == a_saga("s")
        assert self.events(storage, "s") == events[:1]
        assert self.do(storage.list_snapshots("s")).items == snapshots[:1]

    def test_what_was_read_does_not_change_the_store(self, storage: SnapshotStorage) -> None:
        self.do(storage.write(Batch("s", a_saga("s"), [an_event("s", 0)], [a_snapshot("s", 0)])))
        self.do(storage.log_replay(a_replay("r", "s")))
        for _ in range(2):
            found = self.do(storage.get_saga("s"))
            assert found == a_saga("s")
            assert found is not None
            found.model["steps"].clear()
            listings: Iterable[Any] = (
                self.do(storage.list_sagas()).items,
                self.do(storage.list_snapshots("s")).items,
                self.do(storage.list_replays("s")),
            )
            for items in listings:
                assert len(items) == 1
                if isinstance(items, list):
                    items.clear()

    # ---- order and time

    def test_events_come_in_order_of_seq_in_whatever_order_they_are_written(self, storage: SnapshotStorage) -> None:
        for seqs in ((3,), (1, 0), (2, 6, 4), (5,)):
            self.do(storage.write(Batch("s", events=[an_event("s", seq) for seq in seqs])))
        assert [event.seq for event in self.events(storage, "s")] == list(range(7))
        until = T0 + timedelta(seconds=4)
        assert [event.seq for event in self.events(storage, "s", until=until)] == list(range(5))

    def test_events_above_a_seq(self, storage: SnapshotStorage) -> None:
        self.do(storage.write(Batch("s", events=[an_event("s", seq) for seq in range(5)])))
        assert [event.seq for event in self.events(storage, "s", after_seq=2)] == [3, 4]
        assert self.events(storage, "s", after_seq=4) == []
        assert [event.seq for event in self.events(storage, "s", after_seq=1, until=T0 + timedelta(seconds=3))] == [
            2,
            3,
        ]
        assert self.events(storage, "s", after_seq=3, until=T0 + timedelta(seconds=2)) == []

    def test_events_up_to_a_time_exactly(self, storage: SnapshotStorage) -> None:
        self.do(storage.write(Batch("s", events=[an_event("s", seq) for seq in range(3)])))
        time = T0 + timedelta(seconds=1)
        for until, last in (
            (time - TICK, 0),
            (time, 1),
            (time + TICK, 1),
            (T0 - TICK, -1),
            (T0 + timedelta(days=1), 2),
        ):
            assert [event.seq for event in self.events(storage, "s", until=until)] == list(range(last + 1))

    def test_events_of_one_time_come_together(self, storage: SnapshotStorage) -> None:
        self.do(storage.write(Batch("s", events=[an_event("s", seq, T0) for seq in range(5)])))
        assert len(self.events(storage, "s", until=T0)) == 5
        assert self.events(storage, "s", until=T0 - TICK) == []

    def test_events_under_a_clock_that_went_back(self, storage: SnapshotStorage) -> None:
        seconds = (10, 20, 5, 15, 15, 30, 12)
        for seq, second in enumerate(seconds):
            self.do(storage.write(Batch("s", events=[an_event("s", seq, T0 + timedelta(seconds=second))])))
        for second, last in ((4, -1), (5, 2), (10, 2), (11, 2), (12, 6), (14, 6), (30, 6)):
            until = T0 + timedelta(seconds=second)
            assert [event.seq for event in self.events(storage, "s", until=until)] == list(range(last + 1)), second

    def test_many_events_come_whole(self, storage: SnapshotStorage) -> None:
        self.do(storage.write(Batch("s", events=[an_event("s", seq) for seq in range(3000)])))
        assert [event.seq for event in self.events(storage, "s")] == list(range(3000))
        assert [event.seq for event in self.events(storage, "s", after_seq=511)] == list(range(512, 3000))

    def test_events_may_be_written_while_others_are_read(self, storage: SnapshotStorage) -> None:
        self.do(storage.write(Batch("s", events=[an_event("s", seq) for seq in range(600)])))

        async def read_and_write() -> list[int]:
            found = []
            async for event in storage.read_events("s"):
                found.append(event.seq)
                if event.seq < 600:
                    await storage.write(Batch("other", events=[an_event("other", event.seq)]))
                if event.seq == 10:
                    await storage.write(Batch("s", events=[an_event("s", 600)]))
            return found

        assert self.do(read_and_write())[:600] == list(range(600))
        assert len(self.events(storage, "other")) == 600

    def test_the_latest_snapshot_of_a_step_and_a_phase(self, storage: SnapshotStorage) -> None:
        steps = (("a", "before"), ("a", "after"), ("b", "before"), ("b", "after"), ("a", "undone"), ("", "final"))
        snapshots = [a_snapshot("s", seq, step_name=step, phase=phase) for seq, (step, phase) in enumerate(steps)]
        self.do(storage.write(Batch("s", snapshots=snapshots)))
        for asked, seq in (
            ({}, 5),
            ({"step": "a"}, 4),
            ({"step": "b"}, 3),
            ({"step": ""}, 5),
            ({"phase": "before"}, 2),
            ({"step": "a", "phase": "before"}, 0),
            ({"step": "b", "phase": "after"}, 3),
            ({"step": "b", "phase": "undone"}, None),
            ({"step": "c"}, None),
            ({"phase": "manual"}, None),
        ):
            found = self.do(storage.latest_snapshot("s", **asked))  # type: ignore[arg-type] # names of either type
            assert (None if found is None else found.seq) == seq, asked

    def test_the_latest_snapshot_at_a_time_exactly(self, storage: SnapshotStorage) -> None:
        phases = ("before", "after")
        snapshots = [a_snapshot("s", seq, phase=phases[seq % 2]) for seq in range(8)]
        self.do(storage.write(Batch("s", snapshots=snapshots)))
        for seq in range(8):
            for offset, last in ((-TICK, seq - 1), (timedelta(), seq), (TICK, seq)):
                until = T0 + timedelta(seconds=seq) + offset
                for max_seq in (-1, 0, 2, 3, 7, 100):
                    found = self.do(storage.latest_snapshot("s", until=until, max_seq=max_seq))
                    right = min(last, max_seq)
                    assert found == (snapshots[right] if right >= 0 else None)
                    found = self.do(
                        storage.latest_snapshot("s", step="reserve", phase="after", until=until, max_seq=max_seq)
                    )
                    right -= right % 2 == 0
                    assert found == (snapshots[right] if right >= 0 else None)

    def test_snapshots_of_one_seq_come_in_order_of_their_ids(self, storage: SnapshotStorage) -> None:
        ids = ["b", "a", "c"]
        self.do(storage.write(Batch("s", snapshots=[a_snapshot("s", 1, snapshot_id=name) for name in ids])))
        self.do(storage.write(Batch("s", snapshots=[a_snapshot("s", 0, snapshot_id="z")])))
        listed = self.pages(lambda **asked: storage.list_snapshots("s", **asked), 2)
        assert [snapshot.snapshot_id for snapshot in listed] == ["z", "a", "b", "c"]
        until = T0 + timedelta(seconds=1)
        questions: Iterable[dict[str, Any]] = ({}, {"max_seq": 1}, {"until": until}, {"step": "reserve"})
        for asked in questions:
            found = self.do(storage.latest_snapshot("s", **asked))
            assert found is not None
            assert found.snapshot_id == "c", asked

    def test_snapshots_of_one_seq_under_a_clock_that_went_back(self, storage: SnapshotStorage) -> None:
        orders = list(permutations(range(3)))
        for number, (times, written) in enumerate(product(orders, orders)):
            saga_id = f"s{number}"
            snapshots = [
                a_snapshot(saga_id, 1, T0 + timedelta(seconds=second), snapshot_id=f"{saga_id}.{place}")
                for place, second in enumerate(times)
            ]
            self.do(storage.write(Batch(saga_id, snapshots=[a_snapshot(saga_id, 0, T0 - TICK)])))
            for place in written:
                self.do(storage.write(Batch(saga_id, snapshots=[snapshots[place]])))
            for second in range(3):
                until = T0 + timedelta(seconds=second)
                right = [snapshot for snapshot in snapshots if snapshot.created_at <= until][-1]
                questions: Iterable[dict[str, Any]] = ({}, {"step": "reserve"}, {"max_seq": 1})
                for asked in questions:
                    found = self.do(storage.latest_snapshot(saga_id, until=until, **asked))
                    assert found == right, (times, written, second, asked)

    def test_snapshots_under_a_clock_that_went_back(self, storage: SnapshotStorage) -> None:
        seconds = (10, 20, 5, 15, 15, 30, 12)
        snapshots = []
        for seq, second in enumerate(seconds):
            step = "ab"[seq % 2]
            snapshots.append(a_snapshot("s", seq, T0 + timedelta(seconds=second), step_name=step, phase="after"))
            self.do(storage.write(Batch("s", snapshots=snapshots[-1:])))
        for second in range(4, 32):
            until = T0 + timedelta(seconds=second)
            for max_seq in (None, *range(7)):
                for step_name in (None, "a", "b"):
                    right = [
                        snapshot
                        for snapshot in snapshots
                        if snapshot.created_at <= until
                        and (max_seq is None or snapshot.seq <= max_seq)
                        and step_name in (None, snapshot.step_name)
                    ]
                    for phase in (None, "after"):
                        found = self.do(
                            storage.latest_snapshot("s", step=step_name, phase=phase, until=until, max_seq=max_seq)
                        )
                        assert found == (right[-1] if right else None), (second, max_seq, step_name, phase)

    # ---- what snapshots are based on

    def test_a_snapshot_comes_with_what_it_is_based_on(self, storage: SnapshotStorage) -> None:
        snapshots = chain("s", 10, every=4)
        for snapshot in snapshots:
            self.do(storage.write(Batch("s", snapshots=[snapshot])))
        self.do(storage.write(Batch("other", snapshots=chain("other", 6, every=10))))
        for snapshot in snapshots:
            seq = snapshot.seq
            until = T0 + timedelta(seconds=seq)
            bases = tuple(Base(one.snapshot_id, one.data) for one in snapshots[seq - seq % 4 : seq])
            right = snapshot._replace(bases=bases)
            assert self.do(storage.get_snapshot(snapshot.snapshot_id)) == right
            questions: Iterable[dict[str, Any]] = (
                {"max_seq": seq},
                {"until": until},
                {"max_seq": seq, "step": "reserve"},
                {"until": until, "step": "reserve", "phase": "before"},
            )
            for asked in questions:
                assert self.do(storage.latest_snapshot("s", **asked)) == right, asked
        for limit in (1, 3, 5, 100):
            found = self.pages(lambda **asked: storage.list_snapshots("s", **asked), limit)
            assert [bases_of(one) for one in found] == [list(range(n - n % 4, n)) for n in range(10)]

    def test_snapshots_of_one_seq_can_be_based_on_each_other(self, storage: SnapshotStorage) -> None:
        snapshots = [
            a_snapshot("s", 3, snapshot_id=f"s.{number}", base_seq=3 if number else None, data=bytes([number]))
            for number in range(3)
        ]
        self.do(storage.write(Batch("s", snapshots=snapshots)))
        found = self.do(storage.list_snapshots("s")).items
        assert [[base.data for base in one.bases] for one in found] == [[], [b"\0"], [b"\0", b"\1"]]

    def test_bases_that_come_with_a_snapshot_are_not_stored(self, storage: SnapshotStorage) -> None:
        snapshots = [one._replace(bases=(Base("x", b"y"),)) for one in chain("s", 2)]
        for _ in range(2):
            self.do(storage.write(Batch("s", snapshots=snapshots)))
        assert [bases_of(one) for one in self.do(storage.list_snapshots("s")).items] == [[], [0]]

    def test_a_base_that_comes_later_is_refused(self, storage: SnapshotStorage) -> None:
        self.refused(UsageError, storage.write(Batch("s", snapshots=[a_snapshot("s", 1, base_seq=2)])))

    # ---- finding sagas

    def test_sagas_are_found_by_what_they_are_now(self, storage: SnapshotStorage) -> None:
        ten = T0.replace(hour=10, minute=0)
        for number in range(20):
            failed_at = ten + timedelta(minutes=number) if number % 2 else None
            summary = a_summary(
                f"s{number:02}",
                number,
                saga_name=("order", "refund")[number % 4 == 3],
                status="rolled_back" if failed_at else "completed",
                step_name=("charge_payment", "ship")[number % 5 == 0] if failed_at else "",
                failed_at=failed_at,
                tags={"customer": f"c{number % 3}", "land": "é\0%"},
            )
            self.do(storage.write(Batch(summary.saga_id, summary=summary)))
        failed = [number for number in range(20) if number % 2]
        minutes = timedelta(minutes=1)
        questions: Iterable[tuple[dict[str, Any], list[int]]] = (
            ({}, list(range(20))),
            ({"status": "rolled_back"}, failed),
            ({"status": "nothing"}, []),
            ({"saga_name": "refund"}, [3, 7, 11, 15, 19]),
            ({"step_name": "ship"}, [5, 15]),
            ({"failed_between": (ten + 3 * minutes, ten + 9 * minutes)}, [3, 5, 7, 9]),
            ({"failed_between": (ten + 3 * minutes + TICK, ten + 9 * minutes - TICK)}, [5, 7]),
            ({"failed_between": (ten + 9 * minutes, ten)}, []),
            ({"tags": {"customer": "c1"}}, list(range(1, 20, 3))),
            ({"tags": {"customer": "c1", "land": "é\0%"}}, list(range(1, 20, 3))),
            ({"tags": {"customer": "c1", "land": "é"}}, []),
            ({"tags": {"nobody": "c1"}}, []),
            (
                {
                    "saga_name": "order",
                    "step_name": "charge_payment",
                    "failed_between": (ten, ten + 20 * minutes),
                    "tags": {"customer": "c1"},
                    "status": "rolled_back",
                },
                [1, 13],
            ),
            ({"status": "rolled_back", "tags": {"land": "é\0%"}, "saga_name": "order"}, [1, 5, 9, 13, 17]),
        )
        for asked, right in questions:
            for limit in (1, 3, 100):
                found = self.pages(lambda asked=asked, **page: storage.find_sagas(**asked, **page), limit)
                assert [summary.seq for summary in found] == right, asked
        (found,) = self.do(storage.find_sagas(failed_between=(ten + minutes, ten + minutes))).items
        assert found == a_summary(
            "s01",
            1,
            status="rolled_back",
            step_name="charge_payment",
            failed_at=ten + minutes,
            tags={"customer": "c1", "land": "é\0%"},
        )

    def test_a_summary_replaces_an_older_one_only(self, storage: SnapshotStorage) -> None:
        summaries = [
            a_summary("s", 1, status="a", tags={"x": "1", "y": "1"}),
            a_summary("s", 3, status="c", tags={"x": "2"}, step_name="z", failed_at=T0),
        ]
        for summary in (*summaries, a_summary("s", 2, status="b"), a_summary("s", 3, status="d")):
            self.do(storage.write(Batch("s", summary=summary)))
        assert self.do(storage.find_sagas()).items == [summaries[-1]]
        for tags, count in (({"x": "1"}, 0), ({"y": "1"}, 0), ({"x": "2"}, 1)):
            assert len(self.do(storage.find_sagas(tags=tags)).items) == count
        for status, count in (("a", 0), ("b", 0), ("c", 1)):
            assert len(self.do(storage.find_sagas(status=status)).items) == count
        assert self.do(storage.get_saga("s")) is None
        assert self.do(storage.delete_saga("s"))
        assert self.do(storage.find_sagas()).items == []
        assert self.do(storage.find_sagas(tags={"x": "2"})).items == []
        self.do(storage.write(Batch("s", summary=a_summary("s", 0))))
        assert self.do(storage.find_sagas()).items == [a_summary("s", 0)]

    def test_a_summary_does_not_change_with_the_callers_objects(self, storage: SnapshotStorage) -> None:
        tags = {"x": "1"}
        self.do(storage.write(Batch("s", summary=a_summary("s", tags=tags))))
        tags["x"] = "2"
        (found,) = self.do(storage.find_sagas()).items
        found.tags["x"] = "3"
        assert self.do(storage.find_sagas()).items == [a_summary("s", tags={"x": "1"})]

    def test_tags_of_any_text_are_found(self, storage: SnapshotStorage) -> None:
        for text in HOSTILE:
            self.do(storage.write(Batch(text, summary=a_summary(text, status=text, tags={text: text}))))
        for text in HOSTILE:
            for asked in ({"tags": {text: text}}, {"status": text}):
                found = self.do(storage.find_sagas(**asked)).items
                assert [summary.saga_id for summary in found] == [text]

    def test_a_tag_that_is_no_text_is_refused(self, storage: SnapshotStorage) -> None:
        for tags in ({"x": 1}, {1: "x"}, {"x": None}):
            self.refused(UsageError, storage.write(Batch("s", summary=a_summary("s", tags=tags))))
            self.refused(UsageError, storage.find_sagas(tags=tags))  # type: ignore[arg-type] # that is what is refused

    # ---- many batches at once

    def test_many_batches_are_written_as_each_would_be(self, storage: SnapshotStorage) -> None:
        self.do(storage.write(Batch("b", a_saga("b"))))
        batches = [
            Batch("a", a_saga("a"), [an_event("a", 0)], [a_snapshot("a", 0)], a_summary("a")),
            Batch("b", a_saga("b", plan="other"), [an_event("b", 0)]),
            Batch("c", None, [an_event("d", 0)]),
            Batch("", a_saga("")),
            Batch("a", None, [an_event("a", 1)], [a_snapshot("a", 1)]),
            Batch("a", None, [an_event("a", 2), an_event("a", 1, data=b"other")]),
            Batch("e", a_saga("e", model={"x": object()}), [an_event("e", 0)]),
            Batch("f"),
            Batch("g", None, [an_event("g", 0)]),
        ]
        results = self.do(storage.write_many(batches))
        expected = [None, DuplicateSagaError, UsageError, UsageError, None, DuplicateSagaError, CannotStoreError]
        assert [type(result) for result in results] == [type(None) if e is None else e for e in (*expected, None, None)]
        assert [event.seq for event in self.events(storage, "a")] == [0, 1]
        assert self.listed(storage, "a") == [0, 1]
        assert self.do(storage.get_saga("a")) == a_saga("a")
        assert [summary.saga_id for summary in self.do(storage.find_sagas()).items] == ["a"]
        for saga_id, count in (("b", 0), ("c", 0), ("d", 0), ("e", 0), ("g", 1)):
            assert len(self.events(storage, saga_id)) == count
        assert list(self.do(storage.write_many([]))) == []

    def test_of_two_batches_with_the_same_snapshot_id_the_first_has_it(self, storage: SnapshotStorage) -> None:
        self.do(storage.write(Batch("a", a_saga("a"), (), [a_snapshot("a", 1, snapshot_id="old")])))
        batches = [
            Batch("a", None, (), [a_snapshot("a", 0, snapshot_id="x")]),  # does not come behind what is there
            Batch("b", a_saga("b"), (), [a_snapshot("b", 0, snapshot_id="x")]),
        ]
        assert [type(result) for result in self.do(storage.write_many(batches))] == [type(None), DuplicateSagaError]
        assert self.do(storage.get_saga("b")) is None
        assert self.listed(storage, "a") == [0, 1]

    # ---- writing again

    def test_the_same_batch_again_changes_nothing(self, storage: SnapshotStorage) -> None:
        batch = Batch("s", a_saga("s"), [an_event("s", 0), an_event("s", 1)], [a_snapshot("s", 1)])
        for _ in range(3):
            self.do(storage.write(batch))
        overlapping = Batch("s", None, [an_event("s", 1), an_event("s", 2)], [a_snapshot("s", 1), a_snapshot("s", 2)])
        self.do(storage.write(overlapping))
        assert [event.seq for event in self.events(storage, "s")] == [0, 1, 2]
        assert [snapshot.seq for snapshot in self.do(storage.list_snapshots("s")).items] == [1, 2]
        assert self.do(storage.count_snapshots("s")) == 2

    def test_a_record_that_is_twice_in_a_batch_is_stored_once(self, storage: SnapshotStorage) -> None:
        batch = Batch("s", a_saga("s"), [an_event("s", 0)] * 2, [a_snapshot("s", 0)] * 2)
        self.do(storage.write(batch))
        assert len(self.events(storage, "s")) == 1
        assert self.do(storage.count_snapshots("s")) == 1

    def test_an_empty_batch_is_nothing(self, storage: SnapshotStorage) -> None:
        self.do(storage.write(Batch("s")))
        assert not self.do(storage.delete_saga("s"))

    def test_something_else_under_the_same_id_is_refused_and_nothing_is_written(self, storage: SnapshotStorage) -> None:
        self.do(storage.write(Batch("s", a_saga("s"), [an_event("s", 0)], [a_snapshot("s", 0)])))
        fresh: dict[str, Any] = {"events": [an_event("s", 1)], "snapshots": [a_snapshot("s", 1)]}
        for batch in (
            Batch("s", a_saga("s", started_at=T0 + TICK), **fresh),
            Batch("s", a_saga("s", model={}), **fresh),
            Batch("s", a_saga("s", plan=""), **fresh),
            Batch("s", events=[*fresh["events"], an_event("s", 0, data=b"other")], snapshots=fresh["snapshots"]),
            Batch("s", events=[*fresh["events"], an_event("s", 0, T0 + TICK)], snapshots=fresh["snapshots"]),
            Batch("s", events=fresh["events"], snapshots=[a_snapshot("s", 1), a_snapshot("s", 0, data=b"other")]),
            Batch("t", a_saga("t"), [an_event("t", 0)], [a_snapshot("t", 0, snapshot_id="s/0")]),
        ):
            self.refused(DuplicateSagaError, storage.write(batch))
            assert self.do(storage.get_saga("s")) == a_saga("s")
            assert self.events(storage, "s") == [an_event("s", 0)]
            assert self.do(storage.list_snapshots("s")).items == [a_snapshot("s", 0)]
            assert self.do(storage.get_saga("t")) is None
            assert self.events(storage, "t") == []

    def test_a_batch_of_several_sagas_is_refused(self, storage: SnapshotStorage) -> None:
        for batch in (
            Batch("s", a_saga("t")),
            Batch("s", events=[an_event("s", 0), an_event("t", 0)]),
            Batch("s", snapshots=[a_snapshot("t", 0)]),
            Batch("s", summary=a_summary("t")),
        ):
            self.refused(UsageError, storage.write(batch))
        assert self.events(storage, "s") == []

    def test_a_sagas_record_may_come_after_its_events(self, storage: SnapshotStorage) -> None:
        self.do(storage.write(Batch("s", events=[an_event("s", 0)])))
        assert self.do(storage.get_saga("s")) is None
        assert self.do(storage.list_sagas()).items == []
        self.do(storage.write(Batch("s", a_saga("s"))))
        assert self.do(storage.get_saga("s")) == a_saga("s")
        assert self.do(storage.list_sagas()).items == [a_saga("s")]
        assert self.events(storage, "s") == [an_event("s", 0)]

    def test_many_sagas_are_written_at_once(self, storage: SnapshotStorage) -> None:
        async def run(saga_id: str) -> None:
            await storage.write(Batch(saga_id, a_saga(saga_id)))
            for seq in range(10):
                await storage.write(Batch(saga_id, None, [an_event(saga_id, seq)], [a_snapshot(saga_id, seq)]))

        async def run_all() -> None:
            await asyncio.gather(*(run(f"saga{number:02}") for number in range(30)))

        self.do(run_all())
        assert len(self.pages(storage.list_sagas, 7)) == 30
        for number in range(30):
            assert [event.seq for event in self.events(storage, f"saga{number:02}")] == list(range(10))
            assert self.do(storage.count_snapshots(f"saga{number:02}")) == 10

    def test_of_two_runs_under_one_id_one_is_found_out(self, storage: SnapshotStorage) -> None:
        async def both() -> list[Any]:
            runs = [
                storage.write(Batch("s", None, [an_event("s", 0, data=data)], [a_snapshot("s", 0, data=data)]))
                for data in (b"one", b"two")
            ]
            return await asyncio.gather(*runs, return_exceptions=True)

        results = self.do(both())
        assert sorted(type(result).__name__ for result in results) == ["DuplicateSagaError", "NoneType"]
        winner = (b"one", b"two")[results.index(None)]
        assert [event.data for event in self.events(storage, "s")] == [winner]
        assert [one.data for one in self.do(storage.list_snapshots("s")).items] == [winner]

    def test_one_batch_that_many_write_at_once_is_written_once(self, storage: SnapshotStorage) -> None:
        async def all_of_them() -> None:
            batch = Batch("s", a_saga("s"), [an_event("s", 0)], [a_snapshot("s", 0)], a_summary("s"))
            await asyncio.gather(*(storage.write(batch) for _ in range(10)))

        self.do(all_of_them())
        assert len(self.events(storage, "s")) == 1
        assert self.do(storage.count_snapshots("s")) == 1
        assert self.do(storage.find_sagas()).items == [a_summary("s")]

    # ---- other processes

    def writer(self, storage: SnapshotStorage, name: str, sagas: int) -> subprocess.Popen[str]:
        """Start a process that writes into the store; a line on its stdin lets it begin."""
        return subprocess.Popen(
            [sys.executable, "-m", "sagaz_core.storage.contract_writer", self.address(storage), name, str(sagas), "4"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )

    def test_processes_that_start_at_once_on_an_empty_store(self, storage: SnapshotStorage) -> None:
        if not self.shared:
            return
        processes = [self.writer(storage, f"p{number}", 2) for number in range(4)]
        try:
            for process in processes:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
            for process in processes:
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()
            for process in processes:
                said, _ = process.communicate(timeout=60)
                assert process.returncode == 0
                assert len(said.splitlines()) == 8
        finally:
            _end(processes)
        records = self.pages(storage.list_sagas, 3)
        assert [record.saga_id for record in records] == [f"p{p}-{n:06}" for p in range(4) for n in range(2)]
        for record in records:
            assert [event.seq for event in self.events(storage, record.saga_id)] == list(range(8))
            assert self.listed(storage, record.saga_id) == [1, 3, 5, 7]

    def test_a_writer_that_is_killed_leaves_whole_batches_and_all_that_it_was_told(
        self, storage: SnapshotStorage
    ) -> None:
        if not self.shared:
            return
        process = self.writer(storage, "p", 0)
        written: list[list[str]] = []
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.stdin.write("\n")
            process.stdin.flush()
            written = [process.stdout.readline().split() for _ in range(21)]
            process.kill()
            written += [line.split() for line in process.stdout.readlines() if line.endswith("\n")]
            process.wait(timeout=60)
        finally:
            _end([process])
        for saga_id, step in written:
            events = self.events(storage, saga_id, after_seq=2 * int(step) - 1)
            assert [event.seq for event in events][:2] == [2 * int(step), 2 * int(step) + 1]
            assert self.do(storage.get_snapshot(f"{saga_id}/{2 * int(step) + 1}")) is not None
        for record in self.pages(storage.list_sagas, 100):
            seqs = [event.seq for event in self.events(storage, record.saga_id)]
            assert seqs == list(range(len(seqs)))
            assert self.listed(storage, record.saga_id) == [seq for seq in seqs if seq % 2]
        last = written[-1][0]
        self.do(storage.write(Batch(last, None, [an_event(last, 100)])))

    # ---- listings

    def test_sagas_are_listed_by_prefix_which_is_no_pattern(self, storage: SnapshotStorage) -> None:
        ids = [
            "a",
            "a%",
            "a%b",
            "a_",
            "a_b",
            "aXb",
            "a\U0010ffff",
            "a\U0010ffff\U0010ffffz",
            "b",
            "a\ud7ff1",
            "a\ue000",
        ]
        for saga_id in ids:
            self.do(storage.write(Batch(saga_id, a_saga(saga_id))))
        for prefix in ("", "a", "a%", "a_", "a_b", "aX", "a\U0010ffff", "a\ud7ff", "A", "%", "c", "b"):
            right = sorted(saga_id for saga_id in ids if saga_id.startswith(prefix))
            for limit in (1, 2, 100):
                found = self.pages(lambda prefix=prefix, **asked: storage.list_sagas(prefix=prefix, **asked), limit)
                assert [record.saga_id for record in found] == right, prefix

    def test_pages_are_whole_and_end(self, storage: SnapshotStorage) -> None:
        self.do(storage.write(Batch("other", snapshots=[a_snapshot("other", 0)])))
        self.do(storage.write(Batch("s", snapshots=[a_snapshot("s", seq) for seq in range(12)])))
        for limit in (1, 5, 6, 11, 12, 13):
            found = self.pages(lambda **asked: storage.list_snapshots("s", **asked), limit)
            assert [snapshot.seq for snapshot in found] == list(range(12))

    def test_pages_are_stable_while_others_write(self, storage: SnapshotStorage) -> None:
        self.do(storage.write(Batch("s", snapshots=[a_snapshot("s", seq) for seq in range(0, 20, 2)])))
        first = self.do(storage.list_snapshots("s", limit=5))
        self.do(storage.write(Batch("s", snapshots=[a_snapshot("s", seq) for seq in range(1, 21, 2)])))
        self.do(storage.delete_snapshots("s", below_seq=4))
        found = [snapshot.seq for snapshot in first.items]
        cursor = first.cursor
        while cursor is not None:
            page = self.do(storage.list_snapshots("s", limit=5, cursor=cursor))
            found += [snapshot.seq for snapshot in page.items]
            cursor = page.cursor
        assert found == sorted(set(found))
        assert set(range(0, 20, 2)) <= set(found)

    def test_a_limit_or_cursor_that_is_none_is_refused(self, storage: SnapshotStorage) -> None:
        for limit in (0, -1):
            self.refused(UsageError, storage.list_sagas(limit=limit))
            self.refused(UsageError, storage.list_snapshots("s", limit=limit))
            self.refused(UsageError, storage.find_sagas(limit=limit))
            self.refused(UsageError, storage.prune(T0, batch=limit))
        for cursor in ("", "x", "1", "x:y", "1.5:x"):
            self.refused(UsageError, storage.list_snapshots("s", cursor=cursor))

    # ---- deleting

    def test_deleting_a_saga_leaves_the_others_and_the_replay_log(self, storage: SnapshotStorage) -> None:
        for saga_id in ("s", "s2", "r"):
            batch = Batch(saga_id, a_saga(saga_id), [an_event(saga_id, 0)], [a_snapshot(saga_id, 0)])
            self.do(storage.write(batch))
        self.do(storage.log_replay(a_replay("1", "s")))
        assert self.do(storage.delete_saga("s"))
        assert not self.do(storage.delete_saga("s"))
        assert self.do(storage.get_saga("s")) is None
        assert self.events(storage, "s") == []
        assert self.do(storage.get_snapshot("s/0")) is None
        assert self.do(storage.latest_snapshot("s", step="reserve")) is None
        assert self.do(storage.count_snapshots("s")) == 0
        assert list(self.do(storage.list_replays("s"))) == [a_replay("1", "s")]
        for saga_id in ("s2", "r"):
            assert self.do(storage.get_saga(saga_id)) == a_saga(saga_id)
            assert self.events(storage, saga_id) == [an_event(saga_id, 0)]
            assert self.do(storage.latest_snapshot(saga_id)) == a_snapshot(saga_id, 0)
        self.do(storage.write(Batch("s", a_saga("s", plan="new"), [an_event("s", 0, T0 + TICK)])))
        assert self.events(storage, "s") == [an_event("s", 0, T0 + TICK)]

    def test_deleting_old_snapshots(self, storage: SnapshotStorage) -> None:
        for saga_id in ("s", "t"):
            snapshots = [a_snapshot(saga_id, seq) for seq in range(6)]
            self.do(storage.write(Batch(saga_id, None, [an_event(saga_id, seq) for seq in range(6)], snapshots)))
        assert self.do(storage.delete_snapshots("s", below_seq=4)) == 4
        assert self.do(storage.delete_snapshots("s", below_seq=4)) == 0
        assert [snapshot.seq for snapshot in self.do(storage.list_snapshots("s")).items] == [4, 5]
        assert self.do(storage.latest_snapshot("s", step="reserve", max_seq=3)) is None
        assert self.do(storage.latest_snapshot("s", until=T0 + timedelta(seconds=3))) is None
        assert self.do(storage.get_snapshot("s/3")) is None
        assert self.do(storage.count_snapshots("t")) == 6
        assert len(self.events(storage, "s")) == 6

    def test_deleting_what_later_snapshots_are_based_on(self, storage: SnapshotStorage) -> None:
        snapshots = chain("s", 7, every=3)  # 0 1 2, 3 4 5, 6
        self.do(storage.write(Batch("s", snapshots=snapshots)))
        assert self.do(storage.delete_snapshots("s", below_seq=5)) == 5
        assert self.do(storage.delete_snapshots("s", below_seq=5)) == 0
        assert self.listed(storage, "s") == [5, 6]
        assert self.do(storage.count_snapshots("s")) == 2
        for seq in range(5):
            assert self.do(storage.get_snapshot(snapshots[seq].snapshot_id)) is None
        assert self.do(storage.latest_snapshot("s", max_seq=4)) is None
        found = self.do(storage.get_snapshot(snapshots[5].snapshot_id))
        assert found is not None
        assert bases_of(found) == [3, 4]
        assert self.do(storage.info()).snapshots == 4
        assert self.do(storage.delete_snapshots("s", below_seq=6)) == 1
        assert self.do(storage.info()).snapshots == 1
        assert self.listed(storage, "s") == [6]

    # ---- retention

    def test_what_stays_as_a_base_is_not_served_again_where_the_clock_goes_back(self, storage: SnapshotStorage) -> None:
        snapshots = chain("s", 4, every=4)
        snapshots[2] = snapshots[2]._replace(retention_until=T0)
        self.do(storage.write(Batch("s", snapshots=snapshots)))
        self.at(storage, T0 + timedelta(seconds=1))
        assert self.do(storage.delete_snapshots("s", below_seq=3)) == 2  # the third had expired
        self.at(storage, T0)
        assert self.do(storage.delete_snapshots("s", below_seq=3)) == 0
        assert self.listed(storage, "s") == [3]

    def test_a_refused_batch_keeps_nobody_elses_snapshots_from_being_pruned(self, storage: SnapshotStorage) -> None:
        """What it would have had to prune is nothing, and comes first."""
        kept = a_snapshot("a", 0, snapshot_id="mine")
        over = a_snapshot("a", 1, snapshot_id="over", retention_until=T0 + timedelta(seconds=1))
        self.do(storage.write(Batch("a", a_saga("a"), [], [kept, over])))
        taken = a_snapshot("b", 0, snapshot_id="mine", retention_until=T0)
        self.refused(DuplicateSagaError, storage.write(Batch("b", a_saga("b"), [], [taken])))
        assert self.do(storage.prune(T0 + timedelta(seconds=2), batch=1)) == 1
        assert self.do(storage.prune(T0 + timedelta(seconds=2))) == 0

    def test_expired_snapshots_are_not_served_though_nobody_pruned(self, storage: SnapshotStorage) -> None:
        now = T0 + timedelta(days=1)
        ends = [None, now - TICK, now, now + TICK, T0]
        self.at(storage, T0)
        snapshots = [a_snapshot("s", seq, retention_until=end) for seq, end in enumerate(ends)]
        self.do(storage.write(Batch("s", snapshots=snapshots)))
        assert self.listed(storage, "s") == [0, 1, 2, 3, 4]
        self.at(storage, now)
        for limit in (1, 2, 3, 100):
            found = self.pages(lambda **asked: storage.list_snapshots("s", **asked), limit)
            assert [snapshot.seq for snapshot in found] == [0, 2, 3]
        assert self.do(storage.count_snapshots("s")) == 3
        for seq in range(5):
            one = self.do(storage.get_snapshot(f"s/{seq}"))
            assert (one is not None) == (seq in (0, 2, 3))
        questions: Iterable[tuple[dict[str, Any], int]] = (
            ({}, 3),
            ({"step": "reserve"}, 3),
            ({"phase": "before", "max_seq": 1}, 0),
            ({"until": T0 + timedelta(seconds=1)}, 0),
            ({"until": T0 + timedelta(seconds=4)}, 3),
            ({"until": T0 + timedelta(seconds=4), "step": "reserve", "max_seq": 2}, 2),
        )
        for asked, seq in questions:
            latest = self.do(storage.latest_snapshot("s", **asked))
            assert latest is not None
            assert latest.seq == seq, asked
        self.at(storage, now + timedelta(days=1))
        latest = self.do(storage.latest_snapshot("s"))
        assert latest is not None
        assert latest.seq == 0

    def test_pruning_deletes_what_has_expired(self, storage: SnapshotStorage) -> None:
        now = T0 + timedelta(days=1)
        ends = [None, now - TICK, now, now + TICK, T0]
        self.at(storage, now)
        for saga_id in ("s", "t"):
            snapshots = [a_snapshot(saga_id, seq, retention_until=end) for seq, end in enumerate(ends)]
            self.do(storage.write(Batch(saga_id, snapshots=snapshots)))
        assert self.do(storage.prune(now)) == 4
        assert self.do(storage.prune(now)) == 0
        assert self.do(storage.info()).snapshots == 6
        self.at(storage, T0)
        for saga_id in ("s", "t"):
            assert self.listed(storage, saga_id) == [0, 2, 3]

    def test_many_expired_snapshots_go_in_small_batches(self, storage: SnapshotStorage) -> None:
        self.at(storage, T0)
        snapshots = [a_snapshot("s", seq, retention_until=T0) for seq in range(601)]
        self.do(storage.write(Batch("s", snapshots=[*snapshots, a_snapshot("s", 601)])))
        assert self.do(storage.prune(T0 + TICK, batch=100)) == 601
        assert self.do(storage.count_snapshots("s")) == 1

    def test_pruning_leaves_what_later_snapshots_are_based_on(self, storage: SnapshotStorage) -> None:
        ends = [T0 + timedelta(days=day) for day in (1, 2, 3, 4, 5, 6, 7)]
        snapshots = [one._replace(retention_until=end) for one, end in zip(chain("s", 7, every=3), ends, strict=True)]
        self.at(storage, T0)
        self.do(storage.write(Batch("s", snapshots=snapshots)))
        left = 7
        for day, kept, pruned in ((1, 7, 0), (2, 7, 0), (3, 4, 3), (4, 4, 0), (5, 4, 0), (6, 1, 3), (7, 0, 1)):
            now = T0 + timedelta(days=day) + TICK
            self.at(storage, now)
            assert self.do(storage.prune(now, batch=2)) == pruned, day
            left -= pruned
            assert self.do(storage.info()).snapshots == left == kept
            found = self.do(storage.list_snapshots("s")).items
            assert [snapshot.seq for snapshot in found] == list(range(day, 7))
            assert [bases_of(snapshot) for snapshot in found] == [
                list(range(snapshot.seq - snapshot.seq % 3, snapshot.seq)) for snapshot in found
            ]

    # ---- the replay log

    def test_a_replay_is_replaced_by_its_id(self, storage: SnapshotStorage) -> None:
        self.do(storage.log_replay(a_replay("1", "s")))
        self.do(storage.log_replay(a_replay("2", "s")))
        ended = a_replay("1", "s", status="completed", completed_at=T0 + TICK)
        self.do(storage.log_replay(ended))
        assert list(self.do(storage.list_replays("s"))) == [ended, a_replay("2", "s")]

    def test_replays_come_oldest_first(self, storage: SnapshotStorage) -> None:
        for replay_id, second in (("1", 3), ("3", 1), ("2", 1), ("0", 2)):
            self.do(storage.log_replay(a_replay(replay_id, "s", created_at=T0 + timedelta(seconds=second))))
        self.do(storage.log_replay(a_replay("9", "t")))
        assert [replay.replay_id for replay in self.do(storage.list_replays("s"))] == ["2", "3", "0", "1"]

    # ---- for many replays at a time

    def test_what_replays_ask_for_together_is_what_the_other_methods_say(self, storage: SnapshotStorage) -> None:
        if not answers_together(storage):
            return  # nothing is gained by it there
        frames, at = FrameWriter(), T0 + timedelta(seconds=1)
        for saga_id in ("s", "t"):
            steps = (("a", "before"), ("a", "after"), ("b", "before"), ("b", "before"), ("b", "undone"), ("", "final"))
            snapshots = [
                frames.frame(
                    a_snapshot(saga_id, 2 * n, at, step_name=step, phase=phase, snapshot_id=f"{saga_id}{n}"), b"%d" % n
                )
                for n, (step, phase) in enumerate(steps)
            ]
            events = [an_event(saga_id, seq) for seq in range(12)]
            self.do(storage.write(Batch(saga_id, a_saga(saga_id), events, snapshots)))
            frames.begin_again()
        self.do(storage.write(Batch("journal", a_saga("journal"), [an_event("journal", 0)])))
        self.do(storage.write(Batch("bare", None, (), [a_snapshot("bare", 3, retention_until=T0)])))
        asked = [(name, step) for name in ("s", "t", "journal", "bare", "nobody", "nul\0") for step in ("a", "b", "\0")]
        for (saga_id, step), found in zip(asked, self.do(storage.read_checkpoints(asked)), strict=True):
            before = self.do(storage.latest_snapshot(saga_id, step=step, phase="before"))
            last = self.do(storage.latest_snapshot(saga_id))
            events = self.events(storage, saga_id, after_seq=-1 if before is None else before.seq)
            assert found.saga == self.do(storage.get_saga(saga_id))
            assert found.before == before
            assert found.last_seq == (None if last is None else last.seq)
            assert list(found.events) == [(event.seq, event.kind, event.step) for event in events]

    def test_replays_that_are_logged_together_are_logged_as_each_would_be(self, storage: SnapshotStorage) -> None:
        if not answers_together(storage):
            return
        naive = a_replay("3", "s", created_at=T0.replace(tzinfo=None))
        last = a_replay("1", "s", status="completed", completed_at=T0 + TICK, error="\0")
        records = [a_replay("1", "s"), a_replay("2", "t", error="\ud800"), naive, a_replay("4", "t"), last]
        results = self.do(storage.log_replays(records))
        assert [type(result) for result in results] == [type(None), UsageError, NaiveTimeError, type(None), type(None)]
        assert list(self.do(storage.list_replays("s"))) == [last]
        assert list(self.do(storage.list_replays("t"))) == [a_replay("4", "t")]

    # ---- nothing there, nothing left

    def test_what_is_not_there_is_none_or_nothing(self, storage: SnapshotStorage) -> None:
        for saga_id in ("nobody", "", "x" * 300, *HOSTILE):
            assert self.do(storage.get_saga(saga_id)) is None
            assert self.do(storage.get_snapshot(saga_id)) is None
            assert self.do(storage.latest_snapshot(saga_id)) is None
            assert self.do(storage.latest_snapshot(saga_id, step="a", phase="b", until=T0, max_seq=3)) is None
            assert self.do(storage.list_snapshots(saga_id)) == Page([], None)
            assert self.events(storage, saga_id) == []
            assert self.events(storage, saga_id, after_seq=3, until=T0) == []
            assert self.do(storage.count_snapshots(saga_id)) == 0
            assert self.do(storage.delete_snapshots(saga_id, below_seq=9)) == 0
            assert self.do(storage.delete_saga(saga_id)) is False
            assert list(self.do(storage.list_replays(saga_id))) == []
        assert self.do(storage.list_sagas()) == Page([], None)
        assert self.do(storage.find_sagas()) == Page([], None)
        assert self.do(storage.find_sagas(status="failed", tags={"a": "b"}, failed_between=(T0, T0))).items == []
        assert self.do(storage.prune(T0)) == 0

    def test_info_counts_what_is_stored(self, storage: SnapshotStorage) -> None:
        self.do(storage.write(Batch("s", a_saga("s"), [an_event("s", n) for n in range(3)], [a_snapshot("s", 1)])))
        self.do(storage.write(Batch("t", None, [an_event("t", 0)])))
        self.do(storage.log_replay(a_replay("r", "s")))
        info = self.do(storage.info())
        assert (info.url, info.sagas, info.events, info.snapshots, info.replays) == (storage.url, 1, 4, 1, 1)
        assert info.bytes > 0
        assert info.schema_version >= 1

    def test_upgrading_is_done_once_and_loses_nothing(self, storage: SnapshotStorage) -> None:
        version = self.do(storage.upgrade())
        self.do(storage.write(Batch("s", a_saga("s"))))
        assert self.do(storage.upgrade()) == version == self.do(storage.info()).schema_version
        assert self.do(storage.get_saga("s")) == a_saga("s")

    def test_closing_twice_is_no_error(self, storage: SnapshotStorage) -> None:
        self.do(storage.write(Batch("s", a_saga("s"))))
        self.do(storage.close())
        self.do(storage.close())

    def test_it_is_a_store(self, storage: SnapshotStorage) -> None:
        assert isinstance(storage, SnapshotStorage)
        assert "://" in storage.url
