"""The quick way to pack a value: one call of ormsgpack, which calls back for what MessagePack does not have.

It is not for every value, and what it raises says nothing: the walk then packs the value to the same bytes, or finds
what is wrong with it and where.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import ormsgpack

from sagaz_core.storage._codec_classes import form_of
from sagaz_core.storage._codec_depth import deeper_than
from sagaz_core.storage._codec_forms import FORMS, LEAF, SET, natural_order

if TYPE_CHECKING:
    from collections.abc import Callable

# What is packed must be readable: ormsgpack packs 255 levels in one call, so that three extensions inside each other
# with as many, and _INNER_DEPTH in the fourth, stay within what decoding takes. The walk's values do, with at most
# four stored levels for each of its MAX_DEPTH.
_MOST_EXTENSIONS: Final = 10
_MEASURED_EXTENSION: Final = 3
_INNER_DEPTH: Final = 250

_OPTIONS: Final = sum(
    getattr(ormsgpack, f"OPT_PASSTHROUGH_{name}", 0)
    for name in ("BIG_INT", "DATACLASS", "DATETIME", "ENUM", "SUBCLASS", "TUPLE", "UUID")
)
_TELLS_ENUMS: Final = hasattr(ormsgpack, "OPT_PASSTHROUGH_ENUM")  # since ormsgpack 1.9; before, only the walk can
_LOOKED_INTO: Final = frozenset({dict, list, bytearray, memoryview})

_SMALL_MAPS: Final = [bytes((0x80 | size,)) for size in range(16)]

_pack = ormsgpack.packb
_Ext = ormsgpack.Ext


class NotQuickError(TypeError):
    """Not for the quick way."""


class _Boxed:
    """Around what ormsgpack would refuse or mistake, so that it calls back: dicts by pairs, and buffers."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


def pack(value: Any) -> bytes:
    """Return the value as MessagePack. Raises TypeError, ValueError or RecursionError if this way is not for it."""
    if not _TELLS_ENUMS:
        raise NotQuickError
    try:
        packed = _pack(value, _plain, _OPTIONS)
        # Only a byte string begins with one of these bytes, so that most values need no look for a buffer.
        if not (0xC4 in packed or 0xC5 in packed or 0xC6 in packed) or not _holds_buffer([value]):
            return packed
    except TypeError:  # most often a key that is not a string
        pass
    return _pack(_box([value])[0], _boxing, _OPTIONS)


def _hook(level: int, boxing: bool) -> Callable[[Any], Any]:
    """Return the function that makes an extension of what MessagePack does not have, inside `level` others.

    One for each level up to a bound: ormsgpack bounds the depth of each call only, and overflows the stack beyond.
    """
    below = _hook(level + 1, boxing) if level < _MOST_EXTENSIONS else None

    def extension(value: Any) -> Any:
        if boxing and type(value) is _Boxed:
            value = value.value
        form = FORMS.get(type(value)) or form_of(value)
        shape = form.shape
        if shape is LEAF:
            return _Ext(form.code, _pack(form.parts(value), None, _OPTIONS))
        if below is None:
            raise NotQuickError
        parts = form.parts(value)
        if boxing:
            parts = _box(parts)
        payload = _pack_set(parts, below) if shape is SET else _pack(parts, below, _OPTIONS)
        if not boxing and (0xC4 in payload or 0xC5 in payload or 0xC6 in payload) and _holds_buffer(parts):
            raise NotQuickError
        if level == _MEASURED_EXTENSION and deeper_than(_INNER_DEPTH, payload):
            raise NotQuickError
        return _Ext(form.code, payload)

    return extension


def _pack_set(elements: list[Any], default: Callable[[Any], Any]) -> bytes:
    ordered = natural_order(elements)
    if ordered is not None:
        return _pack(ordered, default, _OPTIONS)
    packed = sorted(_pack(element, default, _OPTIONS) for element in elements)
    return array_head(len(packed)) + b"".join(packed)


def array_head(size: int) -> bytes:
    """Return how MessagePack begins an array."""
    if size < 16:
        return bytes((0x90 | size,))
    return b"\xdc" + size.to_bytes(2, "big") if size < 65_536 else b"\xdd" + size.to_bytes(4, "big")


def map_head(size: int) -> bytes:
    """Return how MessagePack begins a map."""
    if size < 16:
        return _SMALL_MAPS[size]
    return b"\xde" + size.to_bytes(2, "big") if size < 65_536 else b"\xdf" + size.to_bytes(4, "big")


def _holds_buffer(parts: Any) -> bool:
    """Say whether lists and dicts in the parts hold a bytearray or memoryview, which ormsgpack 1.10 packs as bytes."""
    waiting = [parts]
    while waiting:
        node = waiting.pop()
        for child in node.values() if type(node) is dict else node:
            cls = type(child)
            if cls in _LOOKED_INTO:
                if cls is not dict and cls is not list:
                    return True
                waiting.append(child)
    return False


def _box(parts: Any) -> Any:
    """Return the parts with boxes in their lists and dicts where ormsgpack needs them, copying no more than that."""
    copy = None
    for step, item in parts.items() if type(parts) is dict else enumerate(parts):
        cls = type(item)
        if cls not in _LOOKED_INTO:
            continue
        boxed = _box(item) if cls is list or (cls is dict and set(map(type, item)) <= {str}) else _Boxed(item)
        if boxed is not item:
            if copy is None:
                copy = parts.copy()
            copy[step] = boxed
    return parts if copy is None else copy


_plain = _hook(0, False)
_boxing = _hook(0, True)
