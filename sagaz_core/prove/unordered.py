"""Steps that nothing orders: how many ways there are, and what they do to each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sagaz_core.prove.verdict import Finding, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sagaz_core.model import SagaModel
    from sagaz_core.prove.effects import Effects
    from sagaz_core.prove.fights import Fights
    from sagaz_core.prove.summary import Found


MAX_IDEALS = 4096


def every_order(model: SagaModel) -> bool:
    """Whether all orders of the steps can be tried: not of a chain, nor of a DAG that is too wide."""
    return not model.linear and ideals(model, MAX_IDEALS) <= MAX_IDEALS


def ideals(model: SagaModel, limit: int) -> int:
    """Return how many sets of steps can be complete together, or a number above `limit`."""
    seen: set[frozenset[str]] = {frozenset()}
    new = list(seen)
    while new and len(seen) <= limit:
        done = new.pop()
        for step in model.steps:
            if step.name not in done and done.issuperset(step.depends_on):
                more = done | {step.name}
                if more not in seen:
                    seen.add(more)
                    new.append(more)
    return len(seen)


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


def _unordered(reader: str, keys: Iterable[str], writers: Mapping[str, set[str]], model: SagaModel) -> bool:
    """Whether any of the keys is written by a step that nothing orders with the reader."""
    before = model.ancestors[reader]
    others = set[str]().union(*[writers[key] for key in keys if key in writers])
    return any(other != reader and other not in before and reader not in model.ancestors[other] for other in others)
