"""A value of a saga's context to bytes and back, with its exact types.

The bytes are MessagePack behind a header of a mark, the format version and the length; what MessagePack does not have is
an extension of its own. Encoding is also the isolation: what is encoded shares nothing with the value that it came from.

    encode(context)                        # bytes; CannotStoreError names the path of what cannot be stored
    decode(data)                           # classes only from modules that are imported already
    decode(data, resolve=importing_class)  # a store that is trusted: may import their modules
    decode(data, resolve=opaque_class)     # without the application: Opaque objects for its classes

Equal values in equal insertion order give equal bytes; sets are put in an order of their own. No pickle, no eval:
decoding runs no code of the application but `__hash__`, `__eq__` and default factories of its known classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import ormsgpack

from sagaz_core.errors import CannotStoreError, CodecError, CorruptDataError, NewerFormatError
from sagaz_core.storage._codec_classes import (
    Opaque,
    Resolve,
    assemble,
    form_of,
    importing_class,
    known_class,
    opaque_class,
)
from sagaz_core.storage._codec_depth import deeper_than
from sagaz_core.storage._codec_forms import BY_CODE, EMBEDDED, EMBEDDED_FORM, FORMS, LEAF, SET, Form, natural_order
from sagaz_core.storage._codec_walk import MAX_DEPTH, Walk

__all__ = [
    "FORMAT_VERSION",
    "MAX_BYTES",
    "MAX_DEPTH",
    "Opaque",
    "Raw",
    "Resolve",
    "decode",
    "encode",
    "importing_class",
    "known_class",
    "opaque_class",
]

FORMAT_VERSION: Final = 1
MAX_BYTES: Final = 64 * 1024 * 1024

_MARK: Final = 0xC1  # the one byte that MessagePack never uses
_START: Final = bytes((_MARK, FORMAT_VERSION))
_HEADER_SIZE: Final = 6  # mark, version, and the length of what follows in four bytes

_OPTIONS: Final = sum(
    getattr(ormsgpack, f"OPT_PASSTHROUGH_{name}", 0)
    for name in ("BIG_INT", "DATACLASS", "DATETIME", "ENUM", "SUBCLASS", "TUPLE", "UUID")
)
_TELLS_ENUMS: Final = hasattr(ormsgpack, "OPT_PASSTHROUGH_ENUM")  # ormsgpack 1.9; before, only the walk can

# Depths are limited in three places that fit together: what the quick way lets through (255 levels that ormsgpack
# allows, one extension, and _PAYLOAD_DEPTH in it) and what the walk does (at most four stored levels for each of
# MAX_DEPTH) is less than what decoding takes, which ormsgpack's stack use bears (about 600 bytes a level).
_PAYLOAD_DEPTH: Final = 400
_STORED_DEPTH: Final = 1000
_QUICK_EXTENSIONS: Final = 10

_pack = ormsgpack.packb
_Ext = ormsgpack.Ext


class Raw:
    """Bytes that `encode` made, to stand inside another value; decoding gives the value they hold."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        _payload(data, MAX_BYTES)
        self.data = data

    def __repr__(self) -> str:
        return f"Raw({len(self.data)} bytes)"


FORMS[Raw] = EMBEDDED_FORM


def encode(value: Any, at: str = "context") -> bytes:
    """Return the value as bytes. Raises CannotStoreError whose path starts with `at`."""
    if _TELLS_ENUMS:
        try:
            body = _pack(value, _quick, _OPTIONS)
            if _holds_buffer(body, [value]):
                body = _walked(value, at)
        except (TypeError, ValueError, RecursionError):
            body = _walked(value, at)
    else:
        body = _walked(value, at)
    if len(body) > MAX_BYTES:
        raise CannotStoreError(
            f"{at}: {len(body):,} bytes cannot be stored, {MAX_BYTES:,} at most; keep the bulk elsewhere", at
        )
    return _START + len(body).to_bytes(4, "big") + body


def decode(data: bytes | bytearray | memoryview, *, resolve: Resolve = known_class, limit: int = MAX_BYTES) -> Any:
    """Return the value that `encode` was given; `resolve` finds the classes that it names.

    Raises CodecError and nothing else, whatever the bytes: CorruptDataError for damaged ones or more than `limit`,
    NewerFormatError for a version of the future, UnknownTypeError for a class that `resolve` does not find.
    """
    body = _payload(bytes(data), limit)
    if deeper_than(_STORED_DEPTH, body):
        raise CorruptDataError(f"stored data is damaged: nested deeper than {_STORED_DEPTH} levels")
    reader = _Reader(resolve)
    try:
        return ormsgpack.unpackb(body, ext_hook=reader.value)
    except (ValueError, RecursionError) as error:
        raise reader.reason(error) from reader.error


# -- encoding: the quick way -----------------------------------------------------------------------------------------


class _NotQuickError(TypeError):
    """Not for the quick way, which cannot tell whether the value can be stored: the walk decides."""


def _hook(levels: int, outermost: bool) -> Callable[[Any], Any]:
    """Return the function that makes an extension of what MessagePack does not have, up to so many inside each other.

    The number is bounded because ormsgpack bounds its depth in each call only, and overflows the stack beyond.
    """
    below = _hook(levels - 1, False) if levels else None

    def extension(value: Any) -> Any:
        form = FORMS.get(type(value)) or form_of(value)
        if form.shape is LEAF:
            return _Ext(form.code, _pack(form.parts(value), None, _OPTIONS))
        if form.shape is EMBEDDED:
            payload = value.data
        elif below is None:
            raise _NotQuickError
        else:
            parts = form.parts(value)
            payload = _pack_set(parts, below) if form.shape is SET else _pack(parts, below, _OPTIONS)
            if _holds_buffer(payload, parts):
                raise _NotQuickError
        if outermost and deeper_than(_PAYLOAD_DEPTH, payload, form.code):
            raise _NotQuickError
        return _Ext(form.code, payload)

    return extension


