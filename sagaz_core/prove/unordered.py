"""Steps that nothing orders: how many ways there are, and what they do to each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sagaz_core.prove.verdict import Finding, Verdict

if TYPE_CHECKING:
    from sagaz_core.model import SagaModel
    from sagaz_core.prove.effects import Effects
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


def noticed(effects: Effects, model: SagaModel) -> dict[Found, Finding]:
    """Return what was seen of steps that nothing orders: one reads what the other writes."""
    found: dict[Found, Finding] = dict(effects.noticed)
    for reader, keys in effects.reads.items():
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
