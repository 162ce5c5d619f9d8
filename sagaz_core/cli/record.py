"""`sagaz record`: run a saga once, under full capture."""

from __future__ import annotations

import asyncio
import shlex
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sagaz_core.adapters.base import Adapter
from sagaz_core.adapters.locate import adapter_for, load_saga
from sagaz_core.cli.failure import NOT_WELL, Failure, message_of
from sagaz_core.cli.live import Live, StepExit, ending, resuming, stopped
from sagaz_core.cli.options import (
    checked_output,
    opened,
    read_context,
    settings_and_path,
    store_option,
)
from sagaz_core.cli.running import Signals, run, taken_over
from sagaz_core.cli.text import printable, style
from sagaz_core.clock import Clock, utc_now
from sagaz_core.engine.journal import Journal
from sagaz_core.engine.run import RunOptions
from sagaz_core.errors import DamagedListingError, DefinitionError, DuplicateSagaError, PlanError, UnknownSagaClassError
from sagaz_core.faults.inject import Injector, SimulatedCrash
from sagaz_core.faults.plan import NO_FAULTS, FaultPlan
from sagaz_core.recording import Recording
from sagaz_core.saga.config import ReplayConfig, SnapshotStrategy
from sagaz_core.settings import store_url
from sagaz_core.state import SagaState, SagaStatus
from sagaz_core.storage.base import checked_id
from sagaz_core.storage.codec import opaque_class
from sagaz_core.storage.memory import InMemorySnapshotStorage
from sagaz_core.storage.url import open_storage, safe_url

if TYPE_CHECKING:
    from sagaz_core.model import SagaModel
    from sagaz_core.storage.base import SnapshotStorage


@click.command()
@click.argument("saga", metavar="MODULE:CLASS")
@click.option("--context", metavar="JSON|@FILE|-", default="{}", help="What it begins with. Default: nothing.")
@click.option(
    "--id", "saga_id", metavar="ID", help="Its id, any text that no saga in the store has. Default: a new UUID."
)
@store_option
@click.option("--out", metavar="FILE", help="Also write the recording to this file.")
@click.option("--force", is_flag=True, help="Overwrite the file of --out.")
@click.option("--plan", metavar="PLAN", help="Make it fail so, such as charge@after or ship@before+charge@undo-fail.")
@click.option(
    "--real-time/--virtual-time",
    "real",
    default=None,
    help="Whether it really waits, or time jumps to the next timer (there is no network then). "
    "Default: real time for our own sagas, virtual time for those of the sagaz package.",
)
def record(
    saga: str,
    context: str,
    saga_id: str | None,
    store: str | None,
    out: str | None,
    force: bool,
    plan: str | None,
    real: bool | None,
) -> None:
    """Run a saga once and record it: every event, and its state before each step.

    Prints its id, what happens as it happens, and how it ended. Values of the context are not printed.

    Exit code: 0 when it completed or was rolled back; 1 when it is stuck, when it died of a planned crash (its
    recording is then what a crash leaves), when a planned fault never happened, when its store went away, or when
    another process goes on with it; 2 when something given is wrong, and nothing was written; 130 or 143 when Ctrl-C or
    SIGTERM stopped it: it undoes what it did, and a second one stops it at once.
    """
    settings = settings_and_path()
    initial = read_context(context)
    faults = NO_FAULTS if plan is None else FaultPlan.parse(plan)
    target = _loaded(saga)
    job = Job(
        source=saga,
        adapter=adapter_for(target),
        target=target,
        context=initial,
        saga_id=None if saga_id is None else checked_id(saga_id),
        plan=faults,
        store=store,
        url=store_url(store, settings),
        out=None if out is None else checked_output(out, force=force),
    )
    open_storage(job.url)  # says now what is wrong with the URL
    _record(job, virtual=job.adapter.name == "sagaz" if real is None else not real)
    if job.state.seq < 0:
        raise job.signals.failure(None)
    job.live.say(style(ending(job.state), bold=True))
    job.live.say(_kept(job))
    _judge(job)


