"""The canonical trace: one text for every schedule, clock, id and hash seed."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from sagaz_core import Saga, World
from sagaz_core.faults.plan import FaultPlan
from sagaz_core.prove.normalise import Normaliser
from sagaz_core.prove.trial import Subject, run_trial
from sagaz_core.virtual_time import run

NAMES = ("a", "b", "c", "d", "e")


def diamond(delays: dict[str, float], undo_delays: dict[str, float]) -> Saga[Any]:
    saga: Saga[Any] = Saga("diamond")

    def step(name: str) -> Any:
        async def do(ctx: Any) -> dict[str, Any]:
            await asyncio.sleep(delays[name])
            return {f"{name}_id": str(uuid4()), f"{name}_at": datetime.now(UTC)}

        return do

    def undo(name: str) -> Any:
        async def do(ctx: Any) -> None:
            await asyncio.sleep(undo_delays[name])

        return do

    after = {"a": [], "b": ["a"], "c": ["a"], "d": ["a"], "e": ["b", "c", "d"]}
    for name in NAMES:
        saga.add_step(name, step(name), undo(name), depends_on=after[name])
    return saga


def golden(delays: dict[str, float], undo_delays: dict[str, float]) -> str:
    saga = diamond(delays, undo_delays)
    return run(run_trial(Subject(lambda: saga, {"order": 1}), FaultPlan.parse("end@before"))).golden_text()


delays = st.fixed_dictionaries({name: st.sampled_from([0.0, 1.0, 2.0, 3.0]) for name in NAMES})


@given(delays, delays)
def test_every_schedule_gives_the_same_text(first: dict[str, float], undo: dict[str, float]) -> None:
    base = dict.fromkeys(NAMES, 0.0)
    assert _shape(golden(first, undo)) == _shape(golden(base, base))


def _shape(text: str) -> list[str]:
    return [" ".join(line.split()[:2]) for line in text.splitlines()]


def test_the_text_of_a_run_is_readable() -> None:
    base = dict.fromkeys(NAMES, 0.0)
    assert golden(base, base) == (
        "saga diamond 1.0\n"
        "plan end@before\n"
        "ends rolled_back\n"
        "\n"
        "do    a    +a_at=<time> +a_id='<id 1>'\n"
        "do    b    +b_at=<time> +b_id='<id 2>'\n"
        "do    c    +c_at=<time> +c_id='<id 3>'\n"
        "do    d    +d_at=<time> +d_id='<id 4>'\n"
        "do    e    +e_at=<time> +e_id='<id 5>'\n"
        "fail  end  InjectedFaultError: injected by end@before\n"
        "undo  e\n"
        "undo  d\n"
        "undo  c\n"
        "undo  b\n"
        "undo  a\n"
        "\n"
        "context: as it was\n"
    )


def test_the_hash_seed_changes_nothing() -> None:
    code = (
        "from tests.prove.test_trace import NAMES, golden\n"
        "base = dict.fromkeys(NAMES, 0.0)\n"
        "print(golden(base, base))\n"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": os.getcwd()},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(3)
    }
    assert len(texts) == 1


def test_ids_are_named_in_the_order_in_which_they_come() -> None:
    names = Normaliser({"saga-4711": "<saga>"})
    one, two = uuid4(), uuid4()
    assert (
        names.value({"a": one, "b": str(two), "c": f"see {one}"}) == "{'a': <id 1>, 'b': '<id 2>', 'c': 'see <id 1>'}"
    )
    assert names.value(datetime(2026, 7, 15, 14, 30, tzinfo=UTC)) == "<time>"
    assert names.text("order of saga-4711 at 2026-07-15T14:30:00+00:00") == "order of <saga> at <time>"
    assert names.value(UUID(int=one.int)) == "<id 1>"


def test_secrets_are_never_written() -> None:
    names = Normaliser()
    shown = names.value({"card_number": "4111111111111111", "user": {"password": "hunter2"}, "api_key": "k"})
    assert shown == "{'card_number': ***, 'user': {'password': ***}, 'api_key': ***}"
    assert names.value({"cvc": 123, "db_pwd": "x", "card_no": 4111, "card": 1}) == (
        "{'cvc': ***, 'db_pwd': ***, 'card_no': ***, 'card': 1}"
    )


@dataclass
class Card:
    cvv: str
    owner: dict[str, str]
    scans: set[str]
    seen: datetime
    noise: float = field(default=0.0, repr=False)


class Line(NamedTuple):
    sku: str
    picked: datetime


class Basket(BaseModel):
    api_key: str
    line: Line


def test_objects_are_written_field_by_field_as_everything_else_is() -> None:
    now = datetime.now(UTC)
    card = Card("123", {"password": "hunter2"}, {"c", "a", "b"}, now, time.perf_counter())
    shown = Normaliser().value({"card": card, "basket": Basket(api_key="k", line=Line("W1", now)), "tags": set()})
    assert shown == (
        "{'card': Card(cvv=***, owner={'password': ***}, scans={'a', 'b', 'c'}, seen=<time>), "
        "'basket': Basket(api_key=***, line=Line(sku='W1', picked=<time>)), 'tags': set()}"
    )


def test_an_object_that_writes_itself_is_asked() -> None:
    @dataclass(repr=False)
    class Money:
        cents: int

        def __repr__(self) -> str:
            return f"EUR {self.cents / 100:.2f}"

    assert Normaliser().value([Money(1250)]) == "[EUR 12.50]"


def test_ids_are_found_in_every_form_that_they_are_written_in() -> None:
    one = uuid4()
    names = Normaliser()
    assert names.value(f"ch_{one}") == "'ch_<id 1>'"
    assert names.value([one.hex, f"re_{one.hex}", one.hex.upper()]) == "['<id 1>', 're_<id 1>', '<id 1>']"
    assert names.value({str(one): 1, one: 2}) == "{'<id 1>': 1, <id 1>: 2}"
    assert Normaliser({str(one): "<saga>"}).value([one, one.hex, uuid4()]) == "[<saga>, '<saga>', <id 1>]"
    digest = hashlib.sha256(b"").hexdigest()
    assert names.value(digest) == repr(digest)


def test_ids_in_the_world_are_named_whatever_they_are() -> None:
    charges: dict[str, str] = {}

    async def charge(ctx: Any) -> None:
        charges[uuid4().hex] = "first"
        charges[uuid4().hex] = "second"
        charges[uuid4().hex] = f"see {uuid4()}"

    world = World()
    world.fake(charges, "charges")
    saga = Saga("pay").add_step("charge", charge)
    text = run(run_trial(Subject(lambda: saga, world=world), FaultPlan())).golden_text()
    assert text.endswith(
        "world:\n"
        "  charges.<id 1>: (nothing) -> 'first'\n"
        "  charges.<id 2>: (nothing) -> 'second'\n"
        "  charges.<id 3>: (nothing) -> 'see <id 4>'\n"
    )
