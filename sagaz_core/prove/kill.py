"""Killing a saga's process at every moment that matters, taking the saga up in another one, and judging the end.

The processes are real, the store is real, and so is the SIGKILL. What is judged is what they left: the store, a diary
of the calls that really happened, and the world.

    from sagaz_core.prove.kill import kill_everywhere

    kill_everywhere("shop.orders:OrderSaga", {"order_id": "1"}).assert_sound()
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sagaz_core.adapters.locate import adapter_for, load_object
from sagaz_core.errors import RunningLoopError, UnknownSagaError, UsageError
from sagaz_core.faults.plan import NO_FAULTS, FaultPlan, as_plan
from sagaz_core.prove._kill_process import DIARY, made_by
from sagaz_core.prove._kill_run import (
    FOLDER_VARIABLE,
    SQLITE,
    Mortal,
    Reference,
    Run,
    check_end,
    check_processes,
    judged,
    seen,
)
from sagaz_core.prove._kill_server import KillError, Server
from sagaz_core.prove.boundaries import Boundary, check_plan, default_plans
from sagaz_core.prove.explain import table
from sagaz_core.prove.kill_outcome import Diary, KilledOutcome
from sagaz_core.prove.trial import NotRunnableError
from sagaz_core.prove.world import World, as_world
from sagaz_core.saga.definition import mapping_or_empty
from sagaz_core.storage.codec import encode
from sagaz_core.storage.url import safe_url

if TYPE_CHECKING:
    from sagaz_core.model import SagaModel
    from sagaz_core.prove.world import Reading

__all__ = ["FOLDER_VARIABLE", "KillError", "Killed", "Killer", "Mortal", "kill_everywhere", "model_of", "spec_of"]

_ON_THE_NETWORK = frozenset({"az", "gs", "postgresql", "redis", "rediss", "s3"})

MakeWorld = Callable[[Path], World | None]


@dataclass(frozen=True)
class Killed:
    """What came of killing a saga everywhere: an outcome for each moment, with its `boundary` and `verdict`."""

    saga_name: str
    outcomes: tuple[KilledOutcome, ...]

    @property
    def failures(self) -> tuple[KilledOutcome, ...]:
        """The outcomes that are not sound, in order of the moments."""
        return tuple(outcome for outcome in self.outcomes if outcome.findings)

    def explain(self) -> str:
        """Return a table of the failures, each with its sentence."""
        lines = [f"saga {self.saga_name!r}: killed at {len(self.outcomes)} moments, {len(self.failures)} not sound"]
        if self.failures:
            rows = [(str(o.boundary), o.verdict.value, o.findings[0].sentence) for o in self.failures]
            lines += ["", *table(("killed at", "verdict", "what is wrong"), rows)]
        return "\n".join(lines)

    def assert_sound(self) -> None:
        """Raise the first failure's `UnsoundError`, if there is one."""
        __tracebackhide__ = True
        if self.failures:
            self.failures[0].assert_sound()


@dataclass(frozen=True)
class Unkilled:
    """A run that was not killed: the moments that it came to, and what the world showed after it."""

    labels: Sequence[str]
    after: Reading | None = None


