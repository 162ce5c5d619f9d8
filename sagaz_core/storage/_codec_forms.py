"""The one table of types that the codec stores beyond plain data: for each a code, a tag, and how it is taken apart.

`codec` writes a form as a MessagePack extension with its code, `jsonform` as `{"$tag": …}`; both take the parts from
here, so a type that one of them keeps the other keeps too. Classes of the application are in `_codec_classes`.
"""

from __future__ import annotations

import datetime as _dt
import ipaddress
import math
import pathlib
import re
import struct
import uuid
import zoneinfo
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

from sagaz_core.encryption import Encrypted
from sagaz_core.errors import UnknownTypeError

if TYPE_CHECKING:
    from collections.abc import Iterable

LEAF: Final = "leaf"  # parts: a str, or bytes if `binary`
ITEMS: Final = "items"  # parts: a list of values
SET: Final = "set"  # parts: a list of values in any order
PAIRS: Final = "pairs"  # parts: a list of [key, value]
OBJECT: Final = "object"  # parts: ["module:qualname", {section: content}]

MAX_FRACTION_BITS: Final = 65_536  # reducing a fraction is quadratic


_NAN_BITS: Final = struct.pack(">d", math.nan).hex()


class Unstorable(Exception):  # noqa: N818 - never leaves the codec: the walk makes it a CannotStoreError with a path
    """A value that has no parts; the message says why."""


@dataclass(frozen=True, slots=True)
class Form:
    """How one type is taken apart and put together again.

    With `extra` the parts are `[body, {name: plain value}]`, and `build` gets both.
    """

    code: int
    tag: str
    shape: str
    parts: Callable[[Any], Any]
    build: Callable[..., Any]
    extra: bool = False
    binary: bool = False

    @property
    def paired(self) -> bool:
        """Whether the parts are two, a body and a mapping."""
        return self.extra or self.shape is OBJECT


def type_title(cls: type) -> str:
    """Return a class's name for a message: `socket.socket`, or `object` for a builtin."""
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def natural_order(items: list[Any]) -> list[Any] | None:
    """Return the elements of a set sorted, if they are all strings or all integers; otherwise None."""
    kinds = set(map(type, items))
    return sorted(items) if not kinds or kinds == {str} or kinds == {int} else None


# -- numbers and text ------------------------------------------------------------------------------------------------


def int_text(number: int) -> str:
    """Return decimal digits, or hexadecimal ones where decimal would take quadratic time."""
    return str(number) if number.bit_length() <= 1024 else hex(number)


def text_int(text: str) -> int:
    """Return the integer that `int_text` wrote. Raises ValueError otherwise."""
    if len(text) > 320 and not text.lstrip("-").startswith("0x"):
        raise ValueError("a long integer must be hexadecimal")
    return int(text, 0)


def _fraction_text(fraction: Fraction) -> str:
    if max(fraction.numerator.bit_length(), fraction.denominator.bit_length()) > MAX_FRACTION_BITS:
        raise Unstorable(f"a Fraction of more than {MAX_FRACTION_BITS:,} bits cannot be stored; store two integers")
    return f"{int_text(fraction.numerator)}/{int_text(fraction.denominator)}"


def _text_fraction(text: str) -> Fraction:
    above, _, below = text.partition("/")
    numerator, denominator = text_int(above), text_int(below)
    if max(numerator.bit_length(), denominator.bit_length()) > MAX_FRACTION_BITS:
        raise ValueError("too many digits")
    return Fraction(numerator, denominator)


def _float_text(number: float) -> str:
    bits = struct.pack(">d", number).hex()
    return f"nan:{bits}" if math.isnan(number) and bits != _NAN_BITS else repr(number)


def _text_float(text: str) -> float:
    if not text.startswith("nan:"):
        return float(text)
    number: float = struct.unpack(">d", bytes.fromhex(text[4:]))[0]
    return number


def _surrogate_text(text: str) -> str:
    r"""Return a text that UTF-8 can hold: `\` is doubled, a lone surrogate is `\udXXX`."""
    return re.sub("[\\\\\ud800-\udfff]", lambda m: "\\\\" if m[0] == "\\" else f"\\u{ord(m[0]):04x}", text)


def _text_surrogate(text: str) -> str:
    return re.sub(r"\\(?:\\|u(d[89a-f][0-9a-f]{2}))", lambda m: chr(int(m[1], 16)) if m[1] else "\\", text)


# -- dates and times -------------------------------------------------------------------------------------------------


def _real(cls: type) -> Any:
    """Return the standard library's own class, also when this module is first imported with the clock frozen.

    freezegun puts fakes in place of the real classes, in `datetime` and in every module that holds them as an
    attribute; it does not look into closures and containers, so this module keeps them only there.
    """
    return next(base for base in cls.__mro__ if base.__module__ == "datetime")


