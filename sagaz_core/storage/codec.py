"""A value of a saga's context to bytes and back, with its exact types.

The bytes are MessagePack behind a header of a mark, the format version and the length; what MessagePack does not have
is an extension of its own. Encoding is also the isolation: the bytes share nothing with the value.

    encode(context)                        # bytes; CannotStoreError names the path of what cannot be stored
    decode(data)                           # classes only from modules that are imported already
    decode(data, resolve=importing_class)  # a store that is trusted: may import their modules
    decode(data, resolve=opaque_class)     # without the application: Opaque objects for its classes

Equal values in equal insertion order give equal bytes; sets are put in an order of their own. No pickle, no eval:
decoding runs no code of the application but `__hash__`, `__eq__` and default factories of its known classes.
"""

from __future__ import annotations

from datetime import UTC
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import ormsgpack

from sagaz_core.errors import CannotStoreError, CodecError, CorruptDataError, NewerFormatError
from sagaz_core.storage._codec_classes import (
    Opaque,
    Resolve,
    assemble,
    importing_class,
    known_class,
    opaque_class,
)
from sagaz_core.storage._codec_depth import deeper_than
from sagaz_core.storage._codec_forms import BY_CODE, BY_TAG, FORMS, LEAF, Form
from sagaz_core.storage._codec_quick import array_head, map_head, pack
from sagaz_core.storage._codec_walk import MAX_DEPTH, TOO_DEEP, Walk, is_utf8

if TYPE_CHECKING:
    from datetime import datetime

__all__ = [
    "FORMAT_VERSION",
    "MAX_BYTES",
    "MAX_DEPTH",
    "Opaque",
    "Resolve",
    "decode",
    "encode",
    "importing_class",
    "is_whole",
    "known_class",
    "list_of",
    "map_head",
    "moment_part",
    "opaque_class",
    "part",
    "whole",
]

FORMAT_VERSION: Final = 1
MAX_BYTES: Final = 64 * 1024 * 1024

_MARK: Final = 0xC1  # the one byte that MessagePack never uses
_START: Final = bytes((_MARK, FORMAT_VERSION))
_DATETIME: Final = BY_TAG["datetime"]
_UTC_MOMENT: Final = bytes((0xC7, 34, _DATETIME.code, 0xD9, 32))  # an extension of 34 bytes: a string of 32
_LISTS: Final = [array_head(size) for size in range(16)]
_HEADER_SIZE: Final = 6  # mark, version, and the length of what follows in four bytes

# ormsgpack reads 1024 levels in one call, at some 600 bytes of stack each. Three extensions inside each other are read
# without a look; deeper ones only after the whole is measured. What is packed is never deeper: see _codec_quick.
_UNMEASURED_EXTENSIONS: Final = 3
_STORED_DEPTH: Final = 1030


def encode(value: Any, at: str = "context") -> bytes:
    """Return the value as bytes. Raises CannotStoreError whose path starts with `at`."""
    return whole(part(value, at), at)


def part(value: Any, at: str = "context") -> bytes:
    """Return the value as bytes that are put together with others: `list_of` takes them, or `map_head` and
    then keys and values in turn; at last `whole`.

    What is made of parts is the same as if it were encoded at once. Raises CannotStoreError as `encode` does.
    """
    try:
        packed = pack(value)
    except (TypeError, ValueError, RecursionError):
        packed = _walked(value, at)
    if len(packed) > MAX_BYTES:
        raise _too_large(packed, at)
    return packed


def moment_part(moment: datetime) -> bytes:
    """Return the part of a time, which for one in UTC takes a tenth of what `part` takes."""
    fraction = moment.microsecond
    if moment.tzinfo is UTC and fraction and not moment.fold and FORMS.get(type(moment)) is _DATETIME:
        minute = _minute(moment.year, moment.month, moment.day, moment.hour, moment.minute)
        return b"%b%02d.%06d+00:00" % (minute, moment.second, fraction)
    return part(moment)


@lru_cache(maxsize=64)
def _minute(*when: int) -> bytes:
    return _UTC_MOMENT + b"%04d-%02d-%02dT%02d:%02d:" % when


def list_of(*parts: bytes) -> bytes:
    """Return the part that is a list of these, 15 at most."""
    return _LISTS[len(parts)] + b"".join(parts)


def whole(packed: bytes, at: str = "context") -> bytes:
    """Return a part as what `decode` takes. Raises CannotStoreError."""
    size = len(packed)
    if size > MAX_BYTES:
        raise _too_large(packed, at)
    return _START + size.to_bytes(4, "big") + packed


def is_whole(data: bytes) -> bool:
    """Say whether the data begins, and is as long, as what `whole` returns."""
    return data[:2] == _START and len(data) == _HEADER_SIZE + int.from_bytes(data[2:_HEADER_SIZE], "big")


def _too_large(packed: bytes, at: str) -> CannotStoreError:
    return CannotStoreError(
        f"{at}: {len(packed):,} bytes cannot be stored, {MAX_BYTES:,} at most; keep the bulk elsewhere", at
    )


