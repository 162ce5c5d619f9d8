"""What a run did, a line an event: shown while it runs, or read from a recording."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from sagaz_core.cli.failure import NOT_WELL, Failure, message_of
from sagaz_core.cli.text import drop_output, printable, style
from sagaz_core.events import (
    CompensationFailed,
    CompensationStarted,
    CompensationSucceeded,
    Delta,
    Event,
    SagaResumed,
    SagaStarted,
    StepFailed,
    StepRetryScheduled,
    StepStarted,
    StepSucceeded,
)
from sagaz_core.faults.inject import SimulatedCrash
from sagaz_core.model import END
from sagaz_core.state import SagaState, SagaStatus
from sagaz_core.storage.url import safe_url

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sagaz_core.interceptor import Proceed, StepCall


class Line(NamedTuple):
    """What is shown of one event."""

    mark: str
    step: str
    detail: str = ""


_COLOURS: Mapping[str, str] = {
    "done": "green",
    "served": "cyan",
    "failed": "red",
    "undone": "yellow",
    "stuck": "bright_red",
}


_STARTS: Mapping[str, str] = {"action": "start", "compensation": "undo", "recovery": "recover"}


class StepExit(SimulatedCrash):
    """A step called `sys.exit()`, which ends a process in the middle of a saga, as a crash does."""


class Live:
    """Prints what happens in a run as it happens: an observer for the ends of calls, an interceptor for their starts.

    So a step that is said to start is recorded as started, and its action is being called: whoever kills the process
    then finds it so in the store. A closed output ends the printing, never the run.
    """

    def __init__(self) -> None:
        self.saga_id = ""
        self._open = True

    def __call__(self, event: Event) -> None:
        if isinstance(event, SagaStarted):
            self.saga_id = event.saga_id
            self.say(f"{style(printable(event.saga_id), bold=True)}  {printable(event.saga_name)} {event.version}")
        line = line_of(event)
        if line is not None and not isinstance(event, (StepStarted, CompensationStarted)):
            self.say(text_of(line))

    async def intercept(self, call: StepCall, proceed: Proceed) -> Any:
        """Say that the call starts, and make it."""
        if call.kind != "end":
            self.say(text_of(Line(_STARTS[call.kind], call.step, _again(call.attempt))))
        try:
            return await proceed()
        except SystemExit as error:  # a loop would let it through at once, past whoever has a line to say about it
            raise StepExit(f"step {call.step!r} called sys.exit({error.code!r})") from error

    def say(self, text: str) -> None:
        """Print a line, if anybody still reads."""
        if self._open:
            try:
                click.echo(text)
            except OSError:
                self._open = False
                drop_output()


def text_of(line: Line) -> str:
    """Return the line as it is printed."""
    mark = style(f"{line.mark:<7}", fg=_COLOURS[line.mark]) if line.mark in _COLOURS else f"{line.mark:<7}"
    return f"  {mark} {printable(line.step)}{f'  {printable(line.detail)}' if line.detail else ''}"


def line_of(event: Event) -> Line | None:
    """Return what is shown of the event; the last one of a saga has no line, `ending` says more."""
    if isinstance(event, StepStarted):
        return Line("start", event.step, _again(event.attempt))
    if isinstance(event, StepSucceeded):
        return Line({"run": "done"}.get(event.how, event.how), event.step, _changes(event.delta))
    if isinstance(event, StepFailed):
        doubt = " (its effect is in doubt)" if event.in_doubt else ""
        return Line("failed", event.step or f"({END})", f"{event.error}{doubt}")
    if isinstance(event, StepRetryScheduled):
        return Line("retry", event.step, f"in {event.delay:g} s")
    if isinstance(event, CompensationStarted):
        return Line("undo", event.step, _again(event.attempt))
    if isinstance(event, CompensationSucceeded):
        return Line("undone", event.step, _changes(event.delta))
    if isinstance(event, CompensationFailed):
        return Line("stuck" if event.final else "failed", event.step, str(event.error))
    if isinstance(event, SagaResumed):
        return Line("again", "", "taken up by another process")
    return None


def _again(attempt: int) -> str:
    return f"attempt {attempt}" if attempt > 1 else ""


def _changes(delta: Delta) -> str:
    # Names only: what is printed ends in logs, and values may be secret.
    return " ".join([*(f"+{key}" for key in delta.set), *(f"-{key}" for key in delta.deleted)])


def ending(state: SagaState) -> str:
    """Say how the saga stands, in a line."""
    why = f" ({printable(str(state.error))})" if state.error else ""
    if state.status is SagaStatus.COMPLETED:
        return f"completed, {_steps(len(state.results))} done"
    if state.status is SagaStatus.ROLLED_BACK:
        return f"rolled back, {_steps(len(state.undone))} undone{why}"
    if state.status is SagaStatus.FAILED:
        return f"stuck at {', '.join(state.stuck) or 'its end'}{why}"
    now = f" at {state.current_step}" if state.current_step else ""
    return f"{state.status.value}{now}, not at an end"


def resuming(saga_id: str, store: str | None, apps: Sequence[str] = ()) -> str:
    """Return the command that goes on with the saga; the secrets of the store's URL are for the reader to fill in."""
    options = [f"--app={app}" for app in apps]
    if store is not None:
        options.append(f"--store={safe_url(store)}")
    return shlex.join(["sagaz", "resume", *options, *(["--"] if saga_id.startswith("-") else []), saga_id])


def stopped(error: Exception, state: SagaState, command: str) -> Failure:
    """Return how a command ends whose run was stopped by an error, with the one that goes on with the saga, if any."""
    then = "" if state.status.ended or not command else f": {command} goes on with it"
    return Failure(f"{message_of(error)} (saga {state.saga_id!r} is {ending(state)}{then})", NOT_WELL)


def _steps(count: int) -> str:
    return f"{count} step{'' if count == 1 else 's'}"
