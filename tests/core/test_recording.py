"""One saga's history as one file."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from dags import Watched, World, build, shapes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sagaz_core import Recording, ReplayConfig, Saga
from sagaz_core.errors import (
    CorruptDataError,
    DamagedSnapshotError,
    NewerFormatError,
    SagazError,
    UnknownSagaError,
    UnknownStepError,
    UnknownTypeError,
    UsageError,
)
from sagaz_core.state import SagaStatus
from sagaz_core.storage import frames, records
from sagaz_core.storage.codec import decode
from sagaz_core.storage.memory import InMemorySnapshotStorage
from sagaz_core.storage.records import unpack_state
from sagaz_core.virtual_time import run

if TYPE_CHECKING:
    from pathlib import Path


class Colour(Enum):
    RED = 1


CONTEXT = {
    "amount": Decimal("1.50"),
    "at": datetime(2026, 1, 1, tzinfo=UTC),
    "day": date(2026, 1, 2),
    "wait": timedelta(seconds=3),
    "id": UUID(int=7),
    "raw": b"\x00\xff",
    "pair": (1, {2, 3}),
    "by_number": {1: "one", 2: [Colour.RED]},
    "text": "grüße\u2028 \udc80"[:-2],
    "$type": "looks like a tag",
}


def recording(context: Any = None, *, failing: bool = True, saga_id: str = "S", **config: Any) -> Recording:
    store = InMemorySnapshotStorage()

    def last(ctx: Any) -> Any:
        if failing:
            raise OSError("down")
        return {"done": True}

    saga: Saga[Any] = (
        Saga("order", snapshot_storage=store, replay_config=ReplayConfig(**config))
        .add_step("a", lambda ctx: {"a": Decimal(2)}, lambda ctx: ("undid", 1))
        .add_step("b", last)
    )

    async def main() -> Recording:
        await saga.run(CONTEXT if context is None else context, saga_id=saga_id)
        return await Recording.from_storage(store, saga_id)

    return run(main())


def everything(made: Recording) -> Any:
    """All that a recording says. Two snapshots of one state may be encoded in different parts."""
    snapshots = [(s._replace(data=b""), unpack_state(s).to_data()) for s in made.snapshots]
    return made.record, made.events, snapshots


@pytest.mark.parametrize("failing", [False, True])
@pytest.mark.parametrize("strategy", ["before_each_step", "manual"])
def test_what_is_saved_is_loaded_again(tmp_path: Path, failing: bool, strategy: Any) -> None:
    made = recording(failing=failing, snapshot_strategy=strategy)
    path = tmp_path / "r.json"
    made.save(path)
    again = Recording.load(path)
    assert everything(again) == everything(made)
    assert again.state.to_data() == made.state.to_data()
    text = path.read_bytes()
    again.save(path)
    assert path.read_bytes() == text
    assert text.endswith(b"}\n")
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shapes(5))
def test_any_saga_survives_the_file(tmp_path: Path, shape: Any) -> None:
    store = InMemorySnapshotStorage()
    saga = build(shape, World())
    saga.snapshot_storage = store
    run(Watched(saga).run({"start": 1}))
    made = run(Recording.from_storage(store, "S"))
    made.save(tmp_path / "r.json")
    again = Recording.load(tmp_path / "r.json")
    assert everything(again) == everything(made)
    other = InMemorySnapshotStorage()
    run(again.to_storage(other))
    assert everything(run(Recording.from_storage(other, "S"))) == everything(made)


def test_large_states_survive_too(tmp_path: Path) -> None:
    made = recording({"text": "again and again " * 2000})
    made.save(tmp_path / "r.json")
    again = Recording.load(tmp_path / "r.json")
    assert len(again.snapshots[0].data) < 2000
    assert everything(again) == everything(made)


def test_reading_a_recording_decodes_no_event_twice_and_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    store = InMemorySnapshotStorage()
    saga: Saga[Any] = Saga("order", snapshot_storage=store)
    for name in ("first", "second", "third"):
        saga.add_step(f"{name}_read", lambda ctx: {"done": 1}, lambda ctx: None)
    for number in range(4):
        run(saga.run(CONTEXT, saga_id=f"S-{number}"))
    decoded: list[bytes] = []
    monkeypatch.setattr(records, "decode", lambda data, **_: decoded.append(data) or decode(data))
    monkeypatch.setattr(records, "_common", {})  # as in a new process
    monkeypatch.setattr(frames, "_Frame", None)  # what takes a frame apart
    found = [run(Recording.from_storage(store, f"S-{number}")) for number in range(4)]
    same = 4  # the starts of the three steps, and the end, are the same in all four
    assert len(decoded) == same + 4 * (len(found[0].events) - same) == 20
    assert [one.status for one in found] == [SagaStatus.COMPLETED] * 4


def test_a_damaged_snapshot_is_found_by_who_reads_its_state(tmp_path: Path) -> None:
    store = InMemorySnapshotStorage()
    saga: Saga[Any] = Saga("order", snapshot_storage=store).add_step("a", lambda ctx: {"a": 1})
    run(saga.run(CONTEXT, saga_id="S"))
    run(Recording.from_storage(store, "S")).save(tmp_path / "r.json")
    made = Recording.load(tmp_path / "r.json")
    (tmp_path / "r.json").unlink()
    first, *others = made.snapshots
    damaged = replace(made, snapshots=(first._replace(data=first.data[:-1] + b"?"), *others))
    assert damaged.state_before("a").context == CONTEXT
    other = InMemorySnapshotStorage()
    for use in (lambda: damaged.save(tmp_path / "r.json"), lambda: run(damaged.to_storage(other))):
        with pytest.raises(DamagedSnapshotError, match="checksum"):
            use()
    assert not list(tmp_path.iterdir())
    assert run(other.get_saga("S")) is None


def test_two_recordings_differ_in_lines_that_say_what_differs(tmp_path: Path) -> None:
    def lines_of(context: Any) -> set[str]:
        return set(json.dumps(recording(context, failing=False).to_json()["events"][0], indent=1).splitlines())

    lines = [lines_of({"x": 1, "y": 2}), lines_of({"x": 1, "y": 3})]
    changed = {line.strip() for line in lines[0] ^ lines[1]}
    assert {'"y": 2'} <= changed
    assert not any('"x"' in line for line in changed)


def test_a_recording_says_what_happened() -> None:
    made = recording()
    assert (made.saga_id, made.saga_name, made.status, made.completed, made.failed_step) == (
        *("S", "order", "rolled_back", False, "b"),
    )
    assert made.context == CONTEXT
    assert made.reached == ("a", "b")
    assert made.state_before("b").results == {"a": {"a": Decimal(2)}}
    assert [served.step for served in made.served_before("b")] == ["a"]
    assert made.state_at(-1).status == "pending"
    with pytest.raises(UnknownStepError, match="no checkpoint before 'bb'"):
        made.state_before("bb")


def test_a_saga_without_a_journal_is_no_recording() -> None:
    with pytest.raises(UsageError, match="captured without a journal"):
        recording(journal=False)


def test_a_served_step_has_a_checkpoint_too() -> None:
    from sagaz_core.engine.run import RunOptions, run_saga, served_from

    made = recording(failing=False)
    store = InMemorySnapshotStorage()
    saga: Saga[Any] = Saga("order").add_step("a", print, print).add_step("b", lambda ctx: None)
    served = served_from(made.state_before("b"))
    run(run_saga(saga, {"x": 1}, saga_id="R", served=served, options=RunOptions(storage=store)))
    replay = run(Recording.from_storage(store, "R"))
    assert replay.reached == ("a", "b")
    assert replay.state_before("a").results == {}
    assert replay.served_before("a") == ()


# ---- files from anywhere


def content() -> Any:
    return json.loads(json.dumps(recording().to_json()))


def load(data: Any, tmp_path: Path) -> Recording:
    path = tmp_path / "hostile.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return Recording.load(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no JSON"),
        ("{", "no JSON"),
        ("[]", "does not say format"),
        ('{"format": "sagaz-recording"}', "no format version"),
        ('{"format": "sagaz-recording", "version": true}', "no format version that was ever written: True"),
        ('{"format": "sagaz-recording", "version": 2}', "upgrade pytest-sagaz"),
        ('{"format": "sagaz-recording", "version": 1}', "is damaged"),
        ("[" * 100_000, "no JSON"),
        ("9" * 10_000, "is not a recording"),
        ('{"format": "sagaz-recording", "version": 1, "saga": 1, "events": [], "snapshots": []}', "is damaged"),
    ],
)
def test_a_file_that_is_no_recording_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(NewerFormatError if "upgrade" in message else CorruptDataError, match=message) as caught:
        load(text, tmp_path)
    assert "hostile.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_a_folder_or_no_text_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UnknownSagaError, match="no recording"):
        Recording.load(tmp_path / "none.json")
    with pytest.raises(UnknownSagaError, match="is a folder"):
        Recording.load(tmp_path)
    (tmp_path / "b.json").write_bytes(b"\xff\xfe")
    with pytest.raises(CorruptDataError, match="no JSON"):
        Recording.load(tmp_path / "b.json")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c["events"].pop(3), "cannot follow event"),
        (lambda c: c["events"].pop(0), "cannot follow event"),
        (lambda c: c["events"].clear(), "has no events"),
        (lambda c: c["events"][0].update(saga_id="T"), "do not begin with the start of its saga"),
        (lambda c: c["events"][1].update(kind="SagaStopped"), "is damaged"),
        (lambda c: c["events"][0].update(context=[]), "context"),
        (lambda c: c["events"][1].update(attempt="1"), "attempt"),
        (lambda c: c["events"][1].update(at="2026-01-01"), "timezone"),
        (lambda c: c["events"][1].update(at="0001-01-01T00:00:00+23:59"), "is damaged"),
        (lambda c: c["saga"].update(saga_id=""), "not a saga id"),
        (lambda c: c["saga"]["model"]["steps"][0].update(timeout="soon"), "timeout of a step"),
        (lambda c: c["saga"]["model"]["steps"][0].update(depends_on=["b"]), "circle"),
        (lambda c: c["snapshots"][0].update(seq=1e400), "no number of an event"),
        (lambda c: c["snapshots"][0]["state"].update(context=[]), "damaged"),
        (lambda c: c["snapshots"][0]["state"].update(layers={"a": 1}), "damaged"),
    ],
)
def test_a_damaged_recording_says_where(tmp_path: Path, damage: Any, message: str) -> None:
    data = content()
    damage(data)
    with pytest.raises(SagazError, match=message) as caught:
        load(data, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_class_that_is_not_loaded_is_not_imported(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    recording({"colour": Colour.RED}).save(path)
    path.write_text(path.read_text().replace(f"{__name__}:Colour", "antigravity:Colour"))
    with pytest.raises(UnknownTypeError, match="antigravity") as caught:
        Recording.load(path)
    assert "antigravity" not in sys.modules
    assert caught.value.type_name == "antigravity:Colour"


PLACES = st.lists(st.integers(0, 10**6), min_size=1, max_size=8)
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(10**20, 10**30),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["$", "$type", "2026-01-01T00:00:00Z", "StepStarted", "os:system", "builtins:eval", {}, [], [[]]]),
    st.builds(lambda depth: json.loads("[" * depth + "]" * depth), st.integers(1, 90)),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(PLACES, JUNK, st.sampled_from(["put", "drop", "double"])), min_size=1, max_size=3))
def test_whatever_is_changed_in_a_file_it_loads_or_is_refused_in_one_line(tmp_path: Path, changes: Any) -> None:
    data = copy.deepcopy(_CONTENT)
    for path, junk, how in changes:
        _change(data, path, junk, how)
    try:
        text = json.dumps(data)
    except (ValueError, RecursionError):
        return
    modules, message = set(sys.modules), ""
    try:
        made = load(text, tmp_path)
        assert made.state.saga_id == made.saga_id
        made.to_json()
        for snapshot in made.snapshots:
            unpack_state(snapshot)
    except SagazError as error:
        message = str(error)
    assert "\n" not in message
    # Nothing that the file names; what packs states comes with the first one.
    assert {name.partition(".")[0] for name in set(sys.modules) - modules} <= {"zstandard"}


def _change(data: Any, path: list[int], junk: Any, how: str) -> None:
    while True:
        places = list(data) if isinstance(data, dict) else list(range(len(data)))
        if not places:
            return
        place = places[path[0] % len(places)]
        path = path[1:]
        if path and isinstance(data[place], (dict, list)) and data[place]:
            data = data[place]
        elif how == "put":
            data[place] = junk
            return
        elif how == "drop":
            del data[place]
            return
        else:
            data[place] = [data[place], data[place]]
            return


_CONTENT = json.loads(json.dumps(recording().to_json()))


def test_a_recording_is_loaded_without_the_application(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    recording({"x": 1}).save(path)
    script = f"from sagaz_core import Recording; print(Recording.load({str(path)!r}).status)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "rolled_back\n"
