"""Pseudonyms: of the same type, equal where the values were, and nothing of the secret is left."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from sagaz_core import Recording, Saga
from sagaz_core.errors import UsageError
from sagaz_core.storage.memory import InMemorySnapshotStorage
from sagaz_core.storage.records import unpack_state
from sagaz_core.virtual_time import run


@dataclass(frozen=True)
class Card:
    number: str
    year: int


class Person(BaseModel):
    model_config = ConfigDict(extra="allow")
    email: str
    friends: list[str] = []


class Pair(NamedTuple):
    email: str
    n: int


SECRET = "ada@example.com"


def recorded(context: Any, *, says: str = "", result: Any = None, saga_id: str = "S") -> Recording:
    store = InMemorySnapshotStorage()

    def fails(ctx: Any) -> None:
        raise OSError(says)

    saga: Saga[Any] = (
        Saga("s", snapshot_storage=store)
        .add_step("a", lambda ctx: result, lambda ctx: {"told": says})
        .add_step("b", fails)
    )
    run(saga.run(context, saga_id=saga_id))
    return run(Recording.from_storage(store, saga_id))


def text_of(made: Recording) -> str:
    return json.dumps(made.to_json(), ensure_ascii=False)


def test_the_secret_is_nowhere_in_the_file() -> None:
    made = recorded(
        {
            "email": SECRET,
            "copy": SECRET,
            "deep": [{"email": SECRET, "note": f"write to <{SECRET}>"}],
            "by_address": {SECRET: 1},
            "person": Person(email=SECRET, friends=[SECRET], email2=SECRET),  # type: ignore[call-arg]
            "pair": Pair(SECRET, 1),
            "raw": f"x {SECRET}".encode(),
            "path": PurePosixPath(f"/home/{SECRET}/x"),
            "other": "stays",
        },
        says=f"mail to {SECRET} bounced",
        result={"email": SECRET, "sent_to": SECRET},
        saga_id=f"order of {SECRET}",
    )
    assert SECRET in text_of(made)
    hidden = made.redacted(["email"], "key")
    assert SECRET not in text_of(hidden)
    assert SECRET not in json.dumps([unpack_state(s).to_data() for s in hidden.snapshots], default=repr)
    first = hidden.events[0].context  # type: ignore[union-attr]
    pseudonym = first["email"]
    assert pseudonym.startswith("redacted-")
    assert first["copy"] == first["person"].friends[0] == first["pair"].email == pseudonym
    assert first["deep"][0]["note"] == f"write to <{pseudonym}>"
    assert list(first["by_address"]) == [pseudonym]
    assert first["other"] == "stays"
    assert str(hidden.state.error) == f"OSError: mail to {pseudonym} bounced"
    assert hidden.saga_id == f"order of {pseudonym}"
    assert hidden.state.saga_id == hidden.saga_id == unpack_state(hidden.snapshots[0]).saga_id


def test_the_ids_of_snapshots_do_not_show_what_is_hidden_in_their_sagas() -> None:
    made = recorded({"number": 42}, saga_id="42")
    assert [one.snapshot_id for one in made.snapshots] == [f"42@{one.seq}" for one in made.snapshots]
    hidden = made.redacted(["number"], "key")
    assert [one.snapshot_id for one in hidden.snapshots] == [f"{hidden.saga_id}@{one.seq}" for one in hidden.snapshots]


def test_a_redacted_recording_can_be_saved_and_loaded(tmp_path: Any) -> None:
    hidden = recorded({"email": SECRET, "card": Card("4111", 2030)}).redacted(["email", "number"], "key")
    hidden.save(tmp_path / "r.json")
    assert Recording.load(tmp_path / "r.json") == hidden


def test_a_large_state_is_redacted_too() -> None:
    made = recorded({"email": SECRET, "text": f"{SECRET} and more " * 2000})
    hidden = made.redacted(["email"], "key")
    assert SECRET not in text_of(hidden)


def test_a_number_is_hidden_where_it_stands_by_itself() -> None:
    made = recorded(
        {"card": 4111111111111111, "total": Decimal("1234.50"), "x": "4111111111111111", "y": "a4111111111111111"},
        says="card 4111111111111111 declined for 1234.50 (1,234.50)",
    )
    hidden = made.redacted(["card", "total"], "key")
    assert "card 4111111111111111" not in text_of(hidden)
    assert "1234.50" not in text_of(hidden)
    assert "1,234.50" not in text_of(hidden)
    assert hidden.events[0].context["y"] == "a4111111111111111"  # type: ignore[union-attr]


values = st.one_of(
    st.text(),
    st.integers(-(10**15), 10**15),
    st.floats(allow_nan=False, allow_infinity=False),
    st.decimals(allow_nan=False, allow_infinity=False, places=2),
    st.dates(),
    st.times(),
    st.timedeltas(timedelta(days=-999), timedelta(days=999)),
    st.uuids(),
    st.binary(),
    st.builds(datetime, st.integers(1, 9999), st.just(1), st.just(1), tzinfo=st.just(UTC)),
)
trees = st.recursive(
    values, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)


def shape(value: Any) -> Any:
    if isinstance(value, dict):
        return {type(key): None for key in value}, [shape(v) for v in value.values()]
    return [shape(item) for item in value] if isinstance(value, list) else type(value)


@settings(max_examples=60, deadline=None)
@given(trees)
def test_pseudonyms_have_the_types_of_what_they_stand_for_and_are_equal_where_that_was(value: Any) -> None:
    made = recorded({"k": value, "again": {"k": value}, "kept": [1, "ab"]})
    first = made.redacted(["k"], "key").events[0].context  # type: ignore[union-attr]
    assert shape(first["k"]) == shape(value)
    assert first["again"]["k"] == first["k"]
    again = made.redacted(["k"], b"key").events[0].context  # type: ignore[union-attr]
    assert again == first


def test_another_key_gives_other_pseudonyms() -> None:
    made = recorded({"email": SECRET})
    assert made.redacted(["email"], "one") != made.redacted(["email"], "two")


@pytest.mark.parametrize("value", [None, True, date(2026, 1, 1), time(1, 2), UUID(int=3), 0, -5, 12.5, b"", ""])
def test_a_value_keeps_its_type(value: Any) -> None:
    hidden = recorded({"k": value}).redacted(["k"], "key").events[0].context["k"]  # type: ignore[union-attr]
    assert type(hidden) is type(value)


@pytest.mark.parametrize(
    ("keys", "secret", "message"),
    [([], "k", "no keys"), (["email"], "", "needs a key"), (["emial"], "k", "did you mean 'email'")],
)
def test_what_cannot_be_redacted_is_said(keys: Any, secret: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        recorded({"email": SECRET}).redacted(keys, secret)
