"""The context: a mapping, or a pydantic model."""

from __future__ import annotations

import asyncio
import copy
import operator
import pickle
import traceback
from functools import cached_property
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field

from sagaz_core import Saga, SagaContext, SagaStatus, action, compensate
from sagaz_core.errors import ContextConflictError, DefinitionError, UsageError
from sagaz_core.events import NO_DELTA, Delta
from sagaz_core.saga.context import delta_of
from sagaz_core.virtual_time import run


def test_a_context_is_a_mapping_with_the_results_of_compensations() -> None:
    ctx = SagaContext({"a": 1})
    ctx["b"] = 2
    assert ctx == {"a": 1, "b": 2}
    assert ctx.compensation_results == {}


def test_a_delta_has_what_was_set_deleted_and_returned() -> None:
    assert delta_of({"a": 1, "b": 2}, {"a": 1, "b": 2}, None) is NO_DELTA
    assert delta_of({"a": 1, "b": 2}, {"a": 5, "c": 3}, {"d": 4}) == Delta({"a": 5, "c": 3, "d": 4}, ("b",))
    assert delta_of({"a": 1}, {}, {"a": 2}) == Delta({"a": 2}, ())


WAYS_TO_CHANGE: dict[str, Any] = {
    "[]": lambda ctx: ctx.__setitem__("a", 5),
    "del": lambda ctx: ctx.__delitem__("a"),
    "|=": lambda ctx: operator.ior(ctx, {"a": 5}),
    "setdefault": lambda ctx: ctx.setdefault("c", 5),
    "update": lambda ctx: ctx.update({"a": 5}, b=6),
    "pop": lambda ctx: ctx.pop("a"),
    "popitem": lambda ctx: ctx.popitem(),
    "clear": lambda ctx: ctx.clear(),
    "code": lambda ctx: exec("a = 5", {}, ctx),
    "rename": lambda ctx: ctx.update(c=ctx.pop("b")),
}
LOOKS = {"__contains__", "__len__", "__iter__", "__reversed__", "__or__", "__ror__", "__class_getitem__"}
LOOKS |= {"__getitem__", "get", "items", "keys", "values", "copy", "fromkeys"}


@pytest.mark.parametrize("way", WAYS_TO_CHANGE)
def test_every_way_to_change_a_context_is_noticed(way: str) -> None:
    before = {"a": 1, "b": 2}
    ctx, plain = SagaContext(before), dict(before)
    assert delta_of(before, ctx, None) is NO_DELTA
    WAYS_TO_CHANGE[way](ctx)
    WAYS_TO_CHANGE[way](plain)
    assert ctx == plain
    assert delta_of(before, ctx, None) == delta_of(before, plain, None) != NO_DELTA


def test_a_dict_has_no_way_to_change_it_that_a_context_does_not_notice() -> None:
    own = {name for name, method in vars(dict).items() if callable(method) and name not in dir(object)}
    noticed = {name for name in own if name in vars(SagaContext)}
    assert noticed == {"__setitem__", "__delitem__", "__ior__", "clear", "pop", "popitem", "setdefault", "update"}
    assert own - noticed == LOOKS


def test_a_result_with_keys_that_are_no_strings_is_refused() -> None:
    saga: Saga[Any] = Saga("s").add_step("a", lambda ctx: {1: 2}, lambda ctx: None)
    with pytest.raises(DefinitionError, match="step 'a': its result has the key 1"):
        run(saga.run())


@pytest.mark.parametrize("context", [5, [("a", 1)], {1: 2}])
def test_a_context_that_is_no_mapping_of_names_is_refused(context: Any) -> None:
    with pytest.raises(DefinitionError):
        run(Saga("s").add_step("a", print).run(context))


def test_the_callers_mapping_is_not_changed() -> None:
    given = {"a": 1}
    result = run(Saga("s").add_step("a", lambda ctx: {"a": 2}).run(given))
    assert (given, result.context) == ({"a": 1}, {"a": 2})


def test_what_a_failed_attempt_wrote_is_not_kept() -> None:
    seen = []

    def act(ctx: Any) -> None:
        seen.append(dict(ctx))
        ctx["junk"] = 1
        if len(seen) < 3:
            raise OSError

    result = run(Saga("s").add_step("a", act, retries=2).run({"x": 1}))
    assert seen == [{"x": 1}] * 3
    assert result.context == {"x": 1, "junk": 1}


# ---- typed


class Item(BaseModel):
    sku: str
    tags: list[str] = []


class Ctx(BaseModel):
    qty: int
    items: list[Item] = []
    notes: dict[str, str] = {}
    total: float | None = None


