"""States that differ only in what no later compensation reads of the context are one; whatever it does read counts."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ormsgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagaz_core import Saga, SagaConfig, World, explore

if TYPE_CHECKING:
    from sagaz_core.prove.exploration import Exploration

Look = Callable[[Any], bool]


def chain(names: str, before_undoing: Callable[[str, Any, dict[str, Any]], None]) -> tuple[Saga[Any], World]:
    """A chain of steps with exact inverses; what is given is called before each of these with its name."""
    desk: dict[str, Any] = {}
    world = World()
    world.fake(desk, "desk")
    saga: Saga[Any] = Saga("chain")
    for name in names:

        async def act(ctx: Any, *, name: str = name) -> dict[str, str]:
            desk[name] = 1
            return {name: name}

        async def undo(ctx: Any, *, name: str = name) -> None:
            before_undoing(name, ctx, desk)
            desk.pop(name, None)

        depends = [chr(ord(name) - 1)] if name != names[0] else []
        saga.add_step(name, act, undo, depends_on=depends, in_doubt="compensate", retries=0, compensation_retries=0)
    return saga, world


def looks(seen: Look | None) -> tuple[Saga[Any], World]:
    """A saga whose first compensation fails when `c` is there in the world, and not in the context as it sees it."""

    def before_undoing(name: str, ctx: Any, desk: dict[str, Any]) -> None:
        if name == "a" and seen is not None and "c" in desk and not seen(ctx):
            raise RuntimeError("where is c?")

    return chain("abcd", before_undoing)


def verdicts(exploration: Exploration) -> set[tuple[str, str | None]]:
    return {(f.verdict.value, f.step) for outcome in exploration.failures for f in outcome.findings}


def got(ctx: Any) -> bool:
    try:
        return bool(ctx["c"])
    except KeyError:
        return False


def deleted(ctx: Any) -> bool:
    try:
        del ctx["c"]
    except KeyError:
        return False
    return True


def compared(ctx: Any) -> bool:
    return bool(ctx != {"a": "a"})


LOOKS: dict[str, Look] = {
    "item": got,
    "get": lambda ctx: ctx.get("c") is not None,
    "in": lambda ctx: "c" in ctx,
    "pop": lambda ctx: ctx.pop("c", None) is not None,
    "setdefault": lambda ctx: ctx.setdefault("c", "new") != "new",
    "delete": deleted,
    "iterate": lambda ctx: "c" in [*ctx],
    "length": lambda ctx: len(ctx) > 1,
    "keys": lambda ctx: "c" in set(ctx.keys()),
    "values": lambda ctx: "c" in set(ctx.values()),
    "items": lambda ctx: ("c", "c") in set(ctx.items()),
    "dict": lambda ctx: "c" in dict(ctx),
    "unpack": lambda ctx: "c" in {**ctx},
    "keywords": lambda ctx: "c" in dict(**ctx),
    "update": lambda ctx: (plain := {}).update(ctx) is None and "c" in plain,
    "merge": lambda ctx: "c" in ctx | {},
    "copy": lambda ctx: "c" in ctx.copy(),
    "copied": lambda ctx: "c" in copy.copy(ctx),
    "deepcopy": lambda ctx: "c" in copy.deepcopy(ctx),
    "compare": compared,
    "show": lambda ctx: "'c'" in repr(ctx),
    "json": lambda ctx: '"c"' in json.dumps(ctx),
    "sorted": lambda ctx: "c" in sorted(ctx),
    "reversed": lambda ctx: "c" in [*reversed(ctx)],
    "popitem": lambda ctx: ctx.popitem()[0] == "c",
}


@pytest.mark.parametrize("how", LOOKS)
def test_whatever_way_a_compensation_looks_at_a_key_it_keeps_its_states_apart(how: str) -> None:
    saga, world = looks(LOOKS[how])
    merged = explore(saga, world=world, depth=2)
    assert merged.mode == "merged", merged.reason
    tree = explore(saga, world=world, depth=2, mode="tree")
    assert ("STUCK", "a") in verdicts(tree)
    assert verdicts(merged) == verdicts(tree)
    assert merged.plans == tree.plans


def test_what_an_extension_in_c_reads_is_found_out() -> None:
    def before_undoing(name: str, ctx: Any, desk: dict[str, Any]) -> None:
        if name == "b":
            desk["note"] = ormsgpack.packb(ctx)  # no method of the dict is called
        if name == "a" and "c" in desk and b"\xa1c" not in desk.pop("note", b""):
            raise RuntimeError("where is c?")

    saga, world = chain("abcd", before_undoing)
    merged = explore(saga, world=world, depth=2)
    tree = explore(saga, world=world, depth=2, mode="tree")
    assert ("STUCK", "a") in verdicts(tree)
    assert verdicts(merged) == verdicts(tree)


def test_what_an_extension_in_c_reads_only_in_some_worlds_is_found_out() -> None:
    def before_undoing(name: str, ctx: Any, desk: dict[str, Any]) -> None:
        if name == "b" and "d" in desk:  # not where `c` is stuck, which is explored before
            desk["note"] = ormsgpack.packb(ctx)
        if name == "a" and "d" in desk and b"\xa1d" not in desk.pop("note", b""):
            raise RuntimeError("where is d?")

    saga, world = chain("abcde", before_undoing)
    merged = explore(saga, world=world, depth=2)
    tree = explore(saga, world=world, depth=2, mode="tree")
    assert ("STUCK", "a") in verdicts(tree)
    assert verdicts(merged) == verdicts(tree)


def looks_back(look: Look) -> Exploration:
    """Explore a saga whose first compensation looks at its context in a way that must not fail."""
    desk: dict[str, Any] = {}
    world = World()
    world.fake(desk, "desk")
    saga: Saga[Any] = Saga("back")
    for name in "ab":

        async def act(ctx: Any, *, name: str = name) -> dict[str, str]:
            desk[name] = 1
            return {name: name}

        async def undo(ctx: Any, *, name: str = name) -> str:
            if name == "a":
                assert look(ctx)
            desk.pop(name, None)
            return name

        saga.add_step(name, act, undo, in_doubt="compensate", compensation_retries=0)
    return explore(saga, world=world)


@pytest.mark.parametrize(
    "look",
    [
        lambda ctx: ctx.compensation_results | {"c": 1},
        lambda ctx: {"c": 1} | ctx.compensation_results,
        lambda ctx: {**ctx.compensation_results.copy(), "c": 1},
        lambda ctx: [*reversed(ctx.compensation_results), "c"],
        lambda ctx: repr(ctx.compensation_results) in ("mappingproxy({})", "mappingproxy({'b': 'b'})"),
        lambda ctx: copy.deepcopy(ctx) == ctx,
        lambda ctx: pickle.loads(pickle.dumps(ctx)) == ctx,
        lambda ctx: type(ctx)(ctx).get("a", "a") == type(ctx).fromkeys("a", "a")["a"],
    ],
    ids=["or", "ror", "copy", "reversed", "repr", "deepcopy", "pickle", "type"],
)
def test_whatever_a_compensation_may_do_in_a_run_it_may_do_in_a_search(look: Look) -> None:
    exploration = looks_back(look)
    assert exploration.mode == "merged", exploration.reason
    assert exploration.failures == ()


def test_what_no_compensation_reads_makes_no_difference() -> None:
    def explored(look: Look | None) -> Exploration:
        saga, world = looks(look)
        return explore(saga, world=world, depth=2)

    blind, reading = explored(None), explored(lambda ctx: "c" in ctx or True)
    assert verdicts(blind) == verdicts(reading) == set()
    assert blind.plans == reading.plans
    assert blind.executions < reading.executions


def test_a_key_that_is_first_read_late_in_the_search_begins_it_anew() -> None:
    def before_undoing(name: str, ctx: Any, desk: dict[str, Any]) -> None:
        # Only where `b` could not be undone does it look for `c`: in the first rollbacks nothing reads a thing.
        if name == "a" and "b" in desk and "c" in desk and "c" not in ctx:
            raise RuntimeError("where is c?")

    saga, world = chain("abcd", before_undoing)
    merged = explore(saga, world=world, depth=3)
    tree = explore(saga, world=world, depth=3, mode="tree")
    assert ("STUCK", "a") in verdicts(tree)
    assert verdicts(merged) == verdicts(tree)
    assert merged.plans == tree.plans


RULES = st.tuples(st.sampled_from("abcd"), st.booleans(), st.sampled_from("abcd"), st.sampled_from(["fail", "add"]))


@settings(max_examples=40, deadline=None)
@given(
    rules=st.dictionaries(st.sampled_from("abcd"), RULES, max_size=3),
    policy=st.sampled_from(["continue_on_error", "fail_fast", "retry_then_continue", "skip_dependents"]),
    doubt=st.sampled_from(["compensate", "ignore"]),
    retries=st.integers(0, 1),
)
def test_merged_and_not_merged_are_judged_alike(
    rules: dict[str, tuple[str, bool, str, str]], policy: str, doubt: str, retries: int
) -> None:
    """Compensations that fail, or leave something, by what they read in the context and the world."""
    desk: dict[str, Any] = {}
    world = World()
    world.fake(desk, "desk")
    saga: Saga[Any] = Saga("random", config=SagaConfig(on_compensation_failure=policy))
    for name in "abcd":

        async def act(ctx: Any, *, name: str = name) -> dict[str, str]:
            desk[name] = 1
            return {name: name}

        async def undo(ctx: Any, result: Any, *, name: str = name) -> None:
            key, there, left, what = rules.get(name, ("", True, "", ""))
            if key and ((key in ctx) is there) and left in desk:
                if what == "fail":
                    raise RuntimeError("it minds")
                desk["more"] = desk.get("more", 0) + 1
            desk.pop(name, None)

        depends = [chr(ord(name) - 1)] if name != "a" else []
        saga.add_step(
            name, act, undo, depends_on=depends, in_doubt=doubt, retries=retries, compensation_retries=retries
        )
    kinds = "before,after,undo-fail,undo-fail-after,undo-crash,undo-flaky-after"
    merged = explore(saga, world=world, depth=2, kinds=kinds)
    tree = explore(saga, world=world, depth=2, kinds=kinds, mode="tree")
    assert merged.mode == "merged", merged.reason
    assert verdicts(merged) == verdicts(tree)
    assert merged.plans == tree.plans