_REAL: Final = {"FakeDatetime": _real(_dt.datetime), "FakeDate": _real(_dt.date)}
_ZONED: Final = re.compile(r"([^\[]+)(\[fold=1\])?(?:\[(.*)\])?", re.DOTALL)


def real_class(cls: type) -> type | None:
    """Return the real class that a class of freezegun stands for, or None for any other class."""
    return _REAL.get(cls.__name__) if cls.__module__ == "freezegun.api" else None


def _zone_key(zone: zoneinfo.ZoneInfo) -> str:
    try:
        return zoneinfo.ZoneInfo(zone.key).key
    except Exception:  # key None (made from a file), or not a key of this system
        raise Unstorable("a ZoneInfo that cannot be found by its key cannot be stored; use ZoneInfo(key)") from None


def _timezone_name(zone: _dt.timezone) -> str:
    arguments = zone.__getinitargs__()  # type: ignore[attr-defined]  # (offset,) or (offset, name)
    return f"[={arguments[1]}]" if len(arguments) > 1 else ""


def _zone_text(zone: _dt.tzinfo | None) -> str:
    """Return what follows the ISO form: nothing for a plain offset, `[Europe/Berlin]`, `[=CET]` for a named offset."""
    if zone is None or zone is _dt.UTC:
        return ""
    cls = type(zone)
    if cls is _dt.timezone:
        return _timezone_name(zone)  # type: ignore[arg-type]
    if cls is zoneinfo.ZoneInfo:
        return f"[{_zone_key(zone)}]"  # type: ignore[arg-type]
    if cls.__name__ == "TzInfo" and cls.__module__.startswith("pydantic_core"):
        return ""  # a fixed offset; comes back as datetime.timezone
    raise Unstorable(f"a time in a {type_title(cls)!r} timezone cannot be stored; use zoneinfo.ZoneInfo or timezone")


def _time_text(moment: Any) -> str:
    zone = moment.tzinfo
    suffix = "" if zone is None else _zone_text(zone)
    return f"{moment.isoformat()}{'[fold=1]' if moment.fold else ''}{suffix}"


