"""Declaring sagas, and the many kinds of functions that a step may be."""

from __future__ import annotations

import asyncio
import copy
import functools
from typing import Any
from unittest.mock import MagicMock

import pytest

from sagaz_core import Backoff, InMemorySnapshotStorage, Saga, SagaConfig, action, compensate, forward_recovery
from sagaz_core.errors import DefinitionError, UsageError
from sagaz_core.saga.config import ReplayConfig
from sagaz_core.saga.step import Operation
from sagaz_core.virtual_time import run


class Order(Saga[Any]):
    saga_name = "order"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.log: list[Any] = []

    @action("reserve", retries=1, timeout=5)
    async def reserve(self, ctx: Any) -> Any:
        self.log.append("reserve")
        return {"id": 1}

    @compensate("reserve")
    async def release(self, ctx: Any) -> None:
        self.log.append("release")

    @action("charge")
    async def charge(self, ctx: Any) -> None:
        raise OSError("declined")


def test_steps_follow_each_other_unless_they_say_on_what_they_depend() -> None:
    saga: Saga[Any] = Saga("s").add_step("a", print).add_step("b", print).add_step("c", print, depends_on=[])
    model = saga.definition().model
    assert [step.depends_on for step in model.steps] == [(), ("a",), ()]


def test_a_subclass_that_overrides_a_method_keeps_its_declaration() -> None:
    class Sub(Order):
        async def charge(self, ctx: Any) -> None:
            self.log.append("charged")

        async def release(self, ctx: Any, result: Any) -> None:
            self.log.append(("released", result))

    saga = Sub()
    assert run(saga.run()).success
    assert saga.log == ["reserve", "charged"]
    step = saga.definition().steps["reserve"]
    assert (step.action.retries, step.action.timeout) == (1, 5)
    assert step.compensation is not None
    assert step.compensation.takes_second


def test_a_subclass_adds_steps_behind_those_of_its_base() -> None:
    class Sub(Order):
        @action("ship")
        async def ship(self, ctx: Any) -> None: ...

    assert Sub().definition().model.names == ("reserve", "charge", "ship")
    assert Order().definition().model.names == ("reserve", "charge")


def test_two_actions_of_one_step_are_refused() -> None:
    with pytest.raises(DefinitionError, match="two actions for step 'a'"):

        class Twice(Saga[Any]):
            @action("a")
            def one(self, ctx: Any) -> None: ...

            @action("a")
            def two(self, ctx: Any) -> None: ...


def test_a_compensation_of_no_step_names_the_nearest() -> None:
    with pytest.raises(DefinitionError, match=r"'chrage'.*did you mean 'charge'"):

        class Wrong(Saga[Any]):
            @action("charge")
            def one(self, ctx: Any) -> None: ...

            @compensate("chrage")
            def two(self, ctx: Any) -> None: ...


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_doubt": "compensate"}, "no compensation"),
        ({"in_doubt": "maybe"}, "give 'ignore' or 'compensate'"),
        ({"timeout": 0}, "above 0"),
        ({"timeout": float("nan")}, "above 0"),
        ({"retries": -1}, "from 0"),
        ({"retries": 1.5}, "from 0"),
        ({"depends_on": "a"}, r"give a list, \['a'\]"),
        ({"rejects": [3]}, "give exception classes"),
    ],
)
def test_settings_that_cannot_be_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        Saga("s").add_step("b", print, **arguments)


def test_one_exception_class_may_stand_for_a_list_of_them() -> None:
    def act(ctx: Any) -> None:
        raise KeyError("no")

    saga: Saga[Any] = Saga("s").add_step("a", act, print, rejects=KeyError, retries=5)  # type: ignore[arg-type]
    result = run(saga.run())
    assert len(result.events) == 4
    assert not result.events[2].in_doubt  # type: ignore[union-attr]


def test_a_saga_without_steps_cannot_run() -> None:
    with pytest.raises(DefinitionError, match="has no steps"):
        run(Saga("empty").run())


