"""`Sagaz`: what the fixture `sagaz` gives, to run sagas, replay them and explore them in a test."""

from __future__ import annotations

import shlex
import warnings
from typing import TYPE_CHECKING, Any

from pytest_sagaz.cases import Case
from pytest_sagaz.markers import forced_plan
from pytest_sagaz.recordings import Found, find
from pytest_sagaz.replays import context_keys
from pytest_sagaz.runner import runner_of
from pytest_sagaz.sagas import class_of, maker
from pytest_sagaz.settings import SagazWarning, settings_of
from sagaz_core.errors import UsageError
from sagaz_core.faults.kinds import parse_kinds
from sagaz_core.faults.plan import FaultPlan, as_plan
from sagaz_core.prove.exploration import Exploration
from sagaz_core.prove.explorer import explore_subject
from sagaz_core.prove.search import DEFAULT_DEPTH, Search
from sagaz_core.prove.trial import Subject
from sagaz_core.prove.world import as_world
from sagaz_core.recording.base import Recording
from sagaz_core.replay.start import check_override
from sagaz_core.saga.definition import mapping_or_empty

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping
    from pathlib import Path

    import pytest

    from sagaz_core.prove.outcome import Outcome
    from sagaz_core.prove.world import World


class Sagaz:
    """Runs sagas in a test: on a virtual clock, off the network, with every witness watching. A test of a rollback:

        @pytest.mark.force_failure("ship_order", at="after")
        def test_a_lost_parcel_is_called_back(sagaz):
            outcome = sagaz.run(OrderSaga(), {"order_id": "1", "sku": "W1", "quantity": 1, "price": 9, "address": "x"})
            outcome.assert_compensated("reserve_inventory", "charge_payment", "ship_order")
            outcome.assert_sound()

    `saga` is a class, an instance, or a function that makes one. The faults of the test's `force_failure` markers
    strike unless a `plan` is given. Methods without an `a` in front raise `RunningLoopError` inside a running loop.
    """

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._item: pytest.Item = request.node
        self._request = request
        self._runner = runner_of(self._item)

    def run(
        self,
        saga: Any,
        context: Mapping[str, Any] | None = None,
        *,
        plan: FaultPlan | str | None = None,
        world: World | None = None,
        saga_id: str | None = None,
    ) -> Outcome:
        """Run the saga once and return how it ended."""
        __tracebackhide__ = True
        self._outside_a_loop("arun")
        return self._case(saga, context, plan, world, saga_id).run()

    async def arun(
        self,
        saga: Any,
        context: Mapping[str, Any] | None = None,
        *,
        plan: FaultPlan | str | None = None,
        world: World | None = None,
        saga_id: str | None = None,
    ) -> Outcome:
        """Do what `run` does, inside a running loop and in its time."""
        __tracebackhide__ = True
        return await self._case(saga, context, plan, world, saga_id).arun()

    def replay(
        self,
        recording: Recording | str | Path,
        step: str | None = None,
        override: Mapping[str, Any] | None = None,
        plan: FaultPlan | str | None = None,
        *,
        saga: Any = None,
        freeze: bool = True,
        allow_drift: bool = False,
    ) -> Outcome:
        """Run a recorded saga again (a `Recording`, an id or a path) and return how it ended.

        It begins at `step`, or at the first step that the plan strikes, with the recorded results of the steps before
        it; without either at its start. `freeze` runs it at the recorded time. `saga` is its class, an instance or a
        function that makes one, if neither the fixture saga_factory nor the store has it.
        """
        __tracebackhide__ = True
        self._outside_a_loop("areplay")
        return self._replay(recording, step, override, plan, saga, freeze=freeze, allow_drift=allow_drift).run()

    async def areplay(
        self,
        recording: Recording | str | Path,
        step: str | None = None,
        override: Mapping[str, Any] | None = None,
        plan: FaultPlan | str | None = None,
        *,
        saga: Any = None,
        freeze: bool = True,
        allow_drift: bool = False,
    ) -> Outcome:
        """Do what `replay` does with a `Recording` (the fixture `recording` is one), inside a running loop."""
        __tracebackhide__ = True
        if not isinstance(recording, Recording):
            raise UsageError(f"areplay({recording!r}): give a Recording, such as the fixture `recording`")
        return await self._replay(recording, step, override, plan, saga, freeze=freeze, allow_drift=allow_drift).arun()

    def explore(
        self,
        saga: Any,
        context: Mapping[str, Any] | None = None,
        *,
        kinds: str | Iterable[str] = "all",
        depth: int = DEFAULT_DEPTH,
        world: World | None = None,
        max_executions: int | None = None,
        mode: str = "auto",
    ) -> Exploration:
        """Try every failure of the saga, in the test's `saga_world` unless one is given; see `sagaz_core.explore`."""
        __tracebackhide__ = True
        self._outside_a_loop("aexplore")
        main = self._exploring(saga, context, kinds, depth, world, max_executions, mode)
        return self._runner.explored(self._runner.run(main, instead="sagaz.aexplore"))

    async def aexplore(
        self,
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
        main = self._exploring(saga, context, kinds, depth, world, max_executions, mode)
        return self._runner.explored(await self._runner.arun(main))

    def _exploring(
        self,
        saga: Any,
        context: Mapping[str, Any] | None,
        kinds: str | Iterable[str],
        depth: int,
        world: World | None,
        max_executions: int | None,
        mode: str,
    ) -> Callable[[], Coroutine[Any, Any, Exploration]]:
        again = f"pytest {shlex.quote(self._item.nodeid)}"
        seen = self._runner.world = self._world(world)
        subject = Subject(maker(None, "", saga), mapping_or_empty(context), world=seen, reproduce=again)
        search = Search(parse_kinds(kinds), depth, mode, max_executions, again=again)
        return lambda: explore_subject(subject, search)

    def _case(
        self,
        saga: Any,
        context: Mapping[str, Any] | None,
        plan: FaultPlan | str | None,
        world: World | None,
        saga_id: str | None,
    ) -> Case:
        return Case(
            self._runner,
            maker(None, "", saga),
            _mapping(context, "a context"),
            self._plan(plan),
            world=self._world(world),
            saga_id=saga_id,
        )

    def _replay(
        self,
        recording: Recording | str | Path,
        step: str | None,
        override: Mapping[str, Any] | None,
        plan: FaultPlan | str | None,
        saga: Any,
        *,
        freeze: bool,
        allow_drift: bool,
    ) -> Case:
        settings = settings_of(self._item.config)
        if isinstance(recording, Recording):
            found = Found(recording, trusted=settings.trusts(recording))
        else:
            found = self._find(str(recording))
        laid_over = _mapping(override, "an override")
        for message in check_override(laid_over, context_keys(found.recording), strict=settings.strict):
            warnings.warn(SagazWarning(message), stacklevel=3)
        factory = self._request.getfixturevalue("saga_factory") if saga is None else None
        if saga is None and factory is None:
            saga = class_of(found, settings)
        return Case(
            self._runner,
            maker(factory, found.recording.saga_name, saga),
            plan=self._plan(plan),
            recording=found.recording,
            step=step,
            override=laid_over,
            freeze=freeze,
            world=self._world(None),
            allow_drift=allow_drift or settings.allow_drift,
        )

    def _find(self, spec: str) -> Found:
        found = find(spec, settings_of(self._item.config), self._item.path.parent)
        if len(found) != 1:
            raise UsageError(f"{spec!r} is {len(found)} recordings: name one")
        return found[0]

    def _plan(self, plan: FaultPlan | str | None) -> FaultPlan:
        return forced_plan(self._item) if plan is None else as_plan(plan)

    def _world(self, world: World | None) -> World:
        return as_world(self._request.getfixturevalue("saga_world") if world is None else world)

    def _outside_a_loop(self, instead: str) -> None:
        self._runner.outside_a_loop(f"sagaz.{instead}")


def _mapping(given: Any, what: str) -> dict[str, Any]:
    """Return the mapping, or what a pydantic model holds, as a dict."""
    try:
        return dict(given or {})
    except (TypeError, ValueError):
        raise UsageError(f"{what} of type {type(given).__name__!r}: give a mapping or a pydantic model") from None