def _kept(job: Job) -> str:
    """Say where the recording is, and what proves it."""
    where, command = safe_url(job.url), ["pytest", f"--sagaz-replay={job.live.saga_id}"]
    if job.url.startswith("memory:"):
        if job.out is None:
            return f"recorded in {where}, which ends here; keep it with --out FILE, or in another --store"
        where, command = str(job.out), ["pytest", f"--sagaz-replay={job.out}", f"--app={job.source.partition(':')[0]}"]
    elif job.store is not None:
        command.append(f"--sagaz-store={safe_url(job.store)}")  # its secrets are for the reader to fill in
    return f"recorded in {printable(where)}; prove it with:  {printable(shlex.join(command))}"


@dataclass
class Job:
    """What is recorded, and what became of it."""

    source: str
    adapter: Adapter
    target: Any
    context: dict[str, Any]
    saga_id: str | None
    plan: FaultPlan
    store: str | None
    url: str
    out: Path | None
    live: Live = field(default_factory=Live)
    signals: Signals = field(default_factory=Signals)
    journal: Journal | None = None
    injector: Injector = field(init=False)
    crashed: str = ""

    def __post_init__(self) -> None:
        self.injector = Injector(self.plan)

    @property
    def state(self) -> SagaState:
        """The saga's state, so far."""
        return self.journal.state if self.journal is not None else SagaState()

    @property
    def begun(self) -> bool:
        """Whether the store has some of the run for sure."""
        return self.journal is not None and self.journal.capture is not None and self.journal.capture.begun

    @property
    def resuming(self) -> str:
        """The command that goes on with the saga, `""` where none can: its store ends here, or its engine cannot."""
        if self.url.startswith("memory:") or "crash" in self.adapter.cannot:
            return ""
        return resuming(self.state.saga_id, self.store)

    def keep_journal(self, journal: Journal) -> None:
        """Be told of the run's journal."""
        self.journal = journal


def _loaded(spec: str) -> Any:
    try:
        return load_saga(spec)
    except SystemExit as error:
        raise UnknownSagaClassError(
            f"{spec!r} cannot be imported: its module ends the process ({error.code})"
        ) from None


def _record(job: Job, *, virtual: bool) -> None:
    with job.signals.handled():
        if not virtual:
            run(_record_in(job))
            return
        # Stores may need a network, which virtual time has not. So it is captured in memory, and kept at the end.
        memory = InMemorySnapshotStorage()
        run(_check_free(job))
        try:
            run(_run_and_see(job, memory), virtual=True)
        except Failure:
            run(_keep_from(job, memory))
            raise
        run(_keep_from(job, memory))


async def _check_free(job: Job) -> None:
    async with opened(job.url) as storage:
        with suppress(DamagedListingError):  # another saga's
            await storage.list_sagas(limit=1)  # a store that cannot be read is found out now
        if job.saga_id is not None and await storage.get_saga(job.saga_id) is not None:
            raise DuplicateSagaError(
                f"there is a saga {job.saga_id!r} in the store {safe_url(job.url)} already: give this one another --id"
            )


async def _record_in(job: Job) -> None:
    await _check_free(job)
    async with opened(job.url) as storage:
        try:
            await _run_and_see(job, storage)
        except DefinitionError:
            if job.state.seq >= 0:
                await storage.delete_saga(job.state.saga_id)
            raise
        except Failure:
            await _write_out(job, storage)
            raise
        await _write_out(job, storage)


async def _keep_from(job: Job, memory: SnapshotStorage) -> None:
    if await memory.get_saga(job.state.saga_id) is None:
        return
    async with opened(job.url) as storage:
        recorded = await Recording.from_storage(memory, job.state.saga_id, resolve=opaque_class)
        await recorded.to_storage(storage)
        await _write_out(job, storage)


async def _write_out(job: Job, storage: SnapshotStorage) -> None:
    if job.out is not None and job.state.seq >= 0 and await storage.get_saga(job.state.saga_id) is not None:
        recorded = await Recording.from_storage(storage, job.state.saga_id, resolve=opaque_class)
        recorded.save(job.out)