class Typed(Saga[Ctx]):
    saga_name = "typed"

    @action("price")
    async def price(self, ctx: Ctx) -> Any:
        ctx.notes["seen"] = "yes"
        return {"total": ctx.qty * 2}

    @compensate("price")
    async def unprice(self, ctx: Ctx) -> Any:
        return ctx.total

    @action("check")
    async def check(self, ctx: Ctx) -> None:
        assert isinstance(ctx, Ctx)
        if ctx.qty > 5:
            raise ValueError("too many")
        ctx.qty += 1


def test_a_typed_saga_is_given_its_model() -> None:
    result = run(Typed().run({"qty": "2"}))
    assert result.status == "completed"
    assert result.context == {"qty": 3, "items": [], "notes": {"seen": "yes"}, "total": 4.0}


def test_a_typed_saga_takes_a_model_too_and_rolls_back_to_it() -> None:
    given = Ctx(qty=9, items=[Item(sku="x")])
    result = run(Typed().run(given))
    assert result.status == "rolled_back"
    assert result.context == {"qty": 9, "items": [Item(sku="x")], "notes": {}, "total": None}
    assert result.compensation_results == {"price": 18.0}
    assert given.notes == {}


def test_a_context_that_does_not_fit_is_one_line() -> None:
    with pytest.raises(UsageError) as caught:
        run(Typed().run({"qty": "many"}))
    assert str(caught.value) == (
        "the context of saga 'typed' does not fit Ctx: qty: Input should be a valid integer, "
        "unable to parse string as an integer, got a value of type 'str'"
    )
    with pytest.raises(UsageError, match=r"qty: Field required$"):
        run(Typed().run())


def test_what_says_that_a_context_does_not_fit_shows_no_value_of_it() -> None:
    class Left(Typed):
        async def price(self, ctx: Ctx) -> Any:
            return {"total": "4111-1111"}

    said = []
    for saga, context in ((Typed(), {"card": "4111-1111"}), (Typed(), {"qty": "4111-1111"}), (Left(), {"qty": 1})):
        with pytest.raises((UsageError, DefinitionError), match="does not fit Ctx") as caught:
            run(saga.run(context))
        said += traceback.format_exception(caught.value)
    assert "ValidationError" in "".join(said)
    assert "4111" not in "".join(said)


@pytest.mark.parametrize(
    ("returned", "message"),
    [({"totl": 1}, "returned the key 'totl', which Ctx does not declare"), ({"total": "x"}, "does not fit Ctx: total")],
)
def test_what_a_step_returns_must_fit_the_model(returned: Any, message: str) -> None:
    undone = []

    class Wrong(Typed):
        async def price(self, ctx: Ctx) -> Any:
            return returned

        async def unprice(self, ctx: Ctx, result: Any) -> None:
            undone.append(result)

    with pytest.raises(DefinitionError, match=message):
        run(Wrong().run({"qty": 1}))
    assert undone == [returned]


def test_values_that_a_step_returns_are_made_what_the_model_says() -> None:
    class Coerced(Typed):
        async def price(self, ctx: Ctx) -> Any:
            return {"total": "2.5"}

    assert run(Coerced().run({"qty": 1})).context["total"] == 2.5


def test_parallel_steps_that_only_look_at_a_typed_context_do_not_write_it() -> None:
    class Wide(Saga[Ctx]):
        @action("a", depends_on=[])
        async def a(self, ctx: Ctx) -> None:
            await asyncio.sleep(1)

        @action("b", depends_on=[])
        async def b(self, ctx: Ctx) -> Any:
            await asyncio.sleep(1)
            return {"total": 1.0}

    result = run(Wide().run({"qty": 1, "items": [{"sku": "x"}], "notes": {"k": "v"}}))
    assert result.context["total"] == 1.0


def test_a_model_may_allow_more_keys_and_have_aliases() -> None:
    class Open(BaseModel):
        model_config = ConfigDict(extra="allow")
        order_id: str = Field(alias="orderId")

    class OpenSaga(Saga[Open]):
        @action("a")
        async def a(self, ctx: Open) -> Any:
            return {"more": ctx.order_id}

        @action("b")
        async def b(self, ctx: Any) -> Any:
            return {"again": ctx.more}

    result = run(OpenSaga().run({"orderId": "1"}))
    assert result.context == {"order_id": "1", "more": "1", "again": "1"}


@pytest.mark.parametrize("extra", ["allow", "ignore", "forbid"])
def test_a_property_that_a_model_caches_is_no_key_of_the_context(extra: Any) -> None:
    class Order(BaseModel):
        model_config = ConfigDict(extra=extra)
        price: int

        @cached_property
        def twice(self) -> int:
            return 2 * self.price

    async def act(ctx: Order) -> None:
        ctx.price += ctx.twice

    result = run(Saga[Order]("s").add_step("a", act).add_step("b", act).run({"price": 1}))
    assert (result.status, result.context) == (SagaStatus.COMPLETED, {"price": 9})


