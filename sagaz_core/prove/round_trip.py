"""Whether what steps leave in the context is the same after a store has kept it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sagaz_core.errors import CannotStoreError
from sagaz_core.events import NO_DELTA, StepSucceeded
from sagaz_core.prove.verdict import Finding, Verdict
from sagaz_core.prove.world import ATOMS
from sagaz_core.storage.codec import decode, encode, importing_class

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sagaz_core.engine.journal import Noted


def changed_by_store(step: str) -> Finding:
    """Say that a step leaves something that a store gives back as another thing."""
    return Finding(
        Verdict.CONTEXT_LEAK,
        step,
        f"what {step!r} leaves in the context is another value after it was stored and read back",
        "let the values be plain data, or classes that are equal when they are made again of their fields",
    )


def not_kept(log: Iterable[Noted]) -> Iterator[Finding]:
    """Yield what is wrong with what each step of a run has left. What cannot be stored at all is told of elsewhere."""
    for kind, fields in log:
        if kind is StepSucceeded:
            _, _, step, _, result, delta, _ = fields
            if delta is NO_DELTA and result is None:
                continue
            if not all(map(_is_kept, (result, *delta.set.values()))):
                yield changed_by_store(step)


def _is_kept(value: Any) -> bool:
    if type(value) in ATOMS:
        return True
    if type(value) is dict and ATOMS.issuperset(map(type, value.values())):
        return True
    try:
        stored = encode(value)
        return encode(decode(stored, resolve=importing_class)) == stored
    except CannotStoreError:
        return True
