"""What is said of an unsound run where many may read it: what failed and what to change, no value of the context."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from sagaz_core.events import CompensationSucceeded, SagaStarted, StepSucceeded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sagaz_core.prove.outcome import Outcome

LEFT_OUT = "…"
_SHORTEST = 4  # a shorter value says nothing, and is in half of all words
_DEEPEST = 20
_OVERRIDE = re.compile(r"^(--sagaz-override=[^=]*=).*", re.S)


class Failure(NamedTuple):
    """One unsound run. `table` is the text that explains it, `source` the test or exploration that found it, `accepted`
    why that passed all the same (an xfail's reason, or that the test asserts something else), or `""`.
    """

    plan: str
    verdict: str
    step: str
    sentence: str
    advice: str
    table: str
    reproduce: str
    source: str = ""
    accepted: str = ""


def failure_of(outcome: Outcome, source: str = "", accepted: str = "") -> Failure:
    """Return the facts of an outcome that has findings. Values of the context and of the world are left out of them."""
    first = outcome.findings[0]
    rows = [row for row in outcome.explain().split("\n") if not row.startswith("again ")]
    hide = _hider(outcome)
    return Failure(
        str(outcome.plan) or "none",
        first.verdict.value,
        first.step or "",
        hide(first.sentence),
        hide(first.advice),
        hide("\n".join(rows)),
        _without_overrides(outcome.reproduce),
        source,
        accepted,
    )


def _without_overrides(command: str) -> str:
    if "--sagaz-override=" not in command:
        return command
    words = [_OVERRIDE.sub(rf"\1{LEFT_OUT}", word) for word in shlex.split(command)]
    return " ".join(word if LEFT_OUT in word else shlex.quote(word) for word in words)


def _hider(outcome: Outcome) -> Any:
    """Return the function that takes values out of a text: first where they are known to be, then wherever they are."""
    evidence = outcome.evidence
    places = {}
    for change in (*outcome.world_changes, *(evidence.reference_changes or ())):
        places[str(change)] = f"{'.'.join(change.where.split('.')[:2])} differs"
    error = evidence.state.error
    if error is not None and error.message:
        places[str(error)] = error.type.rpartition(":")[2]
    names = {outcome.saga_name, *evidence.model.names}
    values = sorted({text for text in _texts(_contexts(outcome)) if text not in names}, key=len, reverse=True)
    pattern = re.compile("|".join(rf"(?<!\w){re.escape(text)}(?!\w)" for text in values)) if values else None

    def hide(text: str) -> str:
        for said, instead in places.items():
            text = text.replace(said, instead)
        return pattern.sub(LEFT_OUT, text) if pattern is not None else text

    return hide


def _contexts(outcome: Outcome) -> Iterator[Mapping[str, Any]]:
    """Every mapping that was ever the context, or was laid over it."""
    state = outcome.evidence.state
    yield from (state.initial, state.context)
    for event in outcome.evidence.events:
        if isinstance(event, SagaStarted):
            yield event.context
        elif isinstance(event, (StepSucceeded, CompensationSucceeded)):
            yield event.delta.set


def _texts(values: Iterable[Any], depth: int = 0) -> Iterator[str]:
    for value in values if depth < _DEEPEST else ():
        if isinstance(value, Mapping):
            yield from _texts(value.values(), depth + 1)
        elif isinstance(value, (list, tuple, set, frozenset)):
            yield from _texts(value, depth + 1)
        elif hasattr(value, "__dict__"):
            yield from _texts(vars(value).values(), depth + 1)
        elif value is not None and not isinstance(value, bool):
            text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
            if len(text) >= _SHORTEST:
                yield text
