"""One run that is killed: what is asked of its processes, and what they left, read and judged."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from sagaz_core.clock import new_id
from sagaz_core.engine.load import load_events
from sagaz_core.errors import NetworkBlockedError, UsageError
from sagaz_core.faults.plan import FaultPlan
from sagaz_core.prove._kill_process import CONTEXT, DIARY, OUTPUT
from sagaz_core.prove._kill_server import KillError
from sagaz_core.prove._kill_witness import KILL
from sagaz_core.prove.boundaries import Boundary
from sagaz_core.prove.evidence import Evidence
from sagaz_core.prove.kill_outcome import Diary, KilledOutcome, left_in_context
from sagaz_core.prove.unsteady import Unsteady
from sagaz_core.prove.world import World
from sagaz_core.state import SagaState, SagaStatus
from sagaz_core.storage.codec import encode, importing_class
from sagaz_core.storage.url import open_storage

if TYPE_CHECKING:
    from datetime import datetime

    from sagaz_core.events import Event
    from sagaz_core.model import SagaModel
    from sagaz_core.prove.world import Change, Reading

SQLITE = "sqlite:///{folder}/saga.db"
FOLDER_VARIABLE = "SAGAZ_KILL_FOLDER"


@dataclass
class Mortal:
    """What is killed: where the saga is found (`module:qualname` of a class, an instance or a function that makes one),
    what it is made of, and what it begins with.

    `store` is a URL, in which `{folder}` is each run's own folder. `live` runs it in real time and with the network;
    else `start` is the time at which its clocks stand. `limit` is in seconds, for one process.
    """

    saga: str
    model: SagaModel
    context: Mapping[str, Any] = field(default_factory=dict)
    store: str = SQLITE
    live: bool = False
    start: datetime | None = None
    limit: float = 60.0


@dataclass
class Run:
    """One run, its folder, and what the world showed before it. Without a boundary it is not killed."""

    mortal: Mortal
    plan: FaultPlan
    folder: Path
    world: World | None
    boundary: Boundary | None = None
    saga_id: str = field(default_factory=new_id)
    before: Reading | None = None

    def __post_init__(self) -> None:
        self.plan = self.plan.completed()
        self.store = self.mortal.store.replace("{folder}", quote(self.folder.as_posix(), safe="/:"))
        self.before = seen(self.world)

    def job(self) -> dict[str, Any]:
        """Return what its processes are told, having put the context into its folder."""
        mortal = self.mortal
        (self.folder / CONTEXT).write_bytes(encode(dict(mortal.context), "context"))
        return {
            "folder": str(self.folder),
            "saga": mortal.saga,
            "saga_id": self.saga_id,
            "plan": str(self.plan),
            "at": "" if self.boundary is None else self.boundary.label,
            "store": self.store,
            "environ": {**os.environ, FOLDER_VARIABLE: str(self.folder)},
            "cwd": os.getcwd(),
            "live": mortal.live,
            "start": mortal.start.isoformat() if mortal.start is not None else "",
            "limit": mortal.limit,
        }


def seen(world: World | None) -> Reading | None:
    """Return what the world shows now."""
    return None if world is None else asyncio.run(world.read())


# ---- what the processes left


def check_processes(run: Run, ended: Sequence[int]) -> None:
    """Raise `KillError` unless the processes ended by themselves, or the first one by the kill that it was told."""
    raised = bool(Diary(run.folder / DIARY).error)
    for number, code in enumerate(ended):
        if code == 0 or (code == 1 and raised) or (number == 0 and run.boundary is not None and abs(code) == KILL):
            continue
        if -code == getattr(signal, "SIGALRM", None):
            raise KillError(f"the process that was to be killed did not end within {run.mortal.limit:g} s")
        output = run.folder / OUTPUT
        printed = output.read_text(encoding="utf-8", errors="replace").splitlines() if output.exists() else []
        last = f": {printed[-1]}" if printed else ""
        raise KillError(f"a process that ran saga {run.mortal.model.name!r} ended with exit code {code}{last}")


def check_end(run: Run) -> None:
    """Raise unless the run, which was not killed, ended as its plan says."""
    diary, name = Diary(run.folder / DIARY), run.mortal.model.name
    under = f" under {run.plan}" if run.plan else ""
    _check_network(diary)
    if diary.error:
        raise UsageError(f"saga {name!r}{under} cannot run in another process: {diary.error}")
    fatal = any(fault.described.fatal for fault in run.plan)
    if not diary.cancelled and (diary.status is SagaStatus.COMPLETED) is fatal:
        error = _fold(asyncio.run(_read(run)))[0].error
        raise UsageError(
            f"saga {name!r}{under} ends {diary.status}{f' ({error})' if error else ''} although nobody kills it: "
            f"give a context, and services that {run.mortal.saga} has in any process, with which it does not"
        )


def _check_network(diary: Diary) -> None:
    if diary.network:
        raise NetworkBlockedError(f"{diary.network}: give it fakes, or let it with live=True or --sagaz-allow-live")


async def _read(run: Run) -> Sequence[Event]:
    """Return what is stored. Its classes may be imported: the store is ours."""
    storage = open_storage(run.store)
    try:
        return await load_events(storage, run.saga_id, resolve=importing_class)
    finally:
        await storage.close()


@dataclass
class Reference:
    """What the world shows `after` a run that was not killed; `again` runs it once more, to see what differs by itself.

    That is done only when something does differ after a run that was killed.
    """

    after: Reading
    again: Callable[[], Reading | None]
    _unsteady: Unsteady | None = None

    def changes(self, world: World, after: Reading) -> Sequence[Change]:
        """Return where the world is not what it is without the kill."""
        found = world.changes(self.after, after)
        if found and self._unsteady is None:
            other = self.again()
            self._unsteady = Unsteady(() if other is None else world.changes(self.after, other))
        return self._unsteady.without(found) if found and self._unsteady else found


def judged(run: Run, reference: Reference | None, reproduce: str) -> KilledOutcome:
    """Return the outcome of a run that has ended; `reference` is the world after one that was not killed."""
    diary, boundary, world = Diary(run.folder / DIARY), run.boundary, run.world
    assert boundary is not None
    _check_network(diary)
    after, changes, reference_changes = seen(world), None, None
    if world is not None and run.before is not None and after is not None:
        changes = world.changes(run.before, after)
        reference_changes = None if reference is None else reference.changes(world, after)
    state, events = _fold(asyncio.run(_read(run)))
    evidence = Evidence(
        model=run.mortal.model,
        plan=replace(boundary, plan=run.plan).struck,
        missed=diary.missed(run.plan),
        claimed=diary.status or state.status,
        state=state,
        events=events,
        ledger=diary.ledger,
        world_changes=changes,
        reference_changes=reference_changes,
        cancelled=diary.cancelled,
        left_in_context=left_in_context(state),
    )
    return KilledOutcome(boundary, diary, evidence, changes or (), reproduce, None, after, boundary.plan)


def _fold(events: Sequence[Event]) -> tuple[SagaState, Sequence[Event]]:
    """Return the last state, and the events up to it: up to the first gap, in a store that has lost some."""
    state = SagaState()
    for count, event in enumerate(events):
        if event.seq != count:
            return state, events[:count]
        state.apply(event)
    return state, events
