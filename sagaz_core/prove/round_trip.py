"""Whether what steps leave in the context is the same after a store has kept it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from sagaz_core.errors import CannotStoreError
from sagaz_core.events import NO_DELTA, Event, StepSucceeded
from sagaz_core.prove.verdict import Finding, Verdict
from sagaz_core.prove.world import ATOMS
from sagaz_core.storage.codec import decode, encode, importing_class


def changed_by_store(step: str) -> Finding:
    """Say that a step leaves something that a store gives back as another thing."""
    return Finding(
        Verdict.CONTEXT_LEAK,
        step,
        f"what {step!r} leaves in the context is another value after it was stored and read back",
        "let the values be plain data, or classes that are equal when they are made again of their fields",
    )


def not_kept(events: Iterable[Event]) -> Iterator[Finding]:
    """Yield what is wrong with what each step of a run has left. What cannot be stored at all is told of elsewhere."""
    for event in events:
        if type(event) is not StepSucceeded or (event.result is None and event.delta is NO_DELTA):
            continue
        if not all(map(_is_kept, (event.result, *event.delta.set.values()))):
            yield changed_by_store(event.step)


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