def test_the_same_step_cannot_be_added_twice() -> None:
    with pytest.raises(DefinitionError, match="has a step 'reserve' already"):
        Order().add_step("reserve", print)


def test_a_method_is_one_thing() -> None:
    with pytest.raises(DefinitionError, match="declared twice"):

        @action("a")
        @compensate("b")
        def method(self: Any, ctx: Any) -> None: ...


def test_class_attributes_that_answer_to_every_name_are_no_steps() -> None:
    class Anything:
        def __getattr__(self, name: str) -> Any:
            return self

    class WithFakes(Order):
        stock = Anything()
        mail = MagicMock()

    assert WithFakes().definition().model.names == ("reserve", "charge")


def test_static_methods_are_steps_wherever_the_decorator_stands() -> None:
    class Statics(Saga[Any]):
        @staticmethod
        @action("below")
        def below(ctx: Any) -> Any:
            return {"below": 1}

        @action("above")
        @staticmethod
        async def above(ctx: Any) -> Any:
            return {"above": 1}

        @classmethod
        @action("of_class")
        async def of_class(cls, ctx: Any) -> Any:
            return {"of_class": cls.__name__}

    assert run(Statics().run()).context == {"below": 1, "above": 1, "of_class": "Statics"}


class Caller:
    async def __call__(self, ctx: Any) -> Any:
        return {"caller": 1}

    def bound(self, ctx: Any) -> Any:
        return {"bound": 1}

    async def later(self, more: int, ctx: Any) -> Any:
        return {"partial": more}


def test_actions_may_be_anything_that_can_be_called() -> None:
    saga: Saga[Any] = (
        Saga("s")
        .add_step("caller", Caller())
        .add_step("bound", Caller().bound)
        .add_step("partial", functools.partial(Caller().later, 7))
        .add_step("lambda", lambda ctx: {"lambda": 1})
        .add_step("gives_coroutine", lambda ctx: Caller()(ctx), timeout=5)
        .add_step("threaded", Caller().bound, timeout=5)
        .add_step("number", lambda ctx: 5)
        .add_step("text", lambda ctx: "text")
    )
    result = run(saga.run())
    assert result.context == {"caller": 1, "bound": 1, "partial": 7, "lambda": 1}
    assert result.results["number"] == 5
    assert result.results["text"] == "text"


@pytest.mark.parametrize(
    ("function", "two"),
    [
        (lambda ctx: None, False),
        (lambda ctx, *, dry=False: None, False),
        (lambda ctx, result=None: None, True),
        (lambda ctx, result: None, True),
        (lambda *args: None, True),
        (lambda ctx, name="flight": None, False),
        (lambda ctx, name="flight", *args: None, False),
        (lambda ctx, **more: None, False),
        (functools.partial(lambda ctx, result: None, result=1), False),
        (dict.pop, False),  # has no signature
    ],
)
def test_a_compensation_with_a_second_parameter_is_given_the_result(function: Any, two: bool) -> None:
    assert Operation(function).takes_second is two


def test_a_method_that_compensates_may_take_one_parameter_or_two() -> None:
    seen: list[Any] = []

    class Two(Saga[Any]):
        @action("a")
        def a(self, ctx: Any) -> Any:
            return {"a": 1}

        @compensate("a")
        def undo_a(self, ctx: Any, result: Any = None) -> None:
            seen.append(result)

        @action("b")
        def b(self, ctx: Any) -> str:
            return "plain"

        @compensate("b")
        def undo_b(self, ctx: Any, *, dry: bool = False) -> None:
            seen.append(dry)

        @action("c")
        def c(self, ctx: Any) -> None:
            raise OSError

    run(Two().run())
    assert seen == [False, {"a": 1}]


