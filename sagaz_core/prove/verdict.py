"""What a judgement can say."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How a run ended, in the eyes of the oracle. The first ones outweigh the later ones."""

    VACUOUS = "VACUOUS"
    ENDLESS = "ENDLESS"
    LIE = "LIE"
    ORPHAN = "ORPHAN"
    DOUBLE_UNDO = "DOUBLE_UNDO"
    UNDO_WITHOUT_DO = "UNDO_WITHOUT_DO"
    OUT_OF_ORDER = "OUT_OF_ORDER"
    STUCK = "STUCK"
    NOT_IDEMPOTENT = "NOT_IDEMPOTENT"
    CONTEXT_LEAK = "CONTEXT_LEAK"
    CLEAN = "CLEAN"


MEANING = {
    Verdict.VACUOUS: "the fault never happened, so nothing was tried",
    Verdict.ENDLESS: "the saga does not end",
    Verdict.LIE: "the engine says one thing, what happened is another",
    Verdict.ORPHAN: "an effect was left behind",
    Verdict.DOUBLE_UNDO: "an effect was undone twice",
    Verdict.UNDO_WITHOUT_DO: "something was undone that was never done",
    Verdict.OUT_OF_ORDER: "something is done or undone in an order in which it must not be",
    Verdict.STUCK: "a compensation did not succeed",
    Verdict.NOT_IDEMPOTENT: "doing it twice is not the same as doing it once",
    Verdict.CONTEXT_LEAK: "the context is not what it was before the saga",
    Verdict.CLEAN: "everything is as it must be",
}


RANKS = {verdict: rank for rank, verdict in enumerate(Verdict)}
"""Their places, the worst first."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: what, at which step, in a sentence, and what to change in the saga.

    `culprits` are the steps to blame for it, where it is the whole saga's.
    """

    verdict: Verdict
    step: str | None
    sentence: str
    advice: str = ""
    culprits: tuple[str, ...] = ()


def worst(findings: tuple[Finding, ...]) -> Verdict:
    """Return the verdict of the findings together."""
    return min((finding.verdict for finding in findings), key=RANKS.__getitem__, default=Verdict.CLEAN)
