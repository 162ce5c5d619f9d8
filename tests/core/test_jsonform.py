"""The JSON form keeps what the codec keeps, and a person can read it."""

from __future__ import annotations

import contextlib
import datetime as dt
import enum
import gc
import json
import pathlib
import threading
import uuid
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import freezegun
import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, example, given, settings
from pydantic import BaseModel

from sagaz_core.errors import CannotStoreError, CodecError, CorruptDataError, UnknownTypeError
from sagaz_core.storage.codec import Opaque, decode, encode, opaque_class
from sagaz_core.storage.jsonform import from_json, parse_json, to_json


class Color(enum.Enum):
    RED = 1


class Perm(enum.Flag):
    R = 1
    W = 2


class Point(NamedTuple):
    x: Any
    y: Any = 0


@dataclass(frozen=True)
class Order:
    id: Any
    total: Any = Decimal("12.50")


class Line(BaseModel):
    sku: str
    price: Decimal = Decimal(1)


unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

FORMS: list[tuple[Any, Any]] = [
    (None, None),
    ({"a": [1, -1.5, True, "x"]}, {"a": [1, -1.5, True, "x"]}),
    (2**64, {"$int": "18446744073709551616"}),
    (float("inf"), {"$float": "inf"}),
    ("a\ud800", {"$str": "a\\ud800"}),
    (b"\x00\xff", {"$bytes": "AP8="}),
    (bytearray(b"x"), {"$bytearray": "eA=="}),
    (Decimal("12.50"), {"$decimal": "12.50"}),
    (Fraction(-3, 4), {"$fraction": "-3/4"}),
    (1 - 2j, {"$complex": "(1-2j)"}),
    (uuid.UUID(int=1), {"$uuid": "00000000-0000-0000-0000-000000000001"}),
    ((1, (2,)), {"$tuple": [1, {"$tuple": [2]}]}),
    ({"b", "a", "cc"}, {"$set": ["a", "b", "cc"]}),
    (frozenset({10, 9}), {"$frozenset": [9, 10]}),
    ({1: "a", "b": 2}, {"$dict": [[1, "a"], ["b", 2]]}),
    ({"$decimal": "1"}, {"$dict": [["$decimal", "1"]]}),
    (OrderedDict(a=1), {"$ordereddict": [["a", 1]]}),
    (defaultdict(list, a=[1]), {"$defaultdict": [["a", [1]]], "factory": "list"}),
    (Counter("aa"), {"$counter": [["a", 2]]}),
    (deque([1], 3), {"$deque": [1], "maxlen": 3}),
    (dt.datetime(2026, 7, 15, 14, 30, tzinfo=dt.UTC), {"$datetime": "2026-07-15T14:30:00+00:00"}),
    (
        dt.datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
        {"$datetime": "2026-10-25T02:30:00+01:00[fold=1][Europe/Berlin]"},
    ),
    (dt.date(2026, 7, 15), {"$date": "2026-07-15"}),
    (dt.time(14, 30), {"$time": "14:30:00"}),
    (dt.timedelta(days=1, seconds=2, microseconds=3), {"$timedelta": "P1DT2.000003S"}),
    (ZoneInfo("Europe/Berlin"), {"$zoneinfo": "Europe/Berlin"}),
    (pathlib.PurePosixPath("a/b"), {"$pureposixpath": "a/b"}),
    (Color.RED, {"$enum": f"{__name__}:Color", "name": "RED"}),
    (Perm.R | Perm.W, {"$flag": f"{__name__}:Perm", "value": 3}),
    (Point(1), {"$namedtuple": f"{__name__}:Point", "fields": {"x": 1, "y": 0}}),
    (Order(1), {"$dataclass": f"{__name__}:Order", "fields": {"id": 1, "total": {"$decimal": "12.50"}}}),
    (
        Line(sku="$"),
        {"$pydantic": f"{__name__}:Line", "fields": {"sku": "$", "price": {"$decimal": "1"}}, "unset": ["price"]},
    ),
]


@pytest.mark.parametrize(("value", "form"), FORMS, ids=[json.dumps(form)[:40] for _, form in FORMS])
def test_each_type_has_a_form_that_a_person_can_read(value: Any, form: Any) -> None:
    assert to_json(value) == form
    back = from_json(json.loads(json.dumps(form)))
    assert type(back) is type(value)
    assert back == value


