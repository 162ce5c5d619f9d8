"""Reading what killed processes left: their diary, and the store; and judging it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sagaz_core.events import StepSucceeded
from sagaz_core.prove.ledger import Entry, Ledger
from sagaz_core.prove.outcome import Outcome
from sagaz_core.prove.verdict import RANKS, Finding, Verdict
from sagaz_core.state import SagaStatus
from sagaz_core.storage.codec import encode

if TYPE_CHECKING:
    from pathlib import Path

    from sagaz_core.faults.plan import Fault, FaultPlan
    from sagaz_core.prove.boundaries import Boundary
    from sagaz_core.state import SagaState


class Diary:
    """What the processes of one run noted, in order."""

    def __init__(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]

    def of(self, *what: str, process: int | None = None) -> Iterator[dict[str, Any]]:
        """Iterate the lines of these kinds, of one process or of all."""
        return (line for line in self.lines if line["what"] in what and process in (None, line["process"]))

    @cached_property
    def ledger(self) -> Ledger:
        """The calls of all processes. One that the kill cut off did not happen, as far as anybody was told."""
        ledger, began = Ledger(), dict[tuple[Any, ...], int]()
        for moment, line in enumerate(self.lines, 1):
            if line["what"] not in ("began", "happened", "failed"):
                continue
            call = line["process"], line["step"], line["undo"], line["attempt"]
            if line["what"] == "began":
                began[call] = moment
            else:
                ledger.entries.append(_entry(call, began.pop(call), moment, line["what"] == "happened"))
        ledger.entries += [_entry(call, moment, moment, False) for call, moment in began.items()]
        return ledger

    @property
    def labels(self) -> list[str]:
        """The moments that the first process came to, each by the first of its names."""
        found: list[str] = []
        for line in self.of("written", "happened", process=1):
            found += [line["label"]] if line["what"] == "happened" else line["labels"][:1]
        return found

    @property
    def status(self) -> SagaStatus | None:
        """How the engine says that the saga ended, if it came to say it."""
        return next((SagaStatus(line["status"]) for line in self.of("result")), None)

    @property
    def cancelled(self) -> bool:
        """Whether the plan cancelled the run."""
        return any(self.of("cancelled"))

    @property
    def error(self) -> str:
        """What a process died of by itself, or `""`."""
        return next((line["error"] for line in self.of("raised")), "")

    @property
    def network(self) -> str:
        """What of the network the saga tried to reach, or `""`."""
        return next((line["error"] for line in self.of("network")), "")

    def missed(self, plan: FaultPlan) -> list[Fault]:
        """Return the faults of the plan that never happened, in none of the processes."""
        fired = {text for line in self.of("fired") for text in line["faults"]}
        return [fault for fault in plan if str(fault) not in fired]


def _entry(call: tuple[Any, ...], began: int, ended: int, happened: bool) -> Entry:
    _, step, undo, attempt = call
    return Entry(step, undo, attempt, began, ended, happened)


class KilledOutcome(Outcome):
    """How a run ended that was killed at its `boundary` and taken up by another process."""

    def __init__(self, boundary: Boundary, diary: Diary, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.boundary = boundary
        self.diary = diary

    @property
    def under(self) -> str:
        """When it was killed."""
        plan = f"{super().under} and" if self.plan else ""
        return f"{plan} killed {self.boundary.sentence}"

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """All that is wrong, the worst first: what the oracle says, and what only a crash can do."""
        if self.boundary.label not in _reached(self.diary):
            return (_never_came(self),)
        # Of a saga that ended otherwise than without the crash, more is known here than the oracle can say.
        otherwise = self.status is not SagaStatus.COMPLETED
        found = [f for f in super().findings if f.verdict is not Verdict.NOT_IDEMPOTENT or not otherwise]
        found += _of_the_crash(self)
        return tuple(sorted(found, key=lambda finding: RANKS[finding.verdict]))


def _reached(diary: Diary) -> set[str]:
    written = {label for line in diary.of("written", process=1) for label in line["labels"]}
    return written | {line["label"] for line in diary.of("happened", process=1)}


def _never_came(outcome: KilledOutcome) -> Finding:
    error = outcome.diary.error or outcome.evidence.state.error
    ended = f"{outcome.status.value}{f' ({error})' if error else ''}"
    return Finding(
        Verdict.VACUOUS,
        outcome.boundary.step,
        f"the saga never came to {outcome.boundary.label}: it ended {ended}",
        "give a context with which the saga gets there, or kill it elsewhere",
    )


def _of_the_crash(outcome: KilledOutcome) -> Iterator[Finding]:
    diary, evidence = outcome.diary, outcome.evidence
    if diary.error:
        yield Finding(
            Verdict.LIE,
            None,
            f"what was stored could not be taken up by another process: {diary.error}",
            "store only what another process can read, and let the saga be made without what the first one knew",
        )
        return
    yield from _lost_events(diary, outcome.events)
    recorded = {step for line in diary.of("written", process=1) for _, kind, step in line["events"] if _is_done(kind)}
    for step in dict.fromkeys(line["step"] for line in diary.of("began", process=2) if not line["undo"]):
        if step in recorded:
            yield Finding(Verdict.LIE, step, f"{step!r} was recorded as done before the crash, and was run again")
    happened = {entry.step for entry in evidence.ledger.entries if entry.happened and not entry.undo}
    for event in outcome.events:
        if isinstance(event, StepSucceeded) and event.how == "run" and event.step not in happened:
            yield Finding(Verdict.LIE, event.step, f"{event.step!r} is recorded as done, and was never run to its end")
    fatal = any(fault.described.fatal for fault in evidence.plan)
    if not fatal and evidence.claimed is not SagaStatus.COMPLETED:
        why = f" ({evidence.state.error})" if evidence.state.error else ""
        yield Finding(
            Verdict.NOT_IDEMPOTENT,
            outcome.boundary.step,
            f"the crash alone should have done no harm, but the saga ended {evidence.claimed.value}{why}",
            "keep what later steps need in the context, not in memory, and let an action that is run again find its "
            "effect and return the same",
        )


def _is_done(kind: str) -> bool:
    return kind == StepSucceeded.__name__


def _lost_events(diary: Diary, events: Iterable[Any]) -> Iterator[Finding]:
    stored = {event.seq: (type(event).__name__, getattr(event, "step", None)) for event in events}
    for line in diary.of("written"):
        for seq, kind, step in line["events"]:
            if stored.get(seq) != (kind, step):
                what = f"event {seq} ({kind}{f' of {step!r}' if step else ''})"
                yield Finding(
                    Verdict.LIE,
                    step,
                    f"{what} was written and is not in the store",
                    "the store must not say that it has written what it can lose",
                )
                return


def left_in_context(state: SagaState) -> dict[str, str]:
    """Return the keys in which the context of a rolled back saga is not what it was, and how."""
    if state.status is not SagaStatus.ROLLED_BACK:
        return {}
    began, context = state.initial, state.context
    found = {}
    for key in [*began, *(key for key in context if key not in began)]:
        if key not in context or key not in began:
            found[key] = "still there" if key in context else "gone"
        elif encode(began[key]) != encode(context[key]):
            found[key] = "changed"
    return found