def _pack_set(elements: list[Any], default: Callable[[Any], Any] | None) -> bytes:
    ordered = natural_order(elements)
    if ordered is not None:
        return _pack(ordered, default, _OPTIONS)
    return _array(sorted(_pack(element, default, _OPTIONS) for element in elements))


def _array(packed: list[bytes]) -> bytes:
    size = len(packed)
    head = bytes((0x90 | size,)) if size < 16 else b"\xdd" + size.to_bytes(4, "big")
    return head + b"".join(packed)


def _holds_buffer(packed: bytes, parts: Any) -> bool:
    """Say whether lists and dicts in the parts hold a bytearray or memoryview, which ormsgpack 1.10 packs as bytes.

    Only a byte string begins with one of three bytes, so that most values need no look at all.
    """
    if not (b"\xc4" in packed or b"\xc5" in packed or b"\xc6" in packed):
        return False
    waiting = [parts]
    while waiting:
        node = waiting.pop()
        for child in node.values() if type(node) is dict else node:
            cls = type(child)
            if cls is dict or cls is list:
                waiting.append(child)
            elif cls is bytearray or cls is memoryview:
                return True
    return False


_quick = _hook(_QUICK_EXTENSIONS, True)


# -- encoding: the walk ----------------------------------------------------------------------------------------------


class _Packer(Walk):
    """The walk for what the quick way cannot pack or cannot tell from something else. Gives the same bytes."""

    def fits(self, value: Any) -> bool:
        if type(value) is str:
            return _is_utf8(value)
        return type(value) is not int or -(1 << 63) <= value < 1 << 64

    def plain_key(self, key: Any) -> bool:
        return type(key) is str and _is_utf8(key)

    def leaf(self, part: str | bytes) -> Any:
        return self.tree(part)

    def tag(self, form: Form, body: Any, extra: dict[str, Any] | None) -> Any:
        return _Ext(form.code, _pack(body if extra is None else [body, extra]))

    def ordered(self, trees: list[Any]) -> list[Any]:
        return sorted(trees, key=_pack)

    def embedded(self, form: Form, value: Any) -> Any:
        if deeper_than(_STORED_DEPTH - 4 * len(self.trail), value.data, form.code):
            self.fault("an embedded value that is nested this deeply cannot be stored; embed it further out")
        return _Ext(form.code, value.data)


def _is_utf8(text: str) -> bool:
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _walked(value: Any, at: str) -> bytes:
    walk = _Packer(at)
    try:
        return _pack(walk.tree(value))
    except CodecError:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise CannotStoreError(f"{at}: nested too deeply to be stored from here; make it flatter", at) from error


# -- decoding --------------------------------------------------------------------------------------------------------


def _payload(data: bytes, limit: int) -> bytes:
    """Return what follows the header. Raises CodecError if the header or the length is not right."""
    if len(data) > limit + _HEADER_SIZE:
        raise CorruptDataError(f"stored data of {len(data):,} bytes is more than the limit of {limit:,}")
    if len(data) < 2 or data[0] != _MARK or data[1] == 0:
        raise CorruptDataError("stored data is damaged: it does not begin as encoded data does")
    if data[1] > FORMAT_VERSION:
        raise NewerFormatError(
            f"stored data is of format {data[1]}, this release reads up to {FORMAT_VERSION}: upgrade pytest-sagaz"
        )
    size = int.from_bytes(data[2:_HEADER_SIZE], "big")
    if len(data) != size + _HEADER_SIZE:
        raise CorruptDataError(
            f"stored data is damaged: {size:,} bytes expected, got {max(len(data) - _HEADER_SIZE, 0):,}"
        )
    return data[_HEADER_SIZE:]


class _Reader:
    """Opens the extensions of one value. ormsgpack keeps no cause of an error in a hook, so this does."""

    __slots__ = ("error", "resolve")

    def __init__(self, resolve: Resolve) -> None:
        self.resolve = resolve
        self.error: BaseException | None = None

    def value(self, code: int, payload: bytes) -> Any:
        try:
            if code == EMBEDDED_FORM.code:
                return ormsgpack.unpackb(_payload(payload, MAX_BYTES), ext_hook=self.value)
            form = BY_CODE.get(code)
            if form is None:
                raise CorruptDataError(f"stored data is damaged: it has an extension {code}, which does not exist")
            parts = ormsgpack.unpackb(payload, ext_hook=self.value)
            body, extra = parts, None
            if form.paired:
                if type(parts) is not list or len(parts) != 2:
                    raise CorruptDataError(f"stored data is damaged: a {form.tag} with parts that no {form.tag} has")
                body, extra = parts
            return assemble(form, body, extra, self.resolve)
        except BaseException as error:
            if self.error is None:
                self.error = error
            raise

    def reason(self, error: Exception) -> BaseException:
        """Return what to raise for an error of ormsgpack: what a hook raised, if it is ours or not an error at all."""
        first = self.error
        if isinstance(first, CodecError) or not isinstance(first, Exception | None):
            self.error = None
            return first
        return CorruptDataError(f"stored data is damaged: {' '.join(str(first or error).split())[:120]}")
