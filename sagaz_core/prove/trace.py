"""The trace of a run, canonical: the same text for every schedule, clock, id and hash seed.

What is done is written in the saga's own order, what is undone in the reverse of it, as long as that is what happened
up to the order of steps that do not depend on each other; otherwise as it happened, marked `!`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

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
from sagaz_core.prove.normalise import Normaliser

if TYPE_CHECKING:
    from sagaz_core.prove.evidence import Evidence
    from sagaz_core.prove.world import Change


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
    changed = [f"+{names.text(key)}={names.value(value, key)}" for key, value in sorted(delta.set.items())]
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
    same = Normaliser.nameless()  # ids get their names in an order that does not hang on the ids
    ordered = sorted(changes, key=lambda change: _change(change, same))
    return ["world:", *sorted(f"  {_change(change, names)}" for change in ordered)]


def _change(change: Change, names: Normaliser) -> str:
    where, key = names.text(change.where), change.where
    return f"{where}: {names.value(change.before, key)} -> {names.value(change.after, key)}"
