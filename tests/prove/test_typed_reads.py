"""Which fields of a typed context each step reads: two steps that nothing orders and that fight over one are found."""

from __future__ import annotations

from decimal import Decimal
from functools import cached_property
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, computed_field, field_validator
from reference_sagas import CORRECT

from sagaz_core import Saga, World, explore
from sagaz_core.prove.trial import Subject, run_trial
from sagaz_core.prove.typed_reads import watched
from sagaz_core.saga.context import TypedContext
from sagaz_core.virtual_time import run


class Order(BaseModel):
    model_config = ConfigDict(validate_assignment=True)

    order: str
    price: Decimal = Decimal(1)
    ticket: str = ""
    parcel: str = ""

    @field_validator("order")
    @classmethod
    def _short(cls, value: str) -> str:
        return value.strip()

    @computed_field  # type: ignore[prop-decorator] # mypy's
    @property
    def label(self) -> str:
        return f"{self.order}:{self.ticket}"

    @cached_property
    def twice(self) -> Decimal:
        return 2 * self.price

    def total(self) -> Decimal:
        return self.price + 1


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")

    order: str


def view(model: type[BaseModel] = Order, **data: Any) -> tuple[Any, set[str]]:
    reads: set[str] = set()
    return watched(TypedContext(model).view({"order": "o1", **data}, {}), reads), reads


def test_fields_that_are_read_are_noted_also_by_methods_and_properties() -> None:
    context, reads = view()
    assert context.order == "o1"
    assert reads == {"order"}
    context.total()
    assert reads - {"total"} == {"order", "price"}
    assert context.label == "o1:"
    assert "ticket" in reads


def test_what_is_written_and_not_read_is_not_noted() -> None:
    context, reads = view()
    context.ticket = "t1"
    context.price = 5
    assert not reads
    assert (context.ticket, context.price) == ("t1", Decimal(5))


def test_what_is_kept_with_a_model_is_not_its_data_when_a_field_is_set() -> None:
    class Strict(Open):
        model_config = ConfigDict(extra="allow", validate_assignment=True)

    context, reads = view(Strict, more=1)
    context.order = "o2"
    assert context.order == "o2"
    assert reads == {"order"}
    assert TypedContext(Strict).data(context) == context.model_dump() == {"order": "o2", "more": 1}


def test_extra_fields_are_noted() -> None:
    context, reads = view(Open, more=1)
    assert context.more == 1
    assert reads == {"more"}
    with pytest.raises(AttributeError, match="nothing"):
        _ = context.nothing


def test_it_is_the_user_s_model_all_the_same() -> None:
    plain, (context, _) = TypedContext(Order).view({"order": "o1"}, {}), view()
    assert isinstance(context, Order)
    assert type(context).__name__ == "Order"
    assert context.model_dump() == Order(order="o1").model_dump()
    assert context.model_dump_json() == Order(order="o1").model_dump_json()
    assert repr(context) == repr(plain)
    assert context == context.model_copy()
    assert context != context.model_copy(update={"ticket": "t2"})
    assert dict(context) == dict(plain)
    assert context.model_fields_set == plain.model_fields_set
    assert Order.model_validate(context.model_dump()) == Order(order="o1")
    assert (context.twice, context.twice) == (2, 2)
    with pytest.raises(ValueError, match="price"):
        context.price = "much"
    assert TypedContext(Order).data(context) == TypedContext(Order).data(plain)
    assert context.model_copy(deep=True) == context


def test_copies_note_what_is_read_of_them_and_others_of_the_class_note_nothing() -> None:
    context, reads = view()
    assert context.model_copy().ticket == ""
    assert context.model_copy(deep=True).parcel == ""
    assert reads == {"model_copy", "ticket", "parcel"}
    assert type(context)(order="o2").order == "o2"
    assert reads == {"model_copy", "ticket", "parcel"}


def test_a_model_that_gives_its_attributes_itself_still_does() -> None:
    class Loud(BaseModel):
        order: str

        def __getattribute__(self, name: str) -> Any:
            found = super().__getattribute__(name)
            return found.upper() if name == "order" else found

    context, reads = view(Loud)
    assert (context.order, reads) == ("O1", {"order"})


def fighting(reads: bool) -> tuple[Saga[Order], World]:
    """Two steps side by side, of which one sets a field; and may the other one read it."""
    desk: dict[str, int] = {}
    world = World()
    world.fake(desk, "desk")

    class Side(Saga[Order]):
        saga_name = "side"

    async def reserve(ctx: Order) -> dict[str, str]:
        desk["reserve"] = 1
        assert ctx.price == 1
        return {"ticket": "t1"}

    async def ship(ctx: Order) -> dict[str, str]:
        desk["ship"] = len(ctx.ticket if reads else ctx.order)
        return {"parcel": "p1"}

    async def unreserve(ctx: Order) -> None:
        desk.pop("reserve", None)

    async def unship(ctx: Order) -> None:
        desk.pop("ship", None)

    saga = Side()
    saga.add_step("reserve", reserve, unreserve, depends_on=[])
    return saga.add_step("ship", ship, unship, depends_on=[]), world


def test_two_steps_that_fight_over_a_field_are_found_without_any_fault() -> None:
    saga, world = fighting(reads=True)
    exploration = explore(saga, {"order": "o1"}, world=world, depth=0)
    found = {finding.sentence: finding for outcome in exploration.failures for finding in outcome.findings}
    finding = found["'ship' reads 'ticket', which 'reserve' writes, and nothing says which comes first"]
    assert (finding.verdict.value, finding.step) == ("OUT_OF_ORDER", "ship")


def test_steps_that_share_no_field_raise_no_alarm() -> None:
    saga, world = fighting(reads=False)
    exploration = explore(saga, {"order": "o1"}, world=world, kinds="before,undo-flaky")
    assert (exploration.mode, exploration.failures) == ("merged", ())


@pytest.mark.parametrize("typed", [True, False])
def test_a_single_run_finds_two_steps_that_fight_too(typed: bool) -> None:
    if typed:
        saga: Saga[Any] = fighting(reads=True)[0]
    else:
        saga = Saga("plain")
        saga.add_step("reserve", lambda ctx: {"ticket": "t1"}, depends_on=[])
        saga.add_step("ship", lambda ctx: ctx.get("ticket") and None, depends_on=[])
    outcome = run(run_trial(Subject(lambda: saga, {"order": "o1"})))
    (finding,) = outcome.findings
    assert finding.sentence == "'ship' reads 'ticket', which 'reserve' writes, and nothing says which comes first"
    with pytest.raises(AssertionError, match="OUT_OF_ORDER"):
        outcome.assert_sound()


@pytest.mark.parametrize("name", CORRECT)
def test_a_run_of_a_sound_saga_raises_no_alarm(name: str) -> None:
    make, context, world = CORRECT[name]()
    assert run(run_trial(Subject(make, context, world=world))).findings == ()
