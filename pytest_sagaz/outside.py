"""An outside that nothing puts back: what one test leaves in it, the next ones find."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from sagaz_core.errors import SagazError
from sagaz_core.prove.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sagaz_core.prove.outcome import Outcome
    from sagaz_core.prove.world import World

_LEFT = pytest.StashKey[dict[str, str]]()
_MOST = 3


@contextmanager
def put_back(world: World | None) -> Iterator[None]:
    """Put the world's fakes back at the end: they may be of the module, where the next test finds what this one did."""
    saved = world.save() if world else {}
    try:
        yield
    finally:
        if world:
            with suppress(SagazError):  # a fake that cannot be put back is told of where that is needed
                world.restore(saved)


def note_left(item: pytest.Item, outcome: Outcome, world: World | None) -> None:
    """Where the world is not put back, keep that the test has changed it; of a LIE, say which tests did so before."""
    changes = outcome.evidence.world_changes
    if not changes or world is None or world.restorable:
        return
    left = item.config.stash.setdefault(_LEFT, {})
    if outcome.verdict is Verdict.LIE and (note := _note(left)):
        item.add_report_section("call", "sagaz: the world was not put back", note)
    left[item.nodeid] = "; ".join(map(str, changes[:_MOST]))


def _note(left: dict[str, str]) -> str:
    lines = [f"  {name}  {what}" for name, what in list(left.items())[-_MOST:]]
    if lines:
        more = f", of {len(left)} tests the last ones" if len(left) > len(lines) else ""
        lines = [f"It has probes, which only read it. Before this test these left it changed{more}:", *lines]
    if "PYTEST_XDIST_WORKER" in os.environ:
        lines.append("Other workers may act on it at the same time: give each its own, or run without -n.")
    if lines:
        lines.append(
            "What is left over looks like an effect of this test's saga: put it back in the fixture saga_world."
        )
    return "\n".join(lines)
