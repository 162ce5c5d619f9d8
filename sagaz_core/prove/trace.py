"""The trace of a run, canonical: the same text for every schedule, clock, id and hash seed.

What is done is written in the saga's own order, what is undone in the reverse of it, as long as that is what happened
up to the order of steps that do not depend on each other; otherwise as it happened, marked `!`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sagaz_core.events import (
    CompensationFailed,
    CompensationSucceeded,
    Delta,
    Event,
    SagaResumed,
    StepFailed,
    StepSucceeded,
)
from sagaz_core.model import END, SagaModel

if TYPE_CHECKING:
    from sagaz_core.prove.evidence import Evidence
    from sagaz_core.prove.world import Change

SECRET = re.compile(
    r"pass(word|wd|phrase)?$|secret|token|credential|api_?key|private_?key|cvv|card_?number|iban|ssn", re.I
)
_DEEPEST = 100
_UUID = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", re.I)
_TIME = re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?")
_ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}\b", re.I)


class Normaliser:
    """Writes values so that ids and times, which differ from run to run, do not.

    The same id is always named alike; times are not told apart, because two may fall together or not.
    """

    def __init__(self, known: Mapping[str, str] | None = None) -> None:
        self._known = dict(known or {})
        self._counts: dict[str, int] = {}

    def text(self, text: str) -> str:
        """Return the text with ids, times and addresses named."""
        for own, name in self._known.items():
            if own and len(own) > 3:
                text = text.replace(own, name)
        text = _UUID.sub(lambda match: self._name("id", match[0].lower()), text)
        text = _TIME.sub("<time>", text)
        return _ADDRESS.sub("0x…", text)

    def value(self, value: Any, key: str = "", depth: int = 0) -> str:
        """Return the value's text; a value under a key that sounds secret is `***`."""
        if key and SECRET.search(key):
            return "***"
        deeper = depth + 1
        if deeper > _DEEPEST:
            return "…"  # it may hold itself
        if isinstance(value, Mapping):
            return "{" + ", ".join(f"{k!r}: {self.value(v, str(k), deeper)}" for k, v in dict(value).items()) + "}"
        if type(value) in (list, tuple):
            inner = ", ".join(self.value(item, "", deeper) for item in value)
            return f"[{inner}]" if type(value) is list else f"({inner})"
        if isinstance(value, (set, frozenset)):
            return "{" + ", ".join(sorted(self.value(item, "", deeper) for item in value)) + "}"
        if isinstance(value, UUID):
            return self._name("id", str(value))
        if isinstance(value, (datetime, date)):
            return "<time>"
        return self.text(repr(value))

    def _name(self, kind: str, value: str) -> str:
        if value not in self._known:
            number = self._counts[kind] = self._counts.get(kind, 0) + 1
            self._known[value] = f"<{kind} {number}>"
        return self._known[value]


def render(evidence: Evidence, changes: Sequence[Change]) -> str:
    """Return the golden text of a run."""
    names = Normaliser({evidence.state.saga_id: "<saga>"})
    lines = [f"saga {evidence.model.name} {evidence.model.version}"]
    if evidence.plan:
        lines.append(f"plan {evidence.plan}")
    lines += [f"ends {evidence.claimed.value}", ""]
    width = max((len(name) for name in (*evidence.model.names, END)), default=0)
    for mark, step, what in trace_rows(evidence.model, evidence.events, names):
        lines.append(f"{mark:<5} {step:<{width}}  {what}".rstrip())
    if evidence.state.stuck:
        lines += ["", f"stuck {', '.join(evidence.state.stuck)}"]
    lines += ["", *_context_lines(evidence, names)]
    if evidence.world_changes is not None:
        lines += ["", *(_world_lines(changes, names) or ["world: as it was"])]
    return "\n".join(lines) + "\n"


def trace_rows(model: SagaModel, events: Iterable[Event], names: Normaliser) -> list[tuple[str, str, str]]:
    """Return `(mark, step, what)` for each thing that happened, in canonical order."""
    done: dict[str, list[tuple[str, str, str]]] = {}
    undone: list[tuple[str, tuple[str, str, str]]] = []
    resumed: list[tuple[str, str, str]] = []
    for event in events:
        if isinstance(event, StepSucceeded):
            how = "" if event.how == "run" else event.how
            done.setdefault(event.step, []).append(("do", event.step, _join(how, _delta(event.delta, names))))
        elif isinstance(event, StepFailed):
            step = event.step or END
            failed = names.text(str(event.error)) + (" (in doubt)" if event.in_doubt else "")
            done.setdefault(step, []).append(("fail", step, failed))
        elif isinstance(event, CompensationSucceeded):
            what = "" if event.result is None else f"= {names.value(event.result)}"
            undone.append((event.step, ("undo", event.step, _join(what, _delta(event.delta, names)))))
        elif isinstance(event, CompensationFailed):
            undone.append((event.step, ("stuck" if event.final else "retry", event.step, names.text(str(event.error)))))
        elif isinstance(event, SagaResumed):
            resumed.append(("again", "", "resumed by another process"))
    rows = [row for name in (*model.order, END) for row in done.get(name, ())]
    return rows + resumed + _undo_rows(model, undone)


def _undo_rows(model: SagaModel, undone: list[tuple[str, tuple[str, str, str]]]) -> list[tuple[str, str, str]]:
    position = {name: index for index, name in enumerate(model.order)}
    legal = all(
        later not in model.descendants[earlier]
        for index, (earlier, _) in enumerate(undone)
        for later, _ in undone[index + 1 :]
    )
    if legal:
        return [row for _, row in sorted(undone, key=lambda item: -position[item[0]])]
    return [(f"{mark} !", step, what) for _, (mark, step, what) in undone]


def _delta(delta: Delta, names: Normaliser) -> str:
    changed = [f"+{key}={names.value(value, key)}" for key, value in sorted(delta.set.items())]
    return " ".join(changed + [f"-{key}" for key in sorted(delta.deleted)])


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _context_lines(evidence: Evidence, names: Normaliser) -> list[str]:
    initial, context = evidence.state.initial, evidence.state.context
    lines = [f"  {key} = {names.value(value, key)}" for key, value in sorted(context.items()) if key not in initial]
    lines += [
        f"  {key}: {names.value(initial[key], key)} -> {names.value(context[key], key)}"
        for key in sorted(initial)
        if key in context
        and initial[key] is not context[key]
        and names.value(initial[key]) != names.value(context[key])
    ]
    lines += [f"  {key} is gone" for key in sorted(initial) if key not in context]
    return ["context:", *lines] if lines else ["context: as it was"]


def _world_lines(changes: Sequence[Change], names: Normaliser) -> list[str]:
    if not changes:
        return []
    rows = [f"  {c.where}: {names.value(c.before, c.where)} -> {names.value(c.after, c.where)}" for c in changes]
    return ["world:", *sorted(rows)]