def test_build_is_awaited_once_however_many_runs_begin_together() -> None:
    built = []

    class Built(Saga[Any]):
        async def build(self) -> None:
            built.append(1)
            await asyncio.sleep(1)
            self.add_step("a", lambda ctx: {"a": 1})

    async def main() -> None:
        saga = Built()
        results = await asyncio.gather(*(saga.run() for _ in range(5)))
        assert [result.context for result in results] == [{"a": 1}] * 5

    run(main())
    assert built == [1]


def test_a_build_that_fails_is_tried_again_by_the_next_run() -> None:
    class Built(Saga[Any]):
        ready = False

        async def build(self) -> None:
            self.add_step("a", lambda ctx: None)
            if not self.ready:
                self.ready = True
                raise OSError("not yet")

    saga = Built()
    with pytest.raises(OSError, match="not yet"):
        run(saga.run())
    assert run(saga.run()).success


def test_a_step_can_be_added_after_a_run() -> None:
    saga: Saga[Any] = Saga("s").add_step("a", lambda ctx: {"a": 1})
    assert run(saga.run()).context == {"a": 1}
    saga.add_step("b", lambda ctx: {"b": 1})
    assert run(saga.run()).context == {"a": 1, "b": 1}


def test_hundreds_of_runs_of_one_instance_do_not_mix() -> None:
    async def step(ctx: Any) -> Any:
        mine = ctx["n"]
        await asyncio.sleep(mine % 7)
        assert ctx["n"] == mine
        return {"twice": mine * 2}

    async def last(ctx: Any) -> None:
        if ctx["n"] % 3 == 0:
            raise OSError

    saga: Saga[Any] = Saga("s").add_step("a", step, lambda ctx, result: result["twice"]).add_step("b", last)

    async def main() -> list[Any]:
        return await asyncio.gather(*(saga.run({"n": n}) for n in range(300)))

    for n, result in enumerate(run(main())):
        if n % 3 == 0:
            assert (result.context, result.compensation_results) == ({"n": n}, {"a": n * 2})
        else:
            assert result.context == {"n": n, "twice": n * 2}


