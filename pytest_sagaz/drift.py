"""Drift as a table: the values that differ from the recorded ones, cut to where they do."""

from __future__ import annotations

import re
from datetime import date, time
from typing import TYPE_CHECKING, Any

from sagaz_core.prove.explain import table
from sagaz_core.prove.normalise import SECRET

if TYPE_CHECKING:
    from collections.abc import Sequence

_WIDTH = 60
_BEFORE = 12  # characters that are kept before the first that differs
_FROZEN = re.compile(r"\bFake(Datetime|Date)\(")


def drift_table(drift: Sequence[tuple[str, Any, Any]]) -> str:
    """Return the table of `(where, recorded, now)` values."""
    return "\n".join(table(("what", "recorded", "now"), [(where, *_pair(where, a, b)) for where, a, b in drift]))


def drift_line(drift: Sequence[tuple[str, Any, Any]]) -> str:
    """Return the first of them, in a line."""
    where, then, now = drift[0]
    was, is_now = _pair(where, then, now)
    more = f" (and {len(drift) - 1} more)" if len(drift) > 1 else ""
    return f"{where} was {was}, is {is_now}{more}"


def _pair(where: str, then: Any, now: Any) -> tuple[str, str]:
    if SECRET.search(where.rpartition(".")[2]):
        return "***", "*** (another)"
    texts = _text(then), _text(now)
    same = next((at for at, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
    cut = same - _BEFORE if max(map(len, texts)) > _WIDTH and same > _BEFORE else 0
    was, is_now = (_cut(text, cut) for text in texts)
    return was, is_now


def _cut(text: str, start: int) -> str:
    text = f"...{text[start:]}" if start else text
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 3]}..."


def _text(value: Any) -> str:
    """Return the value's text; under a frozen clock times are of classes that the user never wrote."""
    if isinstance(value, (date, time)):
        return value.isoformat()
    return _FROZEN.sub(lambda match: f"datetime.{match[1].lower()}(", repr(value))
