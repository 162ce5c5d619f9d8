"""Steps that nothing orders: how many ways there are, and what they do to each other."""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING

from sagaz_core.events import Event, StepFailed, StepStarted, StepSucceeded
from sagaz_core.prove.verdict import Finding, Verdict

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence, Set

    from sagaz_core.model import SagaModel
    from sagaz_core.prove.effects import Effects
    from sagaz_core.prove.fights import Fights
    from sagaz_core.prove.summary import Found

Fight = tuple[str, str]
"""A step that reads a key of the context, and another one that writes it, with nothing that orders them."""

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


def fights(effects: Effects | Fights, model: SagaModel) -> dict[Fight, list[str]]:
    """Return which step reads which keys that another one writes, where nothing orders the two."""
    found: dict[Fight, list[str]] = {}
    writers: dict[str, set[str]] = {}
    for writer, written in effects.writes.items():
        for key in written:
            writers.setdefault(key, set()).add(writer)
    for reader, keys in effects.reads.items():
        if not _unordered(reader, keys, writers, model):
            continue
        for writer in model.order:
            common = keys & effects.writes.get(writer, frozenset())
            if common and _side_by_side(model, reader, writer):
                found[reader, writer] = sorted(common)
    return found


def _says(one: Fight, other: Fight, model: SagaModel) -> bool:
    """Whether the second pair is ordered too, once the first one is."""
    (reader, writer), (later, sooner) = one, other
    return (
        one != other and later in {reader, *model.descendants[reader]} and sooner in {writer, *model.ancestors[writer]}
    )


def noticed(effects: Effects, model: SagaModel) -> dict[Found, Finding]:
    """Return what was seen of steps that nothing orders: one reads what the other writes."""
    return {**effects.noticed, **said_of(fights(effects, model), model)}


def said_of(pairs: Mapping[Fight, list[str]], model: SagaModel) -> dict[Found, Finding]:
    """Return what there is to say of steps that fight."""
    found: dict[Found, Finding] = {}
    written: dict[str, dict[str, str]] = {}
    for (reader, writer), keys in pairs.items():
        if not any(_says(other, (reader, writer), model) for other in pairs):
            written.setdefault(reader, {})[writer] = keys[0]
    for reader, keys_by_writer in written.items():
        what = ", and ".join(f"{key!r}, which {writer!r} writes" for writer, key in keys_by_writer.items())
        needed = list(keys_by_writer)
        found[Verdict.OUT_OF_ORDER, reader] = Finding(
            Verdict.OUT_OF_ORDER,
            reader,
            f"{reader!r} reads {what}, and nothing says which comes first",
            f"declare depends_on={(needed[0] if len(needed) == 1 else needed)!r} at step {reader!r}",
        )
    return found


def fails_out_of_order(
    model: SagaModel,
    events: Sequence[Event],
    completing: Sequence[Event] = (),
    *,
    delayed: Set[str] = frozenset(),
    fights: Collection[Fight] = (),
) -> Finding | None:
    """Say of which other steps it hangs that a step fails, in one order of the steps, which in another completes.

    `completing` is what happened in that one; without it steps are taken to come in the model's order, and those before
    the one that fails that were `delayed`. One that it has `fights` with is said rather than another.
    """
    failures = [event for event in events if isinstance(event, StepFailed)]
    failed = next((event for event in failures if event.final), failures[-1] if failures else None)
    if failed is None or failed.step is None:
        return None  # it did not fail again: it is not for their order
    done = _succeeded(takewhile(lambda event: not _starts(event, failed), events))
    beside = [name for name in model.order if _side_by_side(model, name, failed.step)]
    read = [name for name in beside if (failed.step, name) in fights and name not in done]
    first = {*takewhile(lambda name: name != failed.step, _succeeded(completing) or model.order), *delayed}
    missing = read or [name for name in beside if name in first and name not in done]
    others = missing or [name for name in beside if name not in first and name in done]
    if not others:
        return None  # it is not for their order
    when, names = "before" if missing else "after", " and ".join(map(repr, others))
    last = [name for name in others if model.descendants[name].isdisjoint(others)]
    later, sooner = (failed.step, last) if missing else (others[0], [failed.step])
    return Finding(
        Verdict.OUT_OF_ORDER,
        failed.step,
        f"{failed.step!r} fails when it comes {when} {names}, and nothing says which comes first: {failed.error}",
        f"declare depends_on={(sooner[0] if len(sooner) == 1 else sooner)!r} at step {later!r}",
    )


def _starts(event: Event, failed: StepFailed) -> bool:
    return isinstance(event, StepStarted) and (event.step, event.attempt) == (failed.step, failed.attempt)


def _succeeded(events: Iterable[Event]) -> list[str]:
    return [event.step for event in events if isinstance(event, StepSucceeded)]


def _side_by_side(model: SagaModel, one: str, other: str | None) -> bool:
    if other is None or other not in model.ancestors or one == other:
        return False
    return one not in model.ancestors[other] and other not in model.ancestors[one]


def _unordered(reader: str, keys: Iterable[str], writers: Mapping[str, set[str]], model: SagaModel) -> bool:
    """Whether any of the keys is written by a step that nothing orders with the reader."""
    others = set[str]().union(*[writers[key] for key in keys if key in writers])
    others.discard(reader)
    return bool(others - model.ancestors[reader] - model.descendants[reader])
