"""What a saga is now, for those who look for it in a store: told when it has changed."""

from __future__ import annotations

from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sagaz_core.state import SagaStatus
from sagaz_core.storage.base import SagaSummary

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from sagaz_core.state import SagaState

LONGEST_TAG = 255
_TURNED_BACK = (SagaStatus.COMPENSATING, SagaStatus.ROLLED_BACK, SagaStatus.FAILED)
_EXECUTING: tuple[str, str, dict[str, str]] = (SagaStatus.EXECUTING.value, "", {})
_PLAIN = (int, float, Decimal, UUID, date, time, timedelta)


class Summarizer:
    """Gives the summary of one run whenever it differs from the last one that was `told`."""

    __slots__ = ("_keys", "_state", "_told", "failed_at")

    def __init__(self, state: SagaState, keys: Iterable[str]) -> None:
        self._state = state
        self._keys = tuple(keys)
        self._told: tuple[Any, ...] | None = None
        self.failed_at: datetime | None = None

    def now(self) -> SagaSummary | None:
        """Return the summary, `None` when it says what was told already."""
        state = self._state
        status = state.status
        if status is SagaStatus.EXECUTING and not self._keys and self._told == _EXECUTING:
            return None  # as it is with most steps
        step = (state.failed_step or "") if status in _TURNED_BACK else ""
        tags = tags_of(state.context, self._keys) if self._keys else {}
        if self._told == (status, step, tags):
            return None
        failed_at = (self.failed_at or state.at) if step else None
        return SagaSummary(state.saga_id, state.saga_name, state.seq, status._value_, step, failed_at, tags)

    def tags(self) -> tuple[tuple[str, str], ...]:
        """Return the tags of now, in order of key."""
        return tuple(sorted(tags_of(self._state.context, self._keys).items())) if self._keys else ()

    def told(self, summary: SagaSummary) -> None:
        """Take the summary for told: it is in the store."""
        self._told = (summary.status, summary.step_name, summary.tags)


def tags_of(context: Mapping[str, Any], keys: Iterable[str]) -> dict[str, str]:
    """Return the values of these keys as text. What is longer than 255 characters, or no single value, is left out."""
    found = {}
    for key in keys:
        if key in context:
            text = tag_text(context[key])
            if text is not None and len(text) <= LONGEST_TAG:
                found[key] = text
    return found


def tag_text(value: Any) -> str | None:
    """Return the text that a value is found by: of a date `2024-02-29`, of a truth `true`; `None` if it has none."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, str):
        text = str.__str__(value)
        return text if _is_utf8(text) else None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (date, time)):
        return value.isoformat()
    return str(value) if isinstance(value, _PLAIN) else None


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