async def _run_and_see(job: Job, storage: SnapshotStorage) -> None:
    """Run it, and leave in the job how it went. Raises what stopped the run itself."""
    adapter = job.adapter
    saga = _made(adapter, job.target)
    model = await adapter.describe(saga)
    _check_plan(job, model)
    options = RunOptions(
        storage=storage,
        replay_config=_full_capture(saga),
        interceptors=(job.live, job.injector) if job.plan else (job.live,),
        observers=(job.live, job.injector.observe),
        clock=_clock(),
        source=job.source,
        plan=str(job.plan),
        on_journal=job.keep_journal,
    )
    running = partial(adapter.run, saga, job.context, saga_id=job.saga_id, options=options)
    try:
        await job.signals.guard(running())
    except StepExit as death:
        job.crashed = str(death)
    except SimulatedCrash as death:
        job.crashed = f"the process died here (simulated): {death}"
        if job.crashed.endswith("crash-recorded") and job.journal is not None and job.journal.capture is not None:
            await job.journal.capture.flush()
    except asyncio.CancelledError:
        if not job.signals.received and not any(fault.kind == "cancel" for fault in job.injector.fired):
            raise Failure(
                f"saga {job.state.saga_id!r} was cancelled from inside: {ending(job.state)}", NOT_WELL
            ) from None
    except DefinitionError:
        raise
    except DuplicateSagaError as error:
        if job.begun:
            raise taken_over(job.state, [*job.state.undone]) from error
        raise
    except Exception as error:  # the store's, or a value of the user's that cannot be kept
        if not (job.state.results or job.state.undone or job.state.ambiguous):
            raise  # no step was run
        raise stopped(error, job.state, job.resuming) from error
    await job.injector.deliver_late()


def _made(adapter: Adapter, target: Any) -> Any:
    try:
        return adapter.create(target)
    except DefinitionError:
        raise
    except Exception as error:  # the user's constructor
        name = getattr(target, "__qualname__", type(target).__qualname__)
        raise DefinitionError(f"{name} cannot be made: {message_of(error)}") from error


def _check_plan(job: Job, model: SagaModel) -> None:
    job.plan.check(model)
    for fault in job.plan:
        if fault.kind in job.adapter.cannot:
            raise PlanError(f"{fault}: {job.adapter.cannot[fault.kind]}")


def _full_capture(saga: Any) -> ReplayConfig:
    """Return the saga's own settings of capture (of encryption, say), as far as they leave everything captured."""
    own = getattr(saga, "replay_config", None)
    config = own if isinstance(own, ReplayConfig) else ReplayConfig()
    return config.model_copy(
        update={
            "enable_snapshots": True,
            "snapshot_strategy": SnapshotStrategy.BEFORE_EACH_STEP,
            "journal": True,
            "max_snapshots_per_saga": None,
            "on_capture_error": "raise",
        }
    )


def _clock() -> Clock:
    """Return the clock of the loop: in virtual time, events are as far from each other as the sleeps between them."""
    now: Clock | None = getattr(asyncio.get_running_loop(), "now", None)
    return now or utc_now


def _judge(job: Job) -> None:
    """Say how it ended, and fail if it did not end well."""
    state = job.state
    if job.signals.received:
        raise job.signals.failure(state)
    if job.crashed:
        raise Failure(f"{job.crashed}; {state.saga_id!r} is what a crash leaves", NOT_WELL)
    problems = []
    if state.status is SagaStatus.FAILED or state.stuck:
        problems.append(f"saga {state.saga_id!r} is {ending(state)}")
    elif not state.status.ended:
        problems.append(f"saga {state.saga_id!r} did not get to an end: {ending(state)}")
    missed = [str(fault) for fault in job.injector.missed]
    if missed:
        problems.append(f"of the plan, {', '.join(missed)} never happened: the saga did not get there")
    if problems:
        raise Failure("; ".join(problems), NOT_WELL)
