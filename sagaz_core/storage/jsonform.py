"""A value of a saga's context as JSON that a person can read and compare, and back with its exact types.

Plain data stands as it is; every other type is an object with one key that begins with `$`:

    {"$decimal": "12.50"}    {"$datetime": "2026-07-15T14:30:00+02:00[Europe/Berlin]"}    {"$tuple": [1, 2]}
    {"$set": ["a", "b"]}     {"$dict": [[1, "one"], [2, "two"]]}     {"$enum": "shop.orders:Color", "name": "RED"}
    {"$dataclass": "shop.orders:Order", "fields": {"id": 1, "total": {"$decimal": "12.50"}}}

A dict with keys that are not strings or begin with `$` is a `$dict`, so nothing plain can be taken for a tag. The order
of a dict's keys is part of its value: write the text with `sort_keys=False`.
"""

from __future__ import annotations

import base64
import gc
import json
import math
from typing import Any, Final, NoReturn

from sagaz_core.errors import CorruptDataError
from sagaz_core.storage._codec_classes import Resolve, assemble, known_class
from sagaz_core.storage._codec_forms import BY_TAG, OBJECT, Form
from sagaz_core.storage._codec_walk import MAX_DEPTH, TOO_DEEP, Walk, is_utf8, shorten, show_key

__all__ = ["MAX_NODES", "from_json", "parse_json", "to_json"]

MAX_NODES: Final = 5_000_000
MAX_JSON_DEPTH: Final = 3 * MAX_DEPTH + 3  # `{"$dict": [[k, v]]}` takes three levels

_SCALARS: Final = frozenset({type(None), bool, int, float, str})


def parse_json(text: str | bytes, **hooks: Any) -> Any:
    """Do what `json.loads` does. Raises ValueError, or RecursionError for a text that is nested too deeply.

    No garbage is collected meanwhile, which takes half of the time of a large text. Up to Python 3.11 it could also be
    collected deep inside a nested one, where finalizers of others fail for want of stack.
    """
    if not gc.isenabled():  # perhaps as another thread parses: that one turns it on again
        return json.loads(text, **hooks)
    try:
        gc.disable()
        return json.loads(text, **hooks)
    finally:
        gc.enable()


def to_json(value: Any, at: str = "context") -> Any:
    """Return what `json.dumps` takes. Raises CannotStoreError whose path starts with `at`."""
    writer = _Writer(at)
    try:
        return writer.tree(value)
    except RecursionError as error:
        writer.fault(TOO_DEEP, error)


def from_json(obj: Any, *, resolve: Resolve = known_class, limit: int = MAX_NODES) -> Any:
    """Return the value that `to_json` was given, from what `json.loads` gave; `resolve` finds the classes it names.

    Raises CodecError and nothing else, whatever the object: CorruptDataError names the place, and is also raised for
    more than `limit` values; UnknownTypeError names a class that `resolve` does not find.
    """
    reader = _JsonReader(resolve, limit)
    try:
        return reader.value(obj)
    except RecursionError:
        raise CorruptDataError("stored data is damaged: nested too deeply") from None


class _Writer(Walk):
    def fits(self, value: Any) -> bool:
        cls = type(value)
        if cls is str:
            return is_utf8(value)
        if cls is int:
            return bool(-(1 << 63) <= value < 1 << 64)
        if cls is float:
            return math.isfinite(value)
        return value is None or cls is bool

    def plain_key(self, key: Any) -> bool:
        return type(key) is str and bool(key[:1] != "$") and is_utf8(key)

    def leaf(self, part: str | bytes) -> Any:
        return base64.b64encode(part).decode() if type(part) is bytes else self.tree(part)

    def tag(self, form: Form, body: Any, extra: dict[str, Any] | None) -> Any:
        return {f"${form.tag}": body, **(extra or {})}

    def ordered(self, trees: list[Any]) -> list[Any]:
        return sorted(trees, key=json.dumps)


class _JsonReader:
    def __init__(self, resolve: Resolve, limit: int) -> None:
        self.resolve = resolve
        self.left = limit
        self.trail: list[Any] = []

    def value(self, obj: Any) -> Any:
        cls = type(obj)
        if cls in _SCALARS:
            return obj
        if cls is not list and cls is not dict:
            self.fault(f"a {cls.__name__} is not JSON")
        self.left -= len(obj)
        if self.left < 0:
            raise CorruptDataError("stored data has more values than the limit allows")
        if len(self.trail) >= MAX_JSON_DEPTH:
            self.fault(f"nested deeper than {MAX_JSON_DEPTH} levels")
        values = []
        for step, item in enumerate(obj) if cls is list else obj.items():
            if type(item) in _SCALARS:
                values.append(item)
            else:
                self.trail.append(step)
                values.append(self.value(item))
                self.trail.pop()
        if cls is list:
            return values
        fields = dict(zip(obj, values, strict=True))
        tags = [key for key in obj if type(key) is not str or key[:1] == "$"]
        return self.tagged(tags, fields) if tags else fields

    def tagged(self, tags: list[Any], fields: dict[str, Any]) -> Any:
        form = BY_TAG.get(tags[0][1:]) if len(tags) == 1 and type(tags[0]) is str else None
        if form is None:
            self.fault(f"{', '.join(map(show_key, tags))} is not a tag")
        body = fields.pop(tags[0])
        if form.binary:
            body = self.binary(body)
        if fields and form.shape is not OBJECT and not form.extra:
            self.fault(f"a {form.tag} with parts that no {form.tag} has")
        try:
            return assemble(form, body, fields if form.paired else None, self.resolve)
        except CorruptDataError as error:
            raise CorruptDataError(f"{self.path()}: {error}") from error.__cause__

    def binary(self, text: Any) -> bytes:
        try:
            return base64.b64decode(text, validate=True)
        except (ValueError, TypeError):
            self.fault("not base64")

    def fault(self, why: str) -> NoReturn:
        raise CorruptDataError(f"{self.path()}: stored data is damaged: {why}")

    def path(self) -> str:
        return shorten("$" + "".join(f"[{show_key(step)}]" for step in self.trail))