def _time_parser(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return the inverse of `_time_text` for a class's `fromisoformat`."""

    def build(text: str) -> Any:
        if text[-1:] != "]":
            return parse(text)
        match = _ZONED.fullmatch(text)
        if match is None:
            raise ValueError("not a time")
        moment = parse(match[1])
        zone = moment.tzinfo
        if match[3] is not None:
            name = match[3]
            zone = _dt.timezone(zone.utcoffset(None), name[1:]) if name[:1] == "=" else zoneinfo.ZoneInfo(name)
        return moment.replace(tzinfo=zone, fold=1 if match[2] else 0)

    return build


def _offset_text(zone: _dt.timezone) -> str:
    return _dt.time(0, tzinfo=zone).isoformat()[8:] + _timezone_name(zone)


def _text_offset(text: str) -> Any:
    zone = _time_parser(_dt.time.fromisoformat)(f"00:00:00{text}").tzinfo
    if type(zone) is not _dt.timezone:
        raise ValueError("not an offset")
    return zone


_DURATION: Final = re.compile(r"P(-?[0-9]{1,9})DT([0-9]{1,5})(?:\.([0-9]{6}))?S")


def _duration_text(span: _dt.timedelta) -> str:
    micros = f".{span.microseconds:06}" if span.microseconds else ""
    return f"P{span.days}DT{span.seconds}{micros}S"


def _text_duration(text: str) -> _dt.timedelta:
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError("not a duration")
    return _dt.timedelta(int(match[1]), int(match[2]), int(match[3] or 0))


# -- containers ------------------------------------------------------------------------------------------------------

_FACTORIES: Final[dict[str, Callable[[], Any]]] = {
    kind.__name__: kind for kind in (list, dict, int, set, str, float, bool, tuple, frozenset)
}


def _pairs(mapping: dict[Any, Any]) -> list[list[Any]]:
    return [[key, value] for key, value in mapping.items()]


def _counter(pairs: Iterable[Any]) -> Counter[Any]:
    return Counter(dict(pairs))


def _defaultdict_parts(mapping: defaultdict[Any, Any]) -> list[Any]:
    factory = mapping.default_factory
    if factory is None:
        return [_pairs(mapping), {"factory": None}]
    name = getattr(factory, "__name__", "")
    if not isinstance(name, str) or _FACTORIES.get(name) is not factory:
        raise Unstorable(f"a defaultdict can be stored with a factory among {', '.join(_FACTORIES)}; give it one")
    return [_pairs(mapping), {"factory": name}]


def _build_defaultdict(pairs: Iterable[Any], extra: dict[str, Any]) -> defaultdict[Any, Any]:
    name = extra["factory"]
    return defaultdict(None if name is None else _FACTORIES[name], pairs)


def _build_deque(items: list[Any], extra: dict[str, Any]) -> deque[Any]:
    return deque(items, extra["maxlen"])


# -- paths -----------------------------------------------------------------------------------------------------------


def _path_builder(cls: type[pathlib.PurePath]) -> Callable[[str], pathlib.PurePath]:
    def build(text: str) -> pathlib.PurePath:
        try:
            return cls(text)
        except NotImplementedError:
            raise UnknownTypeError(
                f"a {cls.__name__} was stored on another system and cannot be made here; store a PurePath",
                f"pathlib:{cls.__name__}",
            ) from None

    return build


def _object_forms() -> tuple[Form, ...]:
    def unused(*_: Any) -> Any:
        raise Unstorable("an object form is made for each class")

    kinds = ("enum", "flag", "dataclass", "namedtuple", "pydantic")
    return tuple(Form(64 + n, kind, OBJECT, unused, unused) for n, kind in enumerate(kinds))


def _table() -> dict[type, Form]:
    """Return the form of each built-in type. Codes are part of the format: never change one, never use one again."""
    table: dict[type, Form] = {
        int: Form(1, "int", LEAF, int_text, text_int),
        str: Form(2, "str", LEAF, _surrogate_text, _text_surrogate),
        float: Form(3, "float", LEAF, _float_text, _text_float),
        bytes: Form(4, "bytes", LEAF, bytes, bytes, binary=True),
        bytearray: Form(5, "bytearray", LEAF, bytes, bytearray, binary=True),
        Decimal: Form(6, "decimal", LEAF, str, Decimal),
        Fraction: Form(7, "fraction", LEAF, _fraction_text, _text_fraction),
        complex: Form(8, "complex", LEAF, repr, complex),
        uuid.UUID: Form(9, "uuid", LEAF, str, uuid.UUID),
        Encrypted: Form(10, "encrypted", LEAF, lambda value: value.data, Encrypted, binary=True),
        tuple: Form(16, "tuple", ITEMS, list, tuple),
        set: Form(17, "set", SET, list, set),
        frozenset: Form(18, "frozenset", SET, list, frozenset),
        dict: Form(19, "dict", PAIRS, _pairs, dict),
        OrderedDict: Form(20, "ordereddict", PAIRS, _pairs, OrderedDict),
        defaultdict: Form(21, "defaultdict", PAIRS, _defaultdict_parts, _build_defaultdict, extra=True),
        Counter: Form(22, "counter", PAIRS, _pairs, _counter),
        deque: Form(23, "deque", ITEMS, lambda d: [list(d), {"maxlen": d.maxlen}], _build_deque, extra=True),
        _REAL["FakeDatetime"]: Form(
            32, "datetime", LEAF, _time_text, _time_parser(_REAL["FakeDatetime"].fromisoformat)
        ),
        _REAL["FakeDate"]: Form(33, "date", LEAF, lambda day: day.isoformat(), _REAL["FakeDate"].fromisoformat),
        _dt.time: Form(34, "time", LEAF, _time_text, _time_parser(_dt.time.fromisoformat)),
        _dt.timedelta: Form(35, "timedelta", LEAF, _duration_text, _text_duration),
        _dt.timezone: Form(36, "timezone", LEAF, _offset_text, _text_offset),
        zoneinfo.ZoneInfo: Form(37, "zoneinfo", LEAF, _zone_key, zoneinfo.ZoneInfo),
    }
    paths: tuple[tuple[type[pathlib.PurePath], str], ...] = (
        (pathlib.PosixPath, "path"),
        (pathlib.WindowsPath, "windowspath"),
        (pathlib.PurePosixPath, "pureposixpath"),
        (pathlib.PureWindowsPath, "purewindowspath"),
    )
    for code, (cls, tag) in enumerate(paths, 40):
        table[cls] = Form(code, tag, LEAF, str, _path_builder(cls))
    for code, address in enumerate(
        (
            ipaddress.IPv4Address,
            ipaddress.IPv6Address,
            ipaddress.IPv4Network,
            ipaddress.IPv6Network,
            ipaddress.IPv4Interface,
            ipaddress.IPv6Interface,
        ),
        48,
    ):
        table[address] = Form(code, address.__name__.lower(), LEAF, str, address)
    return table


FORMS: Final = _table()
"""The form of each type by the exact type; classes of the application are added as they are first met."""

OBJECT_FORMS: Final = {form.tag: form for form in _object_forms()}
BY_CODE: Final = {form.code: form for form in (*FORMS.values(), *OBJECT_FORMS.values())}
BY_TAG: Final = {form.tag: form for form in BY_CODE.values()}
