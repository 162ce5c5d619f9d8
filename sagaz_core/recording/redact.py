"""Pseudonyms: what a recording must not show, replaced by values of the same type.

A pseudonym is made of HMAC-SHA256 (RFC 2104) of the value's encoding under the user's key: equal values stay equal, so
that a replay still finds its way, and without the key no guess can be tested.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sagaz_core.encryption import Encrypted
from sagaz_core.engine.summary import tags_of
from sagaz_core.errors import UsageError
from sagaz_core.events import (
    CompensationFailed,
    CompensationSucceeded,
    Delta,
    ErrorInfo,
    Event,
    SagaFailed,
    SagaStarted,
    StepFailed,
    StepSucceeded,
)
from sagaz_core.storage.codec import Opaque, decode, encode, opaque_class
from sagaz_core.storage.frames import standalone, state_bytes
from sagaz_core.storage.snapshot_ids import named

if TYPE_CHECKING:
    from sagaz_core.storage.base import SagaRecord, SagaSnapshot

_MIN_TEXT = 4  # shorter texts are everywhere: replacing them in messages would only make noise


class Redactor:
    """Replaces the values of some keys, and the same texts wherever else they stand.

    `found` are the keys under which there was something.
    """

    def __init__(self, keys: Iterable[str], secret: bytes | str) -> None:
        self.keys = frozenset(keys)
        self._secret = secret.encode() if isinstance(secret, str) else secret
        self._texts: dict[str, str] = {}
        self._numbers: set[str] = set()
        self._pattern: re.Pattern[str] | None = None
        self.found: set[str] = set()
        if not self.keys:
            raise UsageError("no keys to redact: name them, such as --redact email,card_number")
        if not self._secret:
            raise UsageError("redacting needs a key: set SAGAZ_REDACT_KEY to a secret of your own")

    def learn(self, events: Iterable[Event], snapshots: Iterable[SagaSnapshot]) -> None:
        """Find the texts that stand under the keys, so that they are replaced elsewhere too."""
        for event in events:
            self.event(event)
        for snapshot in snapshots:
            self.snapshot(snapshot)

    def event(self, event: Event) -> Event:
        """Return the event redacted."""
        if isinstance(event, SagaStarted):
            return event._replace(saga_id=self._in_text(event.saga_id), context=self.tree(dict(event.context)))
        if isinstance(event, (StepSucceeded, CompensationSucceeded)):
            delta = Delta(self.tree(dict(event.delta.set)), event.delta.deleted) if event.delta.set else event.delta
            return event._replace(result=self.tree(event.result), delta=delta)
        if isinstance(event, (StepFailed, CompensationFailed)):
            return event._replace(error=self._error(event.error))
        if isinstance(event, SagaFailed) and event.error is not None:
            return event._replace(error=self._error(event.error))
        return event

    def snapshot(self, snapshot: SagaSnapshot) -> SagaSnapshot:
        """Return the snapshot redacted."""
        state = decode(state_bytes(snapshot), resolve=opaque_class)
        for part in ("context", "initial"):
            state[part] = self.tree(state[part])
        for part in ("results", "undone", "layers"):
            if part in state:
                state[part] = {step: self.tree(value) for step, value in state[part].items()}
        if state.get("error") is not None:
            state["error"] = [state["error"][0], self._in_text(state["error"][1])]
        state["saga_id"] = self._in_text(state["saga_id"])
        hidden = snapshot._replace(
            snapshot_id=self._snapshot_id(snapshot, state["saga_id"]),
            saga_id=state["saga_id"],
            step_name=self._in_text(snapshot.step_name),
            tags=tuple(sorted(tags_of(state["context"], dict(snapshot.tags)).items())),
        )
        return standalone(hidden, encode(state, "state"))

    def _snapshot_id(self, snapshot: SagaSnapshot, saga_id: str) -> str:
        """Return the id redacted, which may name the saga."""
        says = named(snapshot.snapshot_id)
        if says is not None and says.saga_id == snapshot.saga_id:
            return saga_id + snapshot.snapshot_id.removeprefix(says.saga_id)
        return self._in_text(snapshot.snapshot_id)

    def record(self, record: SagaRecord) -> SagaRecord:
        """Return who the saga is, redacted: its id may be made of what is hidden."""
        return record._replace(saga_id=self._in_text(record.saga_id))

    def _error(self, error: ErrorInfo) -> ErrorInfo:
        return ErrorInfo(error.type, self._in_text(error.message))

    def _in_text(self, text: str) -> str:
        if text in self._texts:
            return self._texts[text]
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda match: self._texts[match[0]], text)

    def known(self) -> None:
        """Make ready to find, in other texts, what was learned. A number counts only where it stands by itself."""
        long = sorted((text for text in self._texts if len(text) >= _MIN_TEXT), key=len, reverse=True)
        found = [rf"(?<![\w.]){re.escape(t)}(?![\w])" if t in self._numbers else re.escape(t) for t in long]
        self._pattern = re.compile("|".join(found)) if found else None

    def tree(self, value: Any) -> Any:
        """Return the value with what stands under the keys replaced."""
        return self._walk(value, hide=False)

    def _walk(self, value: Any, *, hide: bool) -> Any:
        kind = type(value)
        if isinstance(value, Mapping):
            pairs = [(self._key(k), self._walk(v, hide=self._hides(k) or hide)) for k, v in value.items()]
            return _rebuilt_mapping(value, pairs)
        if isinstance(value, tuple) and hasattr(kind, "_fields"):
            named = zip(kind._fields, value, strict=True)
            return kind(*(self._walk(v, hide=self._hides(name) or hide) for name, v in named))
        if kind in (list, tuple, set, frozenset):
            return kind(self._walk(item, hide=hide) for item in value)
        if isinstance(value, Opaque):
            return self._opaque(value, hide)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return self._fields(value, [f.name for f in dataclasses.fields(value)], hide)
        if hasattr(kind, "model_fields") and hasattr(value, "model_copy"):
            names = list(kind.model_fields)
            names += getattr(value, "__pydantic_extra__", None) or ()
            update = {n: self._walk(getattr(value, n), hide=self._hides(n) or hide) for n in names}
            return value.model_copy(update=update)
        if hide:
            return self.pseudonym(value)
        if kind is str:
            return self._in_text(value)
        if kind is bytes or isinstance(value, PurePath):
            return self._in_other(value)
        return value

    def _in_other(self, value: Any) -> Any:
        """Return bytes or a path with the texts in them replaced."""
        if isinstance(value, PurePath):
            return type(value)(self._in_text(str(value)))
        try:
            return self._in_text(value.decode()).encode()
        except UnicodeDecodeError:
            return value

    def _key(self, key: Any) -> Any:
        return self._in_text(key) if type(key) is str and key not in self.keys else key

    def _hides(self, key: Any) -> bool:
        if key not in self.keys:
            return False
        self.found.add(key)
        return True

    def _opaque(self, value: Opaque, hide: bool) -> Opaque:
        if value.kind in ("enum", "flag"):  # stays, as one of a known class does
            return value
        sections = {
            name: section if name == "unset" else self._walk(section, hide=hide)  # "unset" are names of fields
            for name, section in value.fields.items()
        }
        return dataclasses.replace(value, fields=sections)

    def _fields(self, value: Any, names: Iterable[str], hide: bool) -> Any:
        made = object.__new__(type(value))
        for name in names:
            if hasattr(value, name):
                changed = self._walk(getattr(value, name), hide=self._hides(name) or hide)
                object.__setattr__(made, name, changed)
        return made

    def pseudonym(self, value: Any) -> Any:
        """Return what stands for a value; `None`, booleans and enum members stay, they say nothing of a person."""
        if value is None or isinstance(value, (bool, Enum)):
            return value
        digest = hmac.new(self._secret, encode(value), hashlib.sha256).digest()
        number = int.from_bytes(digest[:8], "big")
        made = _of_type(value, digest, number)
        self._learn(value, made)
        return made

    def _learn(self, value: Any, made: Any) -> None:
        if isinstance(value, (str, PurePath, UUID)):
            self._texts[str(value)] = str(made)
        elif isinstance(value, (int, float, Decimal)):
            for text in (str(value), f"{value:,}"):
                if len(text) >= _MIN_TEXT and text not in self._texts:
                    self._texts[text] = str(made)
                    self._numbers.add(text)
        elif isinstance(value, (bytes, bytearray)):
            with contextlib.suppress(UnicodeDecodeError):
                self._texts[bytes(value).decode()] = f"redacted-{bytes(made).hex()[:12]}"


def _of_type(value: Any, digest: bytes, number: int) -> Any:
    if isinstance(value, str):
        return f"redacted-{digest.hex()[:12]}"
    if isinstance(value, int):
        size = max(1, len(str(abs(value))))
        return (-1 if value < 0 else 1) * (10 ** (size - 1) + number % (9 * 10 ** (size - 1)))
    if isinstance(value, float):
        return float(number % 1_000_000) / 100
    if isinstance(value, Decimal):
        return Decimal(number % 10**6).scaleb(int(value.as_tuple().exponent) if value.is_finite() else 0)
    if isinstance(value, datetime):
        return datetime(2000, 1, 1, tzinfo=value.tzinfo) + timedelta(seconds=number % (365 * 86400))
    if isinstance(value, date):
        return date(2000, 1, 1) + timedelta(days=number % 365)
    if isinstance(value, time):
        return time(number % 24, number // 24 % 60, tzinfo=value.tzinfo)
    if isinstance(value, timedelta):
        return timedelta(seconds=number % 86400)
    if isinstance(value, UUID):
        return UUID(bytes=digest[:16], version=4)
    if isinstance(value, (bytes, bytearray, Encrypted)):
        return type(value)(digest)
    if isinstance(value, PurePath):
        return type(value)(f"redacted-{digest.hex()[:12]}")
    raise UsageError(
        f"a value of type {type(value).__name__!r} cannot be redacted: redact the key above it, or leave it out"
    )


def _rebuilt_mapping(value: Mapping[Any, Any], pairs: list[tuple[Any, Any]]) -> Any:
    if type(value) is dict:
        return dict(pairs)
    made: Any = value.copy() if hasattr(value, "copy") else dict(value)
    made.clear()
    made.update(pairs)
    return made