def test_a_step_may_copy_its_model() -> None:
    async def act(ctx: Ctx) -> Any:
        return {"qty": ctx.model_copy(deep=True).qty + 1}

    assert run(Saga[Ctx]("s").add_step("a", act).run({"qty": 2})).context["qty"] == 3


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda ctx: pickle.loads(pickle.dumps(ctx))])
def test_a_compensation_may_copy_its_context(copied: Any) -> None:
    seen = []

    async def fails(ctx: Any) -> None:
        raise OSError

    def undo(ctx: Any) -> Any:
        seen.append((copied(ctx), dict(copied(ctx).compensation_results)))
        return "undone"

    saga: Saga[Any] = Saga("s").add_step("a", print, undo).add_step("b", print, undo).add_step("c", fails)
    assert run(saga.run({"k": 1})).status is SagaStatus.ROLLED_BACK
    assert seen == [({"k": 1}, {}), ({"k": 1}, {"b": "undone"})]


def test_an_imperative_saga_can_be_typed() -> None:
    async def act(ctx: Ctx) -> Any:
        return {"total": ctx.qty * 1.0}

    result = run(Saga[Ctx]("s").add_step("a", act).run({"qty": 2}))
    assert result.context["total"] == 2.0


def test_compensations_see_what_those_before_them_returned() -> None:
    seen: list[Any] = []

    async def fails(ctx: Any) -> None:
        raise OSError

    def undo(ctx: Any) -> Any:
        seen.append(dict(ctx.compensation_results))
        return len(seen)

    saga: Saga[Any] = Saga("s").add_step("a", print, undo).add_step("b", print, undo).add_step("c", fails)
    result = run(saga.run())
    assert seen == [{}, {"b": 1}]
    assert result.compensation_results == {"b": 1, "a": 2}


# ---- two writers of one key


def conflicting(first: Any, second: Any) -> Any:
    undone: list[tuple[str, Any, Any]] = []

    def undo(name: str) -> Any:
        return lambda ctx, result: undone.append((name, ctx.get("k"), result))

    async def late(ctx: Any) -> Any:
        await asyncio.sleep(1)
        return second(ctx)

    saga: Saga[Any] = Saga("s")
    saga.add_step("a", first, undo("a"), depends_on=[]).add_step("b", late, undo("b"), depends_on=[])
    message = "'a' and 'b' run in parallel and both write the context key 'k'"
    with pytest.raises(ContextConflictError, match=message) as caught:
        run(saga.run({"k": 0}))
    assert (caught.value.key, caught.value.steps) == ("k", ("a", "b"))
    return undone


def test_two_parallel_steps_that_write_a_key_are_an_error_and_are_undone_with_what_each_wrote() -> None:
    undone = conflicting(lambda ctx: {"k": 1}, lambda ctx: {"k": 2})
    assert undone == [("b", 2, {"k": 2}), ("a", 1, {"k": 1})]


def test_deleting_a_key_is_writing_it() -> None:
    undone = conflicting(lambda ctx: {"k": 1}, lambda ctx: ctx.pop("k") and None)
    assert [name for name, *_ in undone] == ["b", "a"]
    assert len(conflicting(lambda ctx: ctx.clear(), lambda ctx: {"k": 2})) == 2


def test_steps_that_are_ordered_may_write_one_key() -> None:
    saga: Saga[Any] = (
        Saga("s")
        .add_step("a", lambda ctx: {"k": 1}, depends_on=[])
        .add_step("x", lambda ctx: {"x": 1}, depends_on=["a"])
        .add_step("y", lambda ctx: {"y": 1}, depends_on=["a"])
        .add_step("b", lambda ctx: {"k": 2, "x": 3}, depends_on=["x", "y"])
    )
    assert run(saga.run()).context == {"k": 2, "x": 3, "y": 1}


class Priced(BaseModel):
    """A default that the model would take for another value, if it was given."""

    total: float = 0
    tags: tuple[str, ...] = Field(default_factory=list)  # type: ignore[arg-type]


def test_a_default_is_from_the_beginning_what_each_step_sees() -> None:
    seen: list[Any] = []
    saga = Saga[Priced]("priced")
    saga.add_step("look", lambda ctx: seen.append((type(ctx.total), ctx.tags)), lambda ctx: None, in_doubt="compensate")
    saga.add_step("fails", lambda ctx: 1 / 0)
    result = run(saga.run({}))
    assert result.status is SagaStatus.ROLLED_BACK
    assert (seen, dict(result.context)) == ([(float, ())], {"total": 0.0, "tags": ()})
    assert type(result.context["total"]) is float


def test_a_default_that_the_model_does_not_take_is_one_line() -> None:
    class Wrong(BaseModel):
        total: int = "none"  # type: ignore[assignment]

    with pytest.raises(UsageError, match=r"^the context of saga 'wrong' does not fit Wrong: total: "):
        run(Saga[Wrong]("wrong").add_step("a", lambda ctx: None).run({}))
