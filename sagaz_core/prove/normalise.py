"""Values as text, without what differs from run to run and without secrets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from datetime import date, datetime
from typing import Any
from uuid import UUID

SECRET = re.compile(
    r"pass(word|wd|phrase)?$|pwd|secret|token|credential|api_?key|private_?key|cv[cv]|card_?n(umber|o)|iban|ssn", re.I
)
_DEEPEST = 100
_UUID = re.compile(
    r"(?<![0-9a-z])("  # not \b: in "ch_1b4e28ba…" there is no boundary
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|"
    r"[0-9a-f]{12}[1-8][0-9a-f]{3}[89ab][0-9a-f]{15}"  # uuid4().hex: the version and the variant of RFC 9562
    r")(?![0-9a-z])",
    re.I,
)
_TIME = re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?")
_ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}\b", re.I)


class Normaliser:
    """Writes values so that ids and times, which differ from run to run, do not.

    The same id is always named alike; times are not told apart, because two may fall together or not.
    """

    def __init__(self, known: Mapping[str, str] | None = None) -> None:
        self._known = {own: name for own, name in (known or {}).items() if len(own) > 3}
        self._ids = {_plain(own): name for own, name in self._known.items()}

    @staticmethod
    def nameless() -> Normaliser:
        """Return one that gives all ids the same name."""
        return _Nameless()

    def text(self, text: str) -> str:
        """Return the text with ids, times and addresses named."""
        for own, name in self._known.items():
            text = text.replace(own, name)
        text = _UUID.sub(lambda match: self._name(match[0]), text)
        text = _TIME.sub("<time>", text)
        return _ADDRESS.sub("0x…", text)

    def value(self, value: Any, key: str = "", depth: int = 0) -> str:
        """Return the value's text; a value under a key that sounds secret is `***`."""
        if key and SECRET.search(key):
            return "***"
        deeper = depth + 1
        if deeper > _DEEPEST:
            return "…"  # it may hold itself
        if isinstance(value, Mapping):
            items = dict(value).items()
            return "{" + ", ".join(f"{self.value(k)}: {self.value(v, str(k), deeper)}" for k, v in items) + "}"
        if (named := _fields_of(value)) is not None:
            return f"{type(value).__name__}({', '.join(f'{k}={self.value(v, k, deeper)}' for k, v in named)})"
        if isinstance(value, (list, tuple)):
            inner = ", ".join(self.value(item, "", deeper) for item in value)
            return f"[{inner}]" if isinstance(value, list) else f"({inner})"
        if isinstance(value, (set, frozenset)):
            inner = ", ".join(sorted(self.value(item, "", deeper) for item in value))
            return f"{{{inner}}}" if inner else "set()"
        if isinstance(value, UUID):
            return self._name(str(value))
        if isinstance(value, (datetime, date)):
            return "<time>"
        return self.text(repr(value))

    def _name(self, value: str) -> str:
        return self._ids.setdefault(_plain(value), f"<id {len(self._ids) - len(self._known) + 1}>")


class _Nameless(Normaliser):
    def _name(self, value: str) -> str:
        return "<id>"


def _plain(value: str) -> str:
    return value.replace("-", "").lower()


def _fields_of(value: Any) -> Iterable[tuple[str, Any]] | None:
    """Return what the `repr` of a value would write as `key=value`, or None when it is of another form."""
    kind = type(value)
    if is_dataclass(kind):
        shown = getattr(kind, "__dataclass_params__").repr  # noqa: B009 - no type checker knows it
        names = [field.name for field in fields(value) if field.repr] if shown else None
    elif isinstance(value, tuple):
        names = getattr(kind, "_fields", None)
    elif isinstance(getattr(kind, "model_fields", None), Mapping):  # a pydantic model
        return [(str(name), one) for name, one in kind.__repr_args__(value)]
    else:
        return None
    return None if names is None else [(name, getattr(value, name)) for name in names if hasattr(value, name)]
