"""Classes of the application in stored data: enums, dataclasses, named tuples and pydantic models.

They are stored as `module:qualname` with their fields by name, and made again without running their code: no
`__init__`, no `__post_init__`, no validator, no `_missing_`.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from sagaz_core._importing import import_application
from sagaz_core.errors import CodecError, CorruptDataError, UnknownTypeError
from sagaz_core.storage._codec_forms import (
    FORMS,
    LEAF,
    OBJECT,
    OBJECT_FORMS,
    Form,
    Unstorable,
    real_class,
    type_title,
)

Resolve = Callable[[str, str], type]
"""Gives the class for a module and a qualified name; raises UnknownTypeError when there is none."""

_HEAP_TYPE: Final = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement, so object.__new__ can make instances
_SECTIONS: Final = {
    "enum": {"name"},
    "flag": {"value"},
    "namedtuple": {"fields"},
    "dataclass": {"fields", "others"},
    "pydantic": {"fields", "unset", "extra", "private"},
}


@dataclass(frozen=True, slots=True, repr=False)
class Opaque:
    """An object of a class that is not known here; encodes to the bytes that it came from.

    `kind` is `enum`, `flag`, `dataclass`, `namedtuple` or `pydantic`; `fields` has what is stored of it, by section.
    """

    type_name: str
    kind: str
    fields: dict[str, Any]

    def __repr__(self) -> str:
        shown = []
        for section, content in self.fields.items():
            if section == "unset":
                continue
            items = content.items() if type(content) is dict else [(section, content)]
            shown += [f"{name}={value!r}" for name, value in items]
        return f"<{self.kind} {self.type_name}({', '.join(shown)})>"

    def __hash__(self) -> int:
        plain = tuple(sorted((k, v) for k, v in self.fields.items() if type(v) is str or type(v) is int))
        return hash((self.type_name, self.kind, plain))


# -- finding classes -------------------------------------------------------------------------------------------------


def known_class(module: str, qualname: str) -> type:
    """Return the class if its module is imported already. Nothing is imported and no code of the module runs.

    Raises UnknownTypeError if it is not there, or is not an enum, dataclass, named tuple or pydantic model.
    """
    found: Any = sys.modules.get(module)
    for name in qualname.split("."):
        # vars() and not getattr(): a module's __getattr__ may import, a class's metaclass may do anything
        found = vars(found).get(name) if issubclass(type(found), (ModuleType, type)) else None
    if not isinstance(found, type) or kind_of(found) is None:
        raise _unknown(module, qualname)
    return found


def importing_class(module: str, qualname: str) -> type:
    """Return the class, importing its module if need be: only for data from a store that is trusted.

    Raises UnknownTypeError if the module cannot be imported, or as `known_class` does.
    """
    if module not in sys.modules:
        try:
            import_application(module)
        except Exception as error:  # importing runs the application's code
            name = f"{module}:{qualname}"
            raise UnknownTypeError(
                f"stored data is of {name!r}, whose module cannot be imported ({_one_line(error)}): "
                f"make it importable, or name another with --app",
                name,
            ) from error
    return known_class(module, qualname)


def opaque_class(module: str, qualname: str) -> type:
    """Return the class if `known_class` does, else `Opaque`, so that any state can be read without its application."""
    try:
        return known_class(module, qualname)
    except UnknownTypeError:
        return Opaque


def _unknown(module: str, qualname: str) -> UnknownTypeError:
    name = f"{module}:{qualname}"
    return UnknownTypeError(
        f"stored data is of {name!r}, which is not known here: "
        f"import the module first, or name it with --app or sagaz_sagas",
        name,
    )


@functools.lru_cache(1024)
def kind_of(cls: type) -> str | None:
    """Return what sort of storable class this is, or None. pydantic is not imported to find out."""
    if isinstance(cls, enum.EnumType):
        return "flag" if enum.Flag in cls.__mro__ else "enum"
    base_model = getattr(sys.modules.get("pydantic.main"), "BaseModel", None)
    if base_model in cls.__mro__:
        return "pydantic"
    if tuple in cls.__mro__:
        return "namedtuple" if isinstance(getattr(cls, "_fields", None), tuple) else None
    if dataclasses.is_dataclass(cls) and all(base.__flags__ & _HEAP_TYPE for base in cls.__mro__[:-1]):
        return "dataclass"
    return None


# -- taking apart ----------------------------------------------------------------------------------------------------


def form_of(value: Any) -> Form:
    """Return the form of a value by its exact type, and remember it for its class. Raises Unstorable."""
    cls = type(value)
    form = FORMS.get(cls)
    if form is not None:
        return form
    if cls is Opaque:
        return _OPAQUE_FORMS[value.kind]
    real = real_class(cls)
    form = FORMS[cls] = FORMS[real] if real is not None else _class_form(cls)
    return form


def _opaque_parts(value: Opaque) -> list[Any]:
    return [value.type_name, value.fields]


_OPAQUE_FORMS: Final = {
    kind: Form(form.code, kind, OBJECT, _opaque_parts, form.build) for kind, form in OBJECT_FORMS.items()
}


def _class_form(cls: type) -> Form:
    title = type_title(cls)
    kind = kind_of(cls)
    if kind is None:
        base = next((base for base in cls.__mro__ if base in FORMS or base is list), None)
        also = f", a subclass of {base.__name__}," if base is not None else ""
        raise Unstorable(
            f"a value of type {title!r}{also} cannot be stored; "
            f"put plain data there (a str, number, list or dict, a dataclass, an enum, a pydantic model)"
        )
    try:
        reachable = known_class(cls.__module__, cls.__qualname__) is cls
    except UnknownTypeError:
        reachable = False
    if not reachable:
        raise Unstorable(
            f"a value of the {kind} {title!r} cannot be stored, as no module has the class under that name; "
            f"define it at module level"
        )
    shape = OBJECT_FORMS[kind]
    return Form(shape.code, kind, OBJECT, _TAKE_APART[kind](cls, f"{cls.__module__}:{cls.__qualname__}"), shape.build)


def _enum_parts(cls: Any, name: str) -> Callable[[Any], list[Any]]:
    return lambda member: [name, {"name": member._name_}]


def _flag_parts(cls: Any, name: str) -> Callable[[Any], list[Any]]:
    return lambda member: [name, {"value": member._value_}]


def _namedtuple_parts(cls: Any, name: str) -> Callable[[Any], list[Any]]:
    fields: tuple[str, ...] = cls._fields

    def parts(value: Any) -> list[Any]:
        if getattr(value, "__dict__", None):
            raise Unstorable(f"a named tuple {name!r} with attributes that are not fields cannot be stored")
        return [name, {"fields": dict(zip(fields, tuple.__iter__(value), strict=True))}]

    return parts


def _dataclass_parts(cls: Any, name: str) -> Callable[[Any], list[Any]]:
    names = tuple(field.name for field in dataclasses.fields(cls))
    optional = {field.name for field in dataclasses.fields(cls) if not field.init}
    known = {*names, "__orig_class__"}  # what typing leaves on instances of a generic class

    def partial(value: Any) -> dict[str, Any]:
        missing = [field for field in names if not hasattr(value, field)]
        if not optional.issuperset(missing):
            raise Unstorable(f"a {name!r} that has no value for its field {missing[0]!r} cannot be stored")
        return {field: getattr(value, field) for field in names if field not in missing}

    def parts(value: Any) -> list[Any]:
        try:
            sections = {"fields": {field: getattr(value, field) for field in names}}
        except AttributeError:
            sections = {"fields": partial(value)}
        held = getattr(value, "__dict__", None)
        if held is not None and not held.keys() <= known:
            sections["others"] = {key: item for key, item in held.items() if key not in known}
        return [name, sections]

    return parts


def _pydantic_parts(cls: Any, name: str) -> Callable[[Any], list[Any]]:
    known = set(cls.model_fields)
    is_root = cls.__pydantic_root_model__

    def parts(value: Any) -> list[Any]:
        # what is in __dict__ and not a field is a cached_property, which works itself out again
        held = value.__dict__
        if not held.keys() <= known:
            held = {key: item for key, item in held.items() if key in known}
        sections: dict[str, Any] = {"fields": held}
        extra = None if is_root else value.__pydantic_extra__
        given = value.__pydantic_fields_set__
        if extra or not held.keys() <= given:
            unset = sorted({*held, *(extra or ())} - given)
            if unset:
                sections["unset"] = unset
        if extra:
            sections["extra"] = extra
        if not is_root and value.__pydantic_private__:
            sections["private"] = value.__pydantic_private__
        return [name, sections]

    return parts


_TAKE_APART: Final[dict[str, Callable[[Any, str], Callable[[Any], list[Any]]]]] = {
    "enum": _enum_parts,
    "flag": _flag_parts,
    "namedtuple": _namedtuple_parts,
    "dataclass": _dataclass_parts,
    "pydantic": _pydantic_parts,
}


# -- putting together ------------------------------------------------------------------------------------------------


def assemble(form: Form, body: Any, extra: Any, resolve: Resolve) -> Any:
    """Return the value for a form and its decoded parts. Raises CodecError, and nothing else, whatever they are."""
    expected: type = list
    if form.shape is LEAF or form.shape is OBJECT:
        expected = bytes if form.binary else str
    if type(body) is not expected or (type(extra) is dict) is not (form.extra or form.shape is OBJECT):
        raise CorruptDataError(f"stored data is damaged: a {form.tag} with parts that no {form.tag} has")
    try:
        if form.shape is OBJECT:
            return _rebuild(form.tag, str(body), extra, resolve)
        return form.build(body, extra) if form.extra else form.build(body)
    except CodecError:
        raise
    except Exception as error:  # __hash__, __eq__ and descriptors of the application's classes may run here
        raise CorruptDataError(f"stored data is damaged: not a {form.tag} ({_one_line(error)})") from error


def _rebuild(kind: str, type_name: str, sections: dict[str, Any], resolve: Resolve) -> Any:
    if not sections.keys() <= _SECTIONS[kind]:
        raise CorruptDataError(f"stored data is damaged: a {kind} with parts that no {kind} has")
    module, _, qualname = type_name.partition(":")
    cls = resolve(module, qualname)
    if cls is Opaque:
        return Opaque(type_name, kind, sections)
    try:
        if kind_of(cls) != kind:
            raise UnknownTypeError(f"stored data has a {kind} {type_name!r}, which is not a {kind} now", type_name)
        return _PUT_TOGETHER[kind](cls, sections, type_name)
    except UnknownTypeError:
        if resolve is opaque_class:
            return Opaque(type_name, kind, sections)
        raise


def _changed(type_name: str, what: str) -> UnknownTypeError:
    return UnknownTypeError(
        f"stored data of {type_name!r} {what}: use the version of the class that stored it, or migrate it", type_name
    )


def _build_enum(cls: Any, sections: dict[str, Any], type_name: str) -> Any:
    member = cls._member_map_.get(sections["name"])
    if member is None:
        raise _changed(type_name, f"is the member {sections['name']!r}, which the enum does not have now")
    return member


def _build_flag(cls: Any, sections: dict[str, Any], type_name: str) -> Any:
    value = sections["value"]
    if type(value) is not int:
        raise CorruptDataError(f"stored data is damaged: a value of {type_name!r} that is not an integer")
    member = cls._value2member_map_.get(value)
    if member is None:
        try:
            member = enum.Flag._missing_.__func__(cls, value)  # type: ignore[attr-defined]  # not an override's
        except ValueError:
            member = None
    # Until Python 3.11.4 a flag leaves out the bits that it does not have, where it now refuses them.
    if type(member) is not cls or (value >= 0 and member._value_ != value):
        raise _changed(type_name, f"has the value {value:#x}, which the flag does not have now")
    return member


def _fields(sections: dict[str, Any], known: Any, type_name: str) -> dict[str, Any]:
    fields = sections["fields"]
    if type(fields) is not dict:
        raise CorruptDataError(f"stored data is damaged: {type_name!r} without fields")
    if not fields.keys() <= known:
        name = next(name for name in fields if name not in known)
        raise _changed(type_name, f"has a field {name!r}, which the class does not have now")
    return fields


def _build_namedtuple(cls: Any, sections: dict[str, Any], type_name: str) -> Any:
    fields = {**cls._field_defaults, **_fields(sections, set(cls._fields), type_name)}
    for name in cls._fields:
        if name not in fields:
            raise _changed(type_name, f"has no field {name!r}, which the class needs now")
    return tuple.__new__(cls, [fields[name] for name in cls._fields])


def _build_dataclass(cls: Any, sections: dict[str, Any], type_name: str) -> Any:
    known = {field.name: field for field in dataclasses.fields(cls)}
    fields = _fields(sections, known.keys(), type_name)
    value = object.__new__(cls)
    for name, item in fields.items():
        object.__setattr__(value, name, item)
    for name in [name for name in known if name not in fields]:
        field = known[name]
        if field.default is not dataclasses.MISSING:
            object.__setattr__(value, name, field.default)
        elif field.default_factory is not dataclasses.MISSING:
            object.__setattr__(value, name, field.default_factory())
        elif field.init:
            raise _changed(type_name, f"has no field {name!r}, which the class needs now")
    for name, item in sections.get("others", {}).items():
        object.__setattr__(value, name, item)
    return value


def _build_pydantic(cls: Any, sections: dict[str, Any], type_name: str) -> Any:
    known = cls.model_fields
    fields = dict(_fields(sections, known.keys(), type_name))
    extra = dict(sections.get("extra", {}))
    given = {*fields, *extra}.difference(sections.get("unset", ()))
    for name in [name for name in known if name not in fields]:
        info = known[name]
        if not info.is_required() and not getattr(info, "default_factory_takes_validated_data", False):
            fields[name] = info.get_default(call_default_factory=True)
    value = cls.__new__(cls)
    object.__setattr__(value, "__dict__", fields)
    object.__setattr__(value, "__pydantic_fields_set__", given)
    if not cls.__pydantic_root_model__:
        allowed = cls.model_config.get("extra") == "allow"
        object.__setattr__(value, "__pydantic_extra__", extra if allowed else None)
        private = dict(sections.get("private", {})) if cls.__private_attributes__ else None
        object.__setattr__(value, "__pydantic_private__", private)
    return value


_PUT_TOGETHER: Final[dict[str, Callable[[Any, dict[str, Any], str], Any]]] = {
    "enum": _build_enum,
    "flag": _build_flag,
    "namedtuple": _build_namedtuple,
    "dataclass": _build_dataclass,
    "pydantic": _build_pydantic,
}


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:120]}" if text else type(error).__name__