def decode(data: bytes | bytearray | memoryview, *, resolve: Resolve = known_class, limit: int = MAX_BYTES) -> Any:
    """Return the value that `encode` was given; `resolve` finds the classes that it names.

    Raises CodecError and nothing else, whatever the bytes: CorruptDataError for damaged ones or more than `limit`,
    NewerFormatError for a version of the future, UnknownTypeError for a class that `resolve` does not find.
    """
    return _Reader(resolve, _payload(bytes(data), limit)).read()


# -- encoding: the walk ----------------------------------------------------------------------------------------------


class _Packer(Walk):
    """The walk for what the quick way cannot pack or cannot tell from something else. Gives the same bytes."""

    def fits(self, value: Any) -> bool:
        if type(value) is str:
            return is_utf8(value)
        return type(value) is not int or -(1 << 63) <= value < 1 << 64

    def plain_key(self, key: Any) -> bool:
        return type(key) is str and is_utf8(key)

    def leaf(self, part: str | bytes) -> Any:
        return self.tree(part)

    def tag(self, form: Form, body: Any, extra: dict[str, Any] | None) -> Any:
        try:
            return ormsgpack.Ext(form.code, ormsgpack.packb(body if extra is None else [body, extra]))
        except TypeError as error:  # the parts of a form are up to three levels deeper than its value
            self.fault(TOO_DEEP, error)

    def ordered(self, trees: list[Any]) -> list[Any]:
        return sorted(trees, key=ormsgpack.packb)


def _walked(value: Any, at: str) -> bytes:
    walk = _Packer(at)
    try:
        return ormsgpack.packb(walk.tree(value))
    except CannotStoreError:
        raise
    except (TypeError, RecursionError) as error:
        walk.fault(TOO_DEEP, error)


# -- decoding --------------------------------------------------------------------------------------------------------


def _payload(data: bytes, limit: int) -> bytes:
    """Return what follows the header. Raises CodecError if the header or the length is not right."""
    if not is_whole(data) or len(data) > limit + _HEADER_SIZE:
        raise _misfit(data, limit)
    return data[_HEADER_SIZE:]


def _misfit(data: bytes, limit: int) -> CodecError:
    if len(data) > limit + _HEADER_SIZE:
        return CorruptDataError(f"stored data of {len(data):,} bytes is more than the limit of {limit:,}")
    if len(data) < 2 or data[0] != _MARK or data[1] == 0:
        return CorruptDataError("stored data is damaged: it does not begin as encoded data does")
    if data[1] > FORMAT_VERSION:
        return NewerFormatError(
            f"stored data is of format {data[1]}, this release reads up to {FORMAT_VERSION}: upgrade pytest-sagaz"
        )
    size = int.from_bytes(data[2:_HEADER_SIZE], "big")
    return CorruptDataError(
        f"stored data is damaged: {size:,} bytes expected, got {max(len(data) - _HEADER_SIZE, 0):,}"
    )


def _text(code: int, payload: bytes) -> Any:
    """Open the only extension that a leaf may have as its part: text that UTF-8 cannot hold."""
    if code != FORMS[str].code:
        raise ValueError("a leaf holds a value")
    return FORMS[str].build(ormsgpack.unpackb(payload))


class _Reader:
    """Reads one value. ormsgpack keeps no cause of an error in a hook, so this does."""

    __slots__ = ("body", "error", "level", "measured", "resolve")

    def __init__(self, resolve: Resolve, body: bytes) -> None:
        self.resolve = resolve
        self.body = body
        self.level = 0
        self.measured = False
        self.error: BaseException | None = None

    def read(self) -> Any:
        try:
            return ormsgpack.unpackb(self.body, ext_hook=self.extension)
        except (ValueError, RecursionError) as error:
            first = self.error or error
        if isinstance(first, CodecError) or not isinstance(first, Exception):
            raise first
        raise CorruptDataError(f"stored data is damaged: {' '.join(str(first).split())[:120]}") from first

    def extension(self, code: int, payload: bytes) -> Any:
        try:
            form = BY_CODE.get(code)
            if form is None:
                raise CorruptDataError(f"stored data is damaged: it has an extension {code}, which does not exist")
            if form.shape is LEAF:
                return assemble(form, ormsgpack.unpackb(payload, ext_hook=_text), None, self.resolve)
            if self.level == _UNMEASURED_EXTENSIONS and not self.measured:
                if deeper_than(_STORED_DEPTH, self.body):
                    raise CorruptDataError(f"stored data is damaged: nested deeper than {_STORED_DEPTH} levels")
                self.measured = True
            self.level += 1
            body, extra = ormsgpack.unpackb(payload, ext_hook=self.extension), None
            self.level -= 1
            if form.paired:
                if type(body) is not list or len(body) != 2:
                    raise CorruptDataError(f"stored data is damaged: a {form.tag} with parts that no {form.tag} has")
                body, extra = body
            return assemble(form, body, extra, self.resolve)
        except BaseException as error:
            if self.error is None:
                self.error = error
            raise
