"""Rows within a packed array: where each begins and ends, so that one can be read without all the others.

The format is MessagePack's (https://github.com/msgpack/msgpack/blob/master/spec.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import ormsgpack

from sagaz_core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_SCALAR = bytearray(256)
"""How many bytes a value takes up that begins so, 0 where that is not all that there is to know."""
_SCALAR[:0x80] = bytes([1]) * 0x80
_SCALAR[0xA0:0xC0] = range(1, 0x21)
_SCALAR[0xC0] = _SCALAR[0xC2] = _SCALAR[0xC3] = 1
_SCALAR[0xCA:0xD4] = bytes((5, 9, 2, 3, 5, 9, 2, 3, 5, 9))
_SCALAR[0xE0:] = bytes([1]) * 0x20

_SMALL = 1 << 14
_LONG = {
    0xC4: (1, 0),
    0xC5: (2, 0),
    0xC6: (4, 0),
    0xD9: (1, 0),
    0xDA: (2, 0),
    0xDB: (4, 0),
    0xDC: (2, 1),
    0xDD: (4, 1),
    0xDE: (2, 2),
    0xDF: (4, 2),
}
"""In how many bytes the length is of what begins so, and how many values go with 1 of it, 0 where it is of bytes."""


class PackedRow(NamedTuple):
    """A row, and where it is: `at` in the bytes that it was found in."""

    row: list[Any]
    at: int
    packed: bytes


def end_of(data: bytes | memoryview, at: int, values: int = 1) -> int:
    """Return where so many values end of which the first begins at `at`. Raises `ValueError` and `IndexError`."""
    while values:
        kind = data[at]
        size = _SCALAR[kind]
        if size:
            at += size
            values -= 1
        elif kind < 0xA0:
            at += 1
            values += (kind & 15) * (1 if kind & 0x10 else 2) - 1
        elif kind in _LONG:
            width, each = _LONG[kind]
            at += 1 + width
            length = int.from_bytes(data[at - width : at], "big")
            values += length * each - 1
            if not each:
                at += length
        else:
            raise ValueError(f"a row has a value of the kind {kind:#x}")
    if at > len(data):
        raise IndexError("a row is cut off")
    return at


class Parts:
    """The values of a packed array, one after the other. Rows among them are not all unpacked at once if they are many.

    Raises `ValueError` (also `ormsgpack.MsgpackDecodeError`), `TypeError` and `IndexError` for what is no such array.
    """

    __slots__ = ("_at", "_count", "_data", "_known", "_number")

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = bytes(data) if len(data) <= _SMALL else data
        self._known: list[Any] | None = ormsgpack.unpackb(data) if len(data) <= _SMALL else None
        self._number = 0
        self._count, self._at = _array_at(data, 0)

    @property
    def at(self) -> int:
        """Where the next value begins."""
        return self._at

    def values(self, count: int) -> list[Any]:
        """Return the next values."""
        start, self._at = self._at, end_of(self._data, self._at, count)
        self._number += count
        if self._known is None:
            return list(ormsgpack.unpackb(array_head(count) + self._data[start : self._at]))
        return self._known[self._number - count : self._number]

    def rest(self) -> list[Any]:
        """Return all values that are left."""
        if self._known is None:
            return list(ormsgpack.unpackb(array_head(self._count - self._number) + self._data[self._at :]))
        return self._known[self._number :]

    def rows(self) -> Iterator[PackedRow]:
        """Iterate the rows of the next value, which is an array of them, and has to be iterated to its end."""
        data, known = self._data, None if self._known is None else self._known[self._number]
        count, at = _array_at(data, self._at)
        for number in range(count):
            if known is None:
                part = bytes(data[at : end_of(data, at)])
                row = ormsgpack.unpackb(part)
            else:
                row = known[number]
                part = ormsgpack.packb(row)  # in a tenth of the time that it takes to look for the end
                if data[at : at + len(part)] != part:
                    part = bytes(data[at : end_of(data, at)])
            yield PackedRow(row, at, part)
            at += len(part)
        self._number += 1
        self._at = at


def _array_at(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """Return how many values the array has that begins at `at`, and where the first is."""
    kind = data[at]
    if kind & 0xF0 == 0x90:
        return kind & 15, at + 1
    width, each = _LONG.get(kind, (0, 0))
    if each != 1:
        raise ValueError("there is no array")
    return int.from_bytes(data[at + 1 : at + 1 + width], "big"), at + 1 + width


def array_head(count: int) -> bytes:
    """Return what an array of so many values begins with."""
    if count < 16:
        return bytes([0x90 | count])
    return b"\xdc" + count.to_bytes(2, "big") if count < 1 << 16 else b"\xdd" + count.to_bytes(4, "big")


def pack_rows(rows: Iterable[list[Any]]) -> list[PackedRow]:
    """Return the rows, which are nowhere yet. Raises `UsageError` for what cannot be stored."""
    return [PackedRow(row, 0, packed(row)) for row in rows]


def packed(value: object) -> bytes:
    """Return the value as bytes. Raises `UsageError` for what cannot be stored."""
    try:
        return ormsgpack.packb(value)
    except (ormsgpack.MsgpackEncodeError, UnicodeEncodeError) as error:
        raise UsageError(f"a store cannot hold this text or number: {error}") from error
