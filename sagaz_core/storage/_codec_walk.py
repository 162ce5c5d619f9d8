"""The walk over a value that knows where it is: what cannot be stored is an error that names its path."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Final, NoReturn

from sagaz_core.errors import CannotStoreError
from sagaz_core.storage._codec_classes import form_of
from sagaz_core.storage._codec_forms import EMBEDDED, FORMS, ITEMS, LEAF, OBJECT, SET, Form, Unstorable, natural_order

MAX_DEPTH: Final = 200
"""How many containers may be nested in a value that is stored."""

_PLAIN: Final = frozenset({type(None), bool, int, float, str, bytes})
_SHOWN: Final = frozenset({type(None), bool, int, float, str, bytes})


class Walk(ABC):
    """Turns a value into a tree of plain data in which each form is what `tag` made of it. For one value only."""

    def __init__(self, at: str) -> None:
        self.at = at
        self.trail: list[tuple[str, Any]] = []
        self.above: set[int] = set()

    @abstractmethod
    def fits(self, value: Any) -> bool:
        """Say whether a value of a plain type can stand as it is."""

    @abstractmethod
    def plain_key(self, key: Any) -> bool:
        """Say whether this can be a key of a plain mapping."""

    @abstractmethod
    def leaf(self, part: str | bytes) -> Any:
        """Return a leaf's only part as it can stand in the tree."""

    @abstractmethod
    def tag(self, form: Form, body: Any, extra: dict[str, Any] | None) -> Any:
        """Return the node for a form whose parts are plain already."""

    @abstractmethod
    def ordered(self, trees: list[Any]) -> list[Any]:
        """Return the elements of a set in an order that depends on nothing but the elements."""

    @abstractmethod
    def embedded(self, form: Form, value: Any) -> Any:
        """Return the node for an already encoded fragment."""

    def tree(self, value: Any) -> Any:
        """Return plain data for the value. Raises CannotStoreError with the path of what cannot be stored."""
        cls = type(value)
        if cls in _PLAIN and self.fits(value):
            return value
        form = None
        if cls is not list:
            form = FORMS.get(cls) or self.form(value)
            if form.shape is LEAF:
                return self.tag(form, self.leaf(self.parts(form, value)), None)
            if form.shape is EMBEDDED:
                return self.embedded(form, value)
        if id(value) in self.above:
            self.fault("a value that contains itself cannot be stored; put an id or a name in its place")
        if len(self.trail) >= MAX_DEPTH:
            self.fault(f"a value nested deeper than {MAX_DEPTH} levels cannot be stored; make it flatter")
        self.above.add(id(value))
        result = self.items(value, True) if form is None else self.container(form, value)
        self.above.discard(id(value))
        return result

    def container(self, form: Form, value: Any) -> Any:
        if type(value) is dict:
            return self.mapping(value, "[]")
        parts = self.parts(form, value)
        if form.shape is OBJECT:
            return self.tag(form, parts[0], self.sections(parts[1]))
        body, extra = parts if form.extra else (parts, None)
        if form.shape is ITEMS:
            tree = self.items(body, True)
        elif form.shape is SET:
            natural = natural_order(body)
            tree = self.items(natural, False) if natural is not None else self.ordered(self.items(body, False))
        else:
            tree = self.pairs(body)
        if extra is not None:
            extra = {name: self.tree(item) for name, item in extra.items()}
        return self.tag(form, tree, extra)

    def items(self, values: list[Any], numbered: bool) -> list[Any]:
        result = []
        for index, item in enumerate(values):
            self.trail.append(("[]", index) if numbered else ("<>", "element"))
            result.append(self.tree(item))
            self.trail.pop()
        return result

    def mapping(self, values: dict[Any, Any], style: str) -> Any:
        result = {}
        for key, item in values.items():
            if not self.plain_key(key):
                return self.tag(FORMS[dict], self.pairs([[key, item] for key, item in values.items()]), None)
            self.trail.append((style, key))
            result[key] = self.tree(item)
            self.trail.pop()
        return result

    def pairs(self, values: list[Any]) -> list[Any]:
        result = []
        for key, item in values:
            self.trail.append(("<>", "key"))
            key_tree = self.tree(key)
            self.trail[-1] = ("[]", key)
            result.append([key_tree, self.tree(item)])
            self.trail.pop()
        return result

    def sections(self, sections: dict[str, Any]) -> dict[str, Any]:
        result = {}
        for name, content in sections.items():
            if type(content) is dict:
                result[name] = self.mapping(content, ".")
            else:
                self.trail.append((".", name))
                result[name] = self.tree(content)
                self.trail.pop()
        return result

    def form(self, value: Any) -> Form:
        try:
            return form_of(value)
        except Unstorable as error:
            self.fault(str(error))

    def parts(self, form: Form, value: Any) -> Any:
        try:
            return form.parts(value)
        except Unstorable as error:
            self.fault(str(error))
        except Exception as error:  # reading the fields may run descriptors of the application's classes
            self.fault(f"a {form.tag} cannot be stored, as reading it raised {type(error).__name__}", error)

    def fault(self, why: str, cause: Exception | None = None) -> NoReturn:
        path = self.path()
        shown = path if len(path) <= 200 else f"{path[:120]} … {path[-60:]}"
        raise CannotStoreError(f"{shown}: {why}", path) from cause

    def path(self) -> str:
        """Return where the walk is, such as `context['order'].lines[2]`."""
        return self.at + "".join(_step(style, name) for style, name in self.trail)


def _step(style: str, name: Any) -> str:
    if style == ".":
        return f".{name}" if type(name) is str and name.isidentifier() else f"[{_shown(name)}]"
    return f"<{name}>" if style == "<>" else f"[{_shown(name)}]"


def _shown(key: Any) -> str:
    """Return a key for a message: on one line, not long, and without running a `__repr__` of the application."""
    if type(key) not in _SHOWN:
        return f"<{type(key).__name__}>"
    if type(key) is int and key.bit_length() > 128:
        return "<int>"
    text = repr(key)
    return text if len(text) <= 40 else f"{text[:36]}…{text[-1]}"
