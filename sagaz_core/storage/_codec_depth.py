"""How deep encoded data is nested, found without recursion, so that it can be refused before anything recurses."""

from __future__ import annotations

from typing import Final

from sagaz_core.errors import CorruptDataError
from sagaz_core.storage._codec_forms import BY_CODE

_NOT_CONTAINERS: Final = bytes(
    byte
    for byte in range(256)
    if not (0x80 <= byte <= 0x9F or 0xC7 <= byte <= 0xC9 or 0xD4 <= byte <= 0xD8 or 0xDC <= byte <= 0xDF)
)


_SCALARS: Final = [1] * 256  # the length of each scalar by its first byte
_SCALARS[0xA0:0xC0] = range(1, 33)
_SCALARS[0xCA:0xD4] = [5, 9, 2, 3, 5, 9, 2, 3, 5, 9]
_STRINGS: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}  # how many bytes the length takes
_EXTENSIONS: Final = {0xC7: 1, 0xC8: 2, 0xC9: 4}


def deeper_than(limit: int, data: bytes) -> bool:
    """Say whether containers in one MessagePack value are nested deeper than the limit; an extension counts as one.

    Raises CorruptDataError if it is cut off.
    """
    # each level has a byte that begins a container, and most values have fewer of these than the limit
    if len(data) <= limit or len(data.translate(None, _NOT_CONTAINERS)) <= limit:
        return False
    try:
        return _measure(limit, data)
    except IndexError:
        raise CorruptDataError("stored data is damaged: it ends too early") from None


def _measure(limit: int, data: bytes) -> bool:
    position = 0
    above: list[tuple[int, int]] = []  # what is left to read in the containers around this one, and where each ends
    left, end = 1, -1
    while True:
        while not left:
            if not above:
                return False
            if end >= 0:
                position = end
            left, end = above.pop()
        left -= 1
        byte = data[position]
        inside, stop = 0, -1
        if byte < 0x80 or 0xA0 <= byte < 0xC4 or 0xCA <= byte < 0xD4 or byte >= 0xE0:
            position += _SCALARS[byte]
        elif byte < 0xA0:
            inside = byte & 0x0F if byte >= 0x90 else 2 * (byte & 0x0F)
            position += 1
        elif byte in _STRINGS:
            width = _STRINGS[byte]
            position += 1 + width + int.from_bytes(data[position + 1 : position + 1 + width], "big")
        elif byte >= 0xDC:
            width = 4 if byte & 1 else 2
            inside = int.from_bytes(data[position + 1 : position + 1 + width], "big") * (2 if byte >= 0xDE else 1)
            position += 1 + width
        else:
            position, stop = _extension(data, position)
            inside = 0 if position == stop else 1
        if inside:
            above.append((left, end))
            if len(above) > limit:
                return True
            left, end = inside, stop


def _extension(data: bytes, position: int) -> tuple[int, int]:
    """Return where the value in an extension begins, and where the extension ends; the same if it holds no value."""
    byte = data[position]
    width = _EXTENSIONS.get(byte, 0)
    size = int.from_bytes(data[position + 1 : position + 1 + width], "big") if width else 1 << (byte - 0xD4)
    code = data[position + 1 + width]
    begin = position + 2 + width
    stop = begin + size
    return (begin if code in BY_CODE and size else stop), stop