class Killer:
    """Runs sagas in processes that it kills. It keeps one server, which each of them is forked from; close it.

    Where there is no fork, or a module of the saga's starts threads, each process is a fresh interpreter. The working
    folder, the environment and `sys.path` are those of the caller; a run's own folder is in `$SAGAZ_KILL_FOLDER`.
    """

    def __init__(self, *, fork: bool = True, workers: int | None = None) -> None:
        self._server = Server(fork=fork, workers=workers or os.cpu_count() or 1)
        self._unkilled: dict[tuple[str, str, bytes], Unkilled] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the server."""
        self._server.close()

    def kill(
        self, mortal: Mortal, boundary: Boundary, *, world: World | None = None, reproduce: str = ""
    ) -> KilledOutcome:
        """Run the saga, kill it at the moment, take it up in another process, and return how it ended.

        A `world` that can be put back is compared with what a run without the kill makes of it, and put back.
        """
        boundary.check(mortal.model)
        if world and world.restorable:
            saved = world.save()
            try:
                unkilled = self.unkilled(mortal, boundary.plan, lambda _: world)
                world.restore(saved)
                reference = self._reference(mortal, boundary.plan, unkilled, lambda _: _restored(world, saved))
                return self._killed_at(mortal, boundary, world, reference, reproduce)
            finally:
                world.restore(saved)
        if not world:
            self.unkilled(mortal, boundary.plan)
        return self._killed_at(mortal, boundary, world or None, None, reproduce)

    def kill_all(
        self, mortal: Mortal, plan: FaultPlan = NO_FAULTS, world: World | MakeWorld | None = None
    ) -> Iterator[KilledOutcome]:
        """Kill the saga at each moment that it comes to under the plan, or only from where that turns it back."""
        if isinstance(world, World) and world:
            yield from self._one_by_one(mortal, plan, world)
            return
        make = world if callable(world) else _no_world
        unkilled = self.unkilled(mortal, plan, make)
        reference = self._reference(mortal, plan, unkilled, make)
        yield from self._killed(mortal, _moments(unkilled, plan), make, reference)

    def _one_by_one(self, mortal: Mortal, plan: FaultPlan, world: World) -> Iterator[KilledOutcome]:
        saved = world.save()
        unkilled = self.unkilled(mortal, plan, lambda _: world)
        reference = None
        if world.restorable:
            reference = self._reference(mortal, plan, unkilled, lambda _: _restored(world, saved))
        for boundary in _moments(unkilled, plan):
            world.restore(saved)
            yield self._killed_at(mortal, boundary, world, reference)
        world.restore(saved)

    def unkilled(self, mortal: Mortal, plan: FaultPlan, world: MakeWorld | None = None) -> Unkilled:
        """Run the saga and leave it alone. Raises `UsageError` when it does not end as the plan says.

        Without a world, what was found is remembered.
        """
        key = mortal.saga, str(plan), encode(dict(mortal.context), "context")
        if world is None and key in self._unkilled:
            return self._unkilled[key]
        with _folder() as folder:
            run = Run(mortal, plan, folder, None if world is None else world(folder))
            for _ in self._ended([run]):
                check_end(run)
            found = Unkilled(Diary(folder / DIARY).labels, seen(run.world))
        if world is None:
            self._unkilled[key] = found
        return found

    def _reference(self, mortal: Mortal, plan: FaultPlan, unkilled: Unkilled, world_of: MakeWorld) -> Reference | None:
        if unkilled.after is None:
            return None
        return Reference(unkilled.after, lambda: self.unkilled(mortal, plan, world_of).after)

    def _killed_at(
        self, mortal: Mortal, boundary: Boundary, world: World | None, reference: Reference | None, reproduce: str = ""
    ) -> KilledOutcome:
        return next(self._killed(mortal, [boundary], lambda _: world, reference, reproduce))

    def _killed(
        self,
        mortal: Mortal,
        moments: Sequence[Boundary],
        world_of: MakeWorld,
        reference: Reference | None,
        reproduce: str = "",
    ) -> Iterator[KilledOutcome]:
        with _folder() as folder:
            runs = []
            for number, boundary in enumerate(moments):
                own = folder / str(number)
                own.mkdir()
                runs.append(Run(mortal, boundary.plan, own, world_of(own), boundary))
            places = {str(run.folder): number for number, run in enumerate(runs)}
            ended = list(self._ended(runs))  # the judgement may run the saga once more
            outcomes = {places[str(run.folder)]: judged(run, reference, reproduce) for run in ended}
        yield from (outcomes[number] for number in range(len(runs)))

    def _ended(self, runs: Sequence[Run]) -> Iterator[Run]:
        """Run them, and return each when its processes have ended."""
        by_folder = {str(run.folder): run for run in runs}
        for answer in self._server.run([run.job() for run in runs]):
            run = by_folder[answer["folder"]]
            check_processes(run, answer["ended"])
            yield run


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sagaz-kill-") as name:
        yield Path(name)


def _no_world(_: Path) -> None:
    return None


def _restored(world: World, saved: Mapping[str, Any]) -> World:
    world.restore(saved)
    return world


def _moments(unkilled: Unkilled, plan: FaultPlan) -> list[Boundary]:
    labels = list(unkilled.labels)
    if "turned" in labels:
        labels = labels[labels.index("turned") :]
    return [replace(Boundary.parse(f"kill:{label}"), plan=plan) for label in dict.fromkeys(labels)]


# ---- the whole of it


def kill_everywhere(
    saga: Any,
    context: Mapping[str, Any] | None = None,
    *,
    plans: Iterable[FaultPlan | str] | None = None,
    world: World | MakeWorld | None = None,
    store: str = SQLITE,
    live: bool = False,
    fork: bool = True,
    workers: int | None = None,
    limit: float = 60.0,
) -> Killed:
    """Kill the saga's process at each moment that matters, take the saga up in another one, and judge each end.

    `saga` is `module:qualname`, or the class or function that is found there. The moments are those that the saga
    comes to when it goes forward, and in the rollback of each of the `plans` (by default: none, its failure at its end,
    and that of its last step). Without a `world`, what is judged are the calls that happened, and the store. A `world`
    of fakes that reach the outside is put back for each run; a function is given each run's own folder, prepares the
    outside for that run and returns the world that reads it. `store` is a URL, in which `{folder}` is that folder; one
    on the network needs `live=True`: real time, and the network for the saga as well.

    Raises `UsageError` for a saga that does not complete when it is left alone, or that another process cannot find,
    `NotRunnableError` for one whose engine cannot resume, and `RunningLoopError` inside a running loop.
    """
    _outside_a_loop()
    if store.startswith("memory:"):
        raise UsageError(f"store={store!r}: what is in memory dies with its process; give a store that outlives it")
    if not live and store.partition(":")[0].lower() in _ON_THE_NETWORK:
        raise UsageError(f"store={safe_url(store)!r} is on the network, where only live=True reaches: add that")
    if world is not None and not callable(world):
        as_world(world)
    spec = spec_of(saga)
    mortal = Mortal(spec, model_of(spec), mapping_or_empty(context), store, live, limit=limit)
    chosen = default_plans(mortal.model) if plans is None else tuple(map(as_plan, plans))
    for plan in chosen:
        check_plan(plan, mortal.model)
    with Killer(fork=fork, workers=workers) as killer:
        outcomes = [outcome for plan in chosen for outcome in killer.kill_all(mortal, plan, world)]
    return Killed(mortal.model.name, tuple(outcomes))


def _outside_a_loop() -> None:
    if asyncio._get_running_loop() is not None:
        raise RunningLoopError("kill_everywhere() was called inside a running event loop: call it in a thread")


def spec_of(saga: Any) -> str:
    """Return `module:qualname` of a class or function. Raises `UsageError` where another process cannot find it."""
    if isinstance(saga, str):
        return saga
    spec = f"{getattr(saga, '__module__', '')}:{getattr(saga, '__qualname__', '')}"
    if not spec.startswith(("__main__:", ":")) and not spec.endswith(":") and "<" not in spec:
        try:
            if load_object(spec) is saga:
                return spec
        except UnknownSagaError:
            pass
    raise UsageError(
        f"{saga!r:.80} cannot be found by another process: give a class of an importable module, or a function there "
        f"that makes the saga"
    )


def saga_of(spec: str) -> Any:
    """Return the saga that another process would make."""
    return made_by(load_object(spec))


def model_of(spec: str) -> SagaModel:
    """Return what the saga is made of. Raises `NotRunnableError` when its engine cannot resume."""
    target = saga_of(spec)
    adapter = adapter_for(target)
    if "crash" in adapter.cannot:
        raise NotRunnableError(f"{spec} was not killed: {adapter.cannot['crash']}")
    return asyncio.run(adapter.describe(adapter.create(target)))
