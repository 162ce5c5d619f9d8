"""Steps that nothing orders: how many ways there are, and what they do to each other."""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING

from sagaz_core.events import Event, StepFailed, StepSucceeded
from sagaz_core.prove.verdict import Finding, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sagaz_core.model import SagaModel
    from sagaz_core.prove.effects import Effects
    from sagaz_core.prove.fights import Fights
    from sagaz_core.prove.summary import Found


MOST_WAYS = 8192


def every_order(model: SagaModel, depth: int = 1, *, cancels: bool = False) -> bool:
    """Whether all orders of the steps can be tried: not of a chain, nor of a DAG that is too wide for so many faults.

    `cancels`: a step that fails has its siblings cancelled, each of which may have had its effect by then.
    """
    if model.linear:
        return False
    # As measured, a fault more is some eight times the work, and siblings that are cut short are four times.
    most: int = MOST_WAYS // (8 ** max(0, depth - 1) * (4 if cancels else 1))
    return ways(model, most) <= most


def ways(model: SagaModel, limit: int) -> int:
    """Return how many ways lead from a set of complete steps to one of a step more, or a number above `limit`."""
    seen: set[frozenset[str]] = {frozenset()}
    new = list(seen)
    found = 0
    while new and found <= limit:
        done = new.pop()
        for step in model.steps:
            if step.name not in done and done.issuperset(step.depends_on):
                found += 1
                more = done | {step.name}
                if more not in seen:
                    seen.add(more)
                    new.append(more)
    return found


def noticed(effects: Effects | Fights, model: SagaModel) -> dict[Found, Finding]:
    """Return what was seen of steps that nothing orders: one reads what the other writes."""
    found: dict[Found, Finding] = dict(effects.noticed)
    writers: dict[str, set[str]] = {}
    for writer, written in effects.writes.items():
        for key in written:
            writers.setdefault(key, set()).add(writer)
    for reader, keys in effects.reads.items():
        if not _unordered(reader, keys, writers, model):
            continue
        for writer, written in effects.writes.items():
            if reader == writer or reader in model.ancestors[writer] or writer in model.ancestors[reader]:
                continue
            for key in sorted(keys & written):
                found.setdefault(
                    (Verdict.OUT_OF_ORDER, reader),
                    Finding(
                        Verdict.OUT_OF_ORDER,
                        reader,
                        f"{reader!r} reads {key!r}, which {writer!r} writes, and nothing says which comes first",
                        f"declare depends_on={writer!r} at step {reader!r}",
                    ),
                )
    return found


def fails_out_of_order(model: SagaModel, events: Sequence[Event], completing: Sequence[Event]) -> Finding | None:
    """Say of which other steps it hangs that a step fails, in one order of the steps, which in another completes."""
    done = _succeeded(events)
    failed = next((event for event in reversed(events) if isinstance(event, StepFailed)), None)
    if failed is None:
        return None  # it did not fail again: it is not for their order
    beside = {name for name in model.order if _side_by_side(model, name, failed.step)}
    first = set(takewhile(lambda name: name != failed.step, _succeeded(completing) or model.order))
    missing = [name for name in model.order if name in beside & first and name not in done]
    others = missing or [name for name in model.order if name in beside - first and name in done]
    if not others:
        return None  # it is not for their order
    when, names = "before" if missing else "after", " and ".join(map(repr, others))
    later, sooner = (failed.step, others[0]) if missing else (others[0], failed.step)
    return Finding(
        Verdict.OUT_OF_ORDER,
        failed.step,
        f"{failed.step!r} fails when it comes {when} {names}, and nothing says which comes first: {failed.error}",
        f"declare depends_on={sooner!r} at step {later!r}",
    )


def _succeeded(events: Sequence[Event]) -> list[str]:
    return [event.step for event in events if isinstance(event, StepSucceeded)]


def _side_by_side(model: SagaModel, one: str, other: str | None) -> bool:
    if other is None or other not in model.ancestors or one == other:
        return False
    return one not in model.ancestors[other] and other not in model.ancestors[one]


def _unordered(reader: str, keys: Iterable[str], writers: Mapping[str, set[str]], model: SagaModel) -> bool:
    """Whether any of the keys is written by a step that nothing orders with the reader."""
    before = model.ancestors[reader]
    others = set[str]().union(*[writers[key] for key in keys if key in writers])
    return any(other != reader and other not in before and reader not in model.ancestors[other] for other in others)