KEYS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**80), 2**80),
    st.floats(allow_nan=False),
    st.text(),
    st.text(st.characters(categories=["Cs", "L"])),
    st.binary(),
    st.decimals(allow_nan=False),
    st.fractions(),
    st.datetimes(timezones=st.timezones() | st.none()),
    st.timedeltas(),
    st.dates(),
    st.uuids(),
    st.just(Color.RED),
)
TREES = st.recursive(
    KEYS | st.builds(bytearray, st.binary()) | st.floats(),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.lists(inner, max_size=4).map(deque),
        st.dictionaries(st.text(), inner, max_size=4),
        st.dictionaries(st.sampled_from(["$set", "$dict", "$", "a"]), inner, max_size=4),
        st.dictionaries(KEYS, inner, max_size=4),
        st.dictionaries(KEYS, inner, max_size=4).map(OrderedDict),
        st.sets(KEYS, max_size=4),
        st.builds(Point, inner, inner),
        st.builds(Order, inner),
    ),
    max_leaves=12,
)


@unhurried
@given(TREES)
def test_the_json_form_and_its_text_come_back_to_the_same_bytes(value: Any) -> None:
    data = encode(value)
    form = to_json(value)
    assert encode(from_json(form)) == data
    text = json.dumps(form, allow_nan=False)
    assert text.encode().decode() == text
    assert encode(from_json(json.loads(text))) == data
    assert encode(from_json(json.loads(json.dumps(form, ensure_ascii=False)))) == data
    assert to_json(from_json(form)) == form


def test_the_form_shares_nothing_with_the_value() -> None:
    value = {"a": [1]}
    form = to_json(value)
    back = from_json(form)
    value["a"].append(2)
    back["a"].append(3)
    assert form == {"a": [1]}


def test_a_mixed_set_is_in_one_order() -> None:
    form = to_json({"a", 1, None, (1, 2), Decimal(1)} - {1} | {1})
    assert form == to_json({(1, 2), 1, None, "a"})


def test_a_frozen_clock_changes_nothing() -> None:
    with freezegun.freeze_time("2026-07-15T14:30:00"):
        value = {"at": dt.datetime.now(dt.UTC), "day": dt.date.today()}  # noqa: DTZ011
        form = to_json(value)
        back = from_json(form)
    assert form == {"at": {"$datetime": "2026-07-15T14:30:00+00:00"}, "day": {"$date": "2026-07-15"}}
    assert [type(item) for item in back.values()] == [dt.datetime, dt.date]


def test_an_unknown_class_can_be_shown_and_kept() -> None:
    form = {"a": {"$dataclass": "shop.gone:Order", "fields": {"id": {"$enum": "shop.gone:Color", "name": "RED"}}}}
    with pytest.raises(UnknownTypeError, match=r"'shop\.gone:Color'"):
        from_json(form)
    value = from_json(form, resolve=opaque_class)
    assert value["a"].fields["fields"]["id"] == Opaque("shop.gone:Color", "enum", {"name": "RED"})
    assert to_json(value) == form
    assert to_json(decode(encode(value), resolve=opaque_class)) == form


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"order": {"lines": [0, Order(object())]}}, "context['order']['lines'][1].id"),
        ({(1, 2): object()}, "context[<tuple>]"),
        ({"s": {object()}}, "context['s']<element>"),
    ],
)
def test_what_cannot_be_stored_is_an_error_that_says_where(value: Any, path: str) -> None:
    with pytest.raises(CannotStoreError, match="'object' cannot be stored") as caught:
        to_json(value)
    assert caught.value.path == path
    with pytest.raises(CannotStoreError, match=r"^result"):
        to_json(value, "result")


@pytest.mark.parametrize("wrap", [lambda x: [x], lambda x: {"k": x}, lambda x: (x,), Order])
def test_depth_ends_in_an_error_never_in_a_crash(wrap: Any) -> None:
    def nest(depth: int) -> Any:
        value: Any = 1
        for _ in range(depth):
            value = wrap(value)
        return value

    form = to_json(nest(150))
    assert to_json(from_json(form)) == form
    with pytest.raises(CannotStoreError, match="nested deeper"):
        to_json(nest(300))
    cycle: list[Any] = []
    cycle.append(wrap(cycle))
    with pytest.raises(CannotStoreError, match="contains itself"):
        to_json(cycle)


def deep(depth: int, make: Any) -> Any:
    form: Any = 1
    for _ in range(depth):
        form = make(form)
    return form


