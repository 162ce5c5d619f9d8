"""Trying every failure of a saga.

A saga whose world is made of fakes is forked between its steps (`forked`); any other is run from its start for each
plan, many benign faults at once (`packed`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from contextvars import copy_context
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sagaz_core.adapters.locate import adapter_for
from sagaz_core.errors import RunningLoopError, UsageError
from sagaz_core.faults.kinds import parse_kinds
from sagaz_core.prove.effects import Stopped
from sagaz_core.prove.endless import NeverEndsError
from sagaz_core.prove.exploration import MODES, Exploration
from sagaz_core.prove.forked import Forked, why_not_forkable
from sagaz_core.prove.from_start import ONLY_CALLS, FromStart
from sagaz_core.prove.patience import watched
from sagaz_core.prove.recorded import not_as_recorded
from sagaz_core.prove.search import DEFAULT_DEPTH, Search
from sagaz_core.prove.trial import Subject
from sagaz_core.prove.watch import Calls
from sagaz_core.prove.world import as_world
from sagaz_core.prove.worlds import LyingFakeError, NotForkableError
from sagaz_core.saga.definition import mapping_or_empty

if TYPE_CHECKING:
    from sagaz_core.adapters.base import Adapter
    from sagaz_core.model import SagaModel
    from sagaz_core.prove.world import World


def explore(
    saga: Any,
    context: Mapping[str, Any] | None = None,
    *,
    kinds: str | Iterable[str] = "all",
    depth: int = DEFAULT_DEPTH,
    world: World | None = None,
    max_executions: int | None = None,
    mode: str = "auto",
) -> Exploration:
    """Try every plan of at most `depth` faults, each judged with no assertion of yours.

    `saga` is a class, an instance or a factory; `kinds` is `all`, `quick` or a list. With a `world` that is made of
    fakes alone the saga is forked between its steps and equal states are merged; else each plan is run from the start,
    and only plans of one fault (and packed ones) are tried: `.mode` and `.reason` say which. `mode` asks for one of
    `merged`, `tree` (forked, not merged) and `packed`. When forked, a compensation's fault is the second one of a plan,
    after what makes the compensation run. Runs on a virtual clock; raises `RunningLoopError` inside a running loop (use
    `aexplore`).
    """
    from asyncio import _get_running_loop

    from sagaz_core.virtual_time import run  # the loop is only for those who have none

    if _get_running_loop() is not None:
        raise RunningLoopError("explore() was called inside a running event loop: write `await aexplore(...)` there")
    return run(aexplore(saga, context, kinds=kinds, depth=depth, world=world, max_executions=max_executions, mode=mode))


async def aexplore(
    saga: Any,
    context: Mapping[str, Any] | None = None,
    *,
    kinds: str | Iterable[str] = "all",
    depth: int = DEFAULT_DEPTH,
    world: World | None = None,
    max_executions: int | None = None,
    mode: str = "auto",
) -> Exploration:
    """Do what `explore` does, inside a running loop."""
    subject = Subject(_maker(saga), mapping_or_empty(context), world=None if world is None else as_world(world))
    search = Search(parse_kinds(kinds), depth, mode, max_executions)
    return await explore_subject(subject, search)


async def explore_subject(subject: Subject, search: Search) -> Exploration:
    """Explore what is tried of a subject. Its world's fakes end as they were.

    What never ends is named (`ENDLESS`), and plans that do not get there are run from the start.
    """
    calls = Calls(asyncio.get_running_loop())
    subject = replace(subject, calls=calls, variables=copy_context())  # before any step sets one
    try:
        with calls.bounded(), watched(calls.current):
            return await _explored(subject, search)
    except Stopped as stopped:
        raise stopped.error or stopped from None


async def _explored(subject: Subject, search: Search) -> Exploration:
    for name, number in (("depth", search.depth), ("max_executions", search.max_executions or 0)):
        if not isinstance(number, int) or number < 0:
            raise UsageError(f"{name}={number!r}: give a whole number from 0")
    if search.mode != "auto" and search.mode not in MODES:
        raise UsageError(f"mode={search.mode!r}: write auto, merged, tree or packed")
    made = subject.make()
    adapter = adapter_for(made)
    saga = adapter.create(made)
    model = await adapter.describe(saga)
    reason = why_not_forkable(adapter, saga, subject)
    if search.mode in ("merged", "tree") and reason:
        raise UsageError(f"mode={search.mode!r}: {reason}")
    if search.mode == "packed":
        reason = "asked for"
    subject, unseen = with_seen_world(subject)
    if unseen and search.mode in ("merged", "tree"):
        raise UsageError(f"mode={search.mode!r}: {unseen.removesuffix(f'; {ONLY_CALLS}')}")
    reason = unseen or reason
    note = ""
    if search.recorded and subject.world and not search.over():
        note = await not_as_recorded(subject, search.recorded.values())
        if not note:
            search = replace(search, recorded={})
    found = await _searched(subject, search, saga, model, adapter, reason)
    return replace(found, notes=(*found.notes, note)) if note else found


async def _searched(
    subject: Subject, search: Search, saga: Any, model: SagaModel, adapter: Adapter, reason: str
) -> Exploration:
    if not reason:
        world = subject.world
        saved = world.save() if world else None
        try:
            assert subject.calls is not None
            return await subject.calls.ended(Forked(subject, saga, model, search).explore())
        except LyingFakeError as error:
            if search.mode != "auto":
                raise
            subject, reason = replace(subject, world=None), f"{error}; {ONLY_CALLS}"
        except (NotForkableError, NeverEndsError) as error:
            if search.mode != "auto":
                raise
            reason = str(error)
        finally:
            if saved is not None and world is not None:
                with suppress(UsageError):  # one that cannot be put back was named
                    world.restore(saved)
    return await FromStart(subject, model, search, reason, adapter).explore()


def with_seen_world(subject: Subject) -> tuple[Subject, str]:
    """Return the subject and `""`; or, if its world cannot be copied or put back, the subject without it, and why."""
    world, wrong = subject.world, ""
    try:
        if world:
            saved = world.save()
            if world.restorable:
                world.restore(saved)
                wrong = world.not_put_back(saved)
    except UsageError as error:
        wrong = str(error)
    return (replace(subject, world=None), f"{wrong}; {ONLY_CALLS}") if wrong else (subject, "")


def _maker(saga: Any) -> Callable[[], Any]:
    is_factory = callable(saga) and not isinstance(saga, type) and not hasattr(saga, "run")
    return saga if is_factory else lambda: saga
