"""What a saga is made of, as data."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagaz_core.errors import DefinitionError, SagazError, UnknownStepError
from sagaz_core.model import SagaModel, StepModel


def model(*steps: tuple[str, tuple[str, ...]], **more: Any) -> SagaModel:
    return SagaModel("m", tuple(StepModel(name, needs) for name, needs in steps), **more)


def test_the_order_has_dependencies_first_and_otherwise_follows_the_declaration() -> None:
    made = model(("z", ("a",)), ("b", ()), ("a", ()), ("c", ("b", "z")))
    assert made.order == ("b", "a", "z", "c")
    assert made.dependents == {"z": ("c",), "b": ("c",), "a": ("z",), "c": ()}
    assert made.ancestors["c"] == {"a", "b", "z"}
    assert made.descendants["a"] == {"z", "c"}
    assert not made.linear


def test_a_chain_is_linear() -> None:
    assert model(("a", ()), ("b", ("a",)), ("c", ("b", "a"))).linear


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([("a", ()), ("a", ())], "two steps named 'a'"),
        ([("a", ("a",))], "in a circle: a -> a"),
        ([("a", ("c",)), ("b", ("a",)), ("c", ("b",)), ("d", ("c",))], "in a circle: a -> c -> b -> a"),
        ([("charge", ()), ("ship", ("chrage",))], "did you mean 'charge'"),
        ([("end", ())], "cannot name a step"),
        ([("a b", ())], "cannot name a step"),
        ([("a@b", ())], "cannot name a step"),
        ([("", ())], "cannot name a step"),
    ],
)
def test_steps_that_do_not_fit_together_are_refused(steps: Any, message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        model(*steps)


def test_an_unknown_step_names_the_nearest_one() -> None:
    with pytest.raises(UnknownStepError, match=r"no step 'chrage'.*did you mean 'charge'"):
        model(("charge", ())).step("chrage")


def test_differences_say_what_changed() -> None:
    then = model(("a", ()), ("b", ("a",)), ("c", ("b",)))
    now = SagaModel("m", (StepModel("a", (), True), StepModel("c", ("a",), pivot=True), StepModel("d", ("c",))), "2.0")
    assert now.differences(then) == (
        "version '1.0' is now '2.0'",
        "step 'b' is gone",
        "step 'd' is new",
        "step 'a' now has a compensation",
        "step 'c' depended on 'b', now on 'a'",
        "step 'c' is now a pivot",
    )
    assert then.differences(then) == ()
    assert model(("b", ()), ("a", ())).differences(model(("a", ()), ("b", ()))) == (
        "the steps are declared in another order",
    )


def test_how_hard_a_step_tries_does_not_change_the_fingerprint() -> None:
    tries = SagaModel("m", (StepModel("a", timeout=5.0, retries=3),))
    assert tries.fingerprint == SagaModel("m", (StepModel("a"),)).fingerprint


step_models = st.builds(
    StepModel,
    st.text(st.characters(exclude_characters="@+#:", categories=("L", "N")), min_size=1).filter(lambda n: n != "end"),
    has_compensation=st.booleans(),
    pivot=st.booleans(),
    timeout=st.none() | st.floats(0.1, 1e6),
    compensation_timeout=st.none() | st.integers(1, 9),
    retries=st.integers(0, 9),
    in_doubt=st.sampled_from(["ignore", "compensate"]),
    has_recovery=st.booleans(),
)


@given(st.lists(step_models, unique_by=lambda step: step.name, max_size=5))
def test_a_model_survives_json(steps: list[StepModel]) -> None:
    made = SagaModel("m", tuple(steps))
    again = SagaModel.from_dict(json.loads(json.dumps(made.to_dict())))
    assert again == made
    assert again.fingerprint == made.fingerprint


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "steps", "x"]), inner),
    max_leaves=6,
)


@given(
    st.fixed_dictionaries(
        {"name": junk, "steps": junk | st.lists(st.dictionaries(st.sampled_from(list(StepModel("a").to_dict())), junk))}
    )
)
def test_whatever_is_read_as_a_model_is_one_or_an_error_of_ours(data: Any) -> None:
    message = ""
    try:
        assert json.dumps(SagaModel.from_dict(data).to_dict())
    except SagazError as error:
        message = str(error)
    assert "\n" not in message


def test_a_long_chain_is_ordered_in_no_time() -> None:
    steps = [StepModel(f"s{index}", (f"s{index - 1}",) if index else ()) for index in range(20_000)]
    assert SagaModel("m", tuple(reversed(steps))).order[-1] == "s19999"