@pytest.mark.parametrize(
    "form",
    [
        {"$nothing": 1},
        {"$": 1},
        {"$raw": "AA=="},
        {"$decimal": "1", "$set": []},
        {"$decimal": "1", "more": 1},
        {"$decimal": 1},
        {"$decimal": "x"},
        {"$decimal": {"$set": []}},
        {"$int": "1e5"},
        {"$int": "9" * 5000},
        {"$bytes": "?"},
        {"$bytes": 1},
        {"$bytes": "ü"},
        {"$tuple": "ab"},
        {"$set": [[1]]},
        {"$set": {"a": 1}},
        {"$dict": [[1]]},
        {"$dict": [[[], 1]]},
        {"$dict": [1]},
        {"$deque": [1]},
        {"$deque": [1], "maxlen": -1},
        {"$defaultdict": [], "factory": "eval"},
        {"$fraction": "1/0"},
        {"$datetime": "yesterday"},
        {"$datetime": "2026-01-01T00:00:00[../x]"},
        {"$zoneinfo": "../../etc/passwd"},
        {"$enum": 5, "name": "RED"},
        {"$enum": f"{__name__}:Color"},
        {"$enum": f"{__name__}:Color", "name": "GREEN"},
        {"$enum": "os:environ", "name": "RED"},
        {"$dataclass": f"{__name__}:Order", "fields": []},
        {"$dataclass": f"{__name__}:Color", "fields": {}},
        {"$pydantic": f"{__name__}:Line", "fields": {}, "extra": 1},
        {1: 2},
        {"a": {None: 1}},
        {"a": {1, 2}},
        object(),
        deep(2_000, lambda form: [form]),
        deep(2_000, lambda form: {"k": form}),
        deep(2_000, lambda form: {"$tuple": [form]}),
    ],
)
def test_hostile_forms_are_an_error_in_one_line(form: Any) -> None:
    with pytest.raises(CodecError) as caught:
        from_json({"a": [form]})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_damage_is_named_with_its_place() -> None:
    with pytest.raises(CorruptDataError, match=r"^\$\['a'\]\[1\]\['b'\]: stored data is damaged: not a decimal"):
        from_json({"a": [1, {"b": {"$decimal": "x"}}]})


def test_more_values_than_the_limit_are_not_read() -> None:
    with pytest.raises(CorruptDataError, match="limit"):
        from_json([[1] * 10] * 10, limit=100)
    assert from_json([[1] * 10] * 10, limit=110)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(), inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                [next(iter(form)) for _, form in FORMS if isinstance(form, dict)]
                + ["fields", "name", "value", "factory", "maxlen", "unset", "private"]
            ),
            inner | st.just(f"{__name__}:Color") | st.just(f"{__name__}:Line"),
            min_size=1,
            max_size=3,
        ),
    ),
    max_leaves=10,
)


@settings(unhurried, max_examples=500)
@given(JSON)
@example({"$str": "\\ud8"})
def test_any_json_gives_a_value_or_a_codec_error(form: Any) -> None:
    try:
        value = from_json(form, resolve=opaque_class)
    except CodecError:
        return
    assert to_json(from_json(to_json(value), resolve=opaque_class)) == to_json(value)


@pytest.mark.parametrize("text", ["[" * 100_000, json.dumps([[number] for number in range(10_000)])])
@pytest.mark.parametrize("collects", [True, False])
def test_no_garbage_is_collected_while_a_text_is_parsed(
    text: str, collects: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    parse = json.loads

    def counted(given: str) -> Any:
        gc.callbacks.append(count)
        try:
            return parse(given)
        finally:
            gc.callbacks.remove(count)

    def count(phase: str, _: dict[str, int]) -> None:
        seen.append(phase)

    monkeypatch.setattr(json, "loads", counted)
    was = gc.isenabled()
    (gc.enable if collects else gc.disable)()
    try:
        with contextlib.suppress(RecursionError):
            assert len(parse_json(text)) == 10_000
        assert gc.isenabled() is collects  # as it was
    finally:
        (gc.enable if was else gc.disable)()
    assert seen == []


def test_threads_that_parse_at_the_same_time_leave_the_collector_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The switch is where it hurts: one thread has asked whether it is on just before the other one turns it on."""
    parse, asked = json.loads, gc.isenabled
    later: list[threading.Thread] = []
    ends = threading.Event()

    def slow(given: str) -> Any:
        ends.wait(60)
        return parse(given)

    def ask() -> bool:
        answer = asked()
        if not answer:  # as the other one parses, which ends now
            ends.set()
            later[0].join(60)
        return answer

    monkeypatch.setattr(json, "loads", slow)
    monkeypatch.setattr(gc, "isenabled", ask)
    assert asked()
    later.append(threading.Thread(target=parse_json, args=("[]",)))
    later[0].start()
    while asked():  # until the other one parses
        later[0].join(0.001)
    try:
        assert parse_json("[1]") == [1]
        assert asked()
    finally:
        gc.enable()