def test_a_recovery_is_declared_like_a_compensation() -> None:
    class Recovers(Saga[Any]):
        @action("a", pivot=True)
        def a(self, ctx: Any) -> None: ...

        @action("b")
        def b(self, ctx: Any) -> None:
            raise OSError

        @forward_recovery("b")
        def recover(self, ctx: Any, error: Exception) -> Any:
            return {"instead": type(error).__name__}

    assert run(Recovers().run()).context == {"instead": "OSError"}


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: SagaConfig(on_compensation_failure="never"),  # type: ignore[arg-type]
        lambda: SagaConfig(forward_retries=-1),
        lambda: SagaConfig(unknown=1),  # type: ignore[call-arg]
        lambda: ReplayConfig(retention_days=0),
        lambda: ReplayConfig(retention_days=float("inf")),
        lambda: ReplayConfig(capture_timeout=float("inf")),
        lambda: ReplayConfig(compression="gzip"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_setting_is_one_line(wrong: Any) -> None:
    with pytest.raises(UsageError) as caught:
        wrong()
    assert "\n" not in str(caught.value)


def test_backoff_grows_to_its_cap() -> None:
    backoff = Backoff(first=0.5, factor=3, cap=10)
    assert [backoff.delay(n) for n in (1, 2, 3, 4, 5000)] == [0.5, 1.5, 4.5, 10, 10]


def test_a_saga_that_is_not_initialised_says_so():
    class Bare(Saga):
        def __init__(self):
            self.stock = 1

        @action("a")
        async def a(self, ctx): ...

    with pytest.raises(DefinitionError, match=r"^Bare.__init__ must call super\(\).__init__\(\) before"):
        Bare().definition()
    with pytest.raises(AttributeError, match="'Bare' object has no attribute 'nothing'"):
        _ = Bare().nothing
    assert not hasattr(Saga("initialised"), "nothing")


def test_what_the_constructor_takes_may_stand_in_the_class_body():
    class Indexed(Saga):
        replay_config = ReplayConfig(index_keys=["customer"])
        snapshot_storage = InMemorySnapshotStorage()

        @action("a")
        async def a(self, ctx): ...

    class Strict(Indexed):
        config = SagaConfig(on_sibling_failure="cancel", replay_config=ReplayConfig(retention_days=1))

    async def tags():
        storage = Indexed.snapshot_storage
        await Strict().run({"customer": 42}, saga_id="s")
        return [dict(found.tags) for found in (await storage.find_sagas()).items]

    assert run(tags()) == [{"customer": "42"}]
    assert Strict().config is Strict.config
    given, store = ReplayConfig(retention_days=2), InMemorySnapshotStorage()
    made = Strict(replay_config=given, snapshot_storage=store, config=SagaConfig())
    assert (made.replay_config, made.snapshot_storage) == (given, store)
    assert made.config != Strict.config
    assert Strict(config=SagaConfig(replay_config=given)).replay_config == given
    assert Strict().interceptors == Saga("s").interceptors == ()


@pytest.mark.parametrize(
    ("name", "given", "shown", "wanted"),
    [
        ("config", {"retries": 3}, "a dict", "a SagaConfig"),
        ("config", SagaConfig, "the class SagaConfig", "a SagaConfig"),
        ("replay_config", {"journal": False}, "a dict", "a ReplayConfig"),
        ("replay_config", ReplayConfig, "the class ReplayConfig", "a ReplayConfig"),
        ("snapshot_storage", "postgresql://u:secret@h/d", "a str", "a store, such as"),
        (
            "snapshot_storage",
            InMemorySnapshotStorage,
            "the class InMemorySnapshotStorage",
            "a store, such as",
        ),
        ("interceptors", len, "a builtin_function_or_method", "a sequence of interceptors"),
    ],
)
def test_what_the_constructor_cannot_take_is_named(name, given, shown, wanted):
    for make in (type("Own", (Saga,), {name: given}), lambda: Saga("s", **{name: given})):
        with pytest.raises(DefinitionError, match=rf": {name} is {shown}, and must be {wanted}"):
            make()


def test_an_interceptor_that_is_none_is_named():
    with pytest.raises(DefinitionError, match=r"an interceptor is a \w+, and must be an object with a method"):
        Saga("s", interceptors=[len])


@pytest.mark.parametrize("of", ["the instance", "the class"])
@pytest.mark.parametrize("runs_before", range(4))
def test_a_method_is_replaced_for_as_long_as_another_stands_there(runs_before, of, monkeypatch):
    class Hello(Saga):
        @action("hello")
        async def hello(self, ctx):
            return {"by": "its own"}

    saga = Hello()
    for _ in range(runs_before):
        run(saga.run())
    with monkeypatch.context() as patched:
        patched.setattr(saga if of == "the instance" else Hello, "hello", lambda *_: {"by": "another"})
        during = [run(saga.run()).context["by"] for _ in range(2)]
    after = [run(saga.run()).context["by"] for _ in range(2)]
    assert (during, after) == (["another"] * 2, ["its own"] * 2)


@pytest.mark.parametrize("runs_before", range(4))
def test_a_copy_runs_its_own_methods(runs_before):
    class Hello(Saga):
        by = "first"

        @action("hello")
        async def hello(self, ctx):
            return {"by": self.by}

    saga = Hello()
    for _ in range(runs_before):
        run(saga.run())
    another = copy.copy(saga)
    another.by = "another"
    assert [run(one.run()).context["by"] for one in (another, saga, another, saga)] == ["another", "first"] * 2


def test_a_name_is_text():
    # what @pytest.mark.saga_matrix(OrderSaga), which lacks the context, makes of a test: OrderSaga(test)
    with pytest.raises(DefinitionError, match=r"Saga\(<function .*\): a saga's name is text .*saga_matrix\(Saga, {}\)"):
        Saga(test_a_name_is_text)
