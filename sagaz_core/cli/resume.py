"""`sagaz resume`: go on with a saga whose process died."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from sagaz_core.adapters.locate import adapter_for, saga_of
from sagaz_core.cli.failure import NOT_WELL, Failure
from sagaz_core.cli.live import Live, StepExit, ending, resuming, stopped
from sagaz_core.cli.options import NumberRange, app_option, apps_of, opened, settings_and_path, store_option
from sagaz_core.cli.running import Signals, run, taken_over
from sagaz_core.cli.text import printable, style
from sagaz_core.clock import utc_now
from sagaz_core.engine.load import load_record
from sagaz_core.engine.run import RunOptions, capture_to_resume, state_to_resume
from sagaz_core.errors import DuplicateSagaError, UsageError
from sagaz_core.state import SagaState, SagaStatus
from sagaz_core.storage.base import checked_id

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence
    from typing import Any


@click.command()
@click.argument("saga_id", metavar="ID")
@click.option(
    "--idle",
    metavar="SECONDS",
    type=NumberRange(min=0),
    default=60.0,
    show_default=True,
    help="Only when nothing of it was written for so long.",
)
@click.option("--allow-drift", is_flag=True, help="Also when the saga is not defined as it was recorded.")
@store_option
@app_option
def resume(saga_id: str, idle: float, allow_drift: bool, store: str | None, apps: Sequence[str]) -> None:
    """Run a saga on whose process died, under its own id: for real, in real time, to its end or back.

    What had ended is not run again. A step that was running is: nobody knows whether it had its effect. Make sure that
    no process runs the saga any more. `sagaz find --status executing` lists those that have not ended.

    Exit code: 0 when it completed or was rolled back, now or before; 1 when it is stuck, when its store went away, or
    when another process goes on with it; 2 when nothing was run; 130 or 143 when it was stopped: it undoes what it did.
    """
    settings = settings_and_path()
    live, signals = Live(), Signals()

    async def work() -> SagaState:
        async with opened(store, settings) as storage:
            record = await load_record(storage, checked_id(saga_id))
            target, _ = saga_of(record, apps_of(record, apps, settings))
            adapter = adapter_for(target)
            saga = adapter.create(target)
            model = await adapter.describe(saga)
            state = await state_to_resume(storage, record.saga_id, model, allow_drift=allow_drift)
            if not state.status.ended:
                _check_idle(state, idle)
                live.say(f"{style(printable(state.saga_id), bold=True)}  {printable(state.saga_name)} {state.version}")
                config = await capture_to_resume(getattr(saga, "replay_config", None), storage, state.saga_id)
                options = RunOptions(storage, config, (live,), (live,))
                command = resuming(state.saga_id, store, apps)
                await _watched(adapter.resume(saga, state, options=options), state, signals, command)
            return state

    with signals.handled():
        state = run(work())
    live.say(style(ending(state), bold=True))
    if state.status is SagaStatus.FAILED or not state.status.ended:
        raise Failure(f"saga {state.saga_id!r} is {ending(state)}", NOT_WELL)


def _check_idle(state: SagaState, idle: float) -> None:
    """Raise `UsageError` when the saga wrote something in the last `idle` seconds."""
    assert state.at is not None
    since = max((utc_now() - state.at).total_seconds(), 0)  # the clock of who wrote it may be ahead
    if since < idle:
        raise UsageError(
            f"saga {state.saga_id!r} wrote something {since:.0f} s ago, and may still run: resume it when its "
            f"process is gone (--idle 0 does so now)"
        )


async def _watched(resumed: Coroutine[Any, Any, object], state: SagaState, signals: Signals, command: str) -> None:
    """Run it, and say of what ends it how it left the saga, and which command goes on with it."""
    before, undone = state.seq, len(state.undone)
    try:
        await signals.guard(resumed)
    except asyncio.CancelledError:
        if signals.received:
            raise signals.failure(state) from None
        raise Failure(f"saga {state.saga_id!r} was cancelled from inside: {ending(state)}", NOT_WELL) from None
    except DuplicateSagaError as error:
        raise taken_over(state, [*state.undone][undone:]) from error
    except StepExit as death:
        raise Failure(f"{death}; saga {state.saga_id!r} is what a crash leaves", NOT_WELL) from death
    except Exception as error:  # anyone's, once the saga runs
        if state.seq <= before + 1:  # nothing is told but that it goes on
            raise
        raise stopped(error, state, command) from error
