"""The walk over a value that knows where it is: what cannot be stored is an error that names its path."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, Final, NoReturn

from sagaz_core.errors import CannotStoreError
from sagaz_core.storage._codec_classes import form_of
from sagaz_core.storage._codec_forms import FORMS, ITEMS, LEAF, OBJECT, SET, Form, Unstorable, natural_order

MAX_DEPTH: Final = 255
"""How many containers may be nested in a value that is stored: as many as ormsgpack packs."""
TOO_DEEP: Final = f"a value nested deeper than {MAX_DEPTH} levels, as stored, cannot be stored; make it flatter"

Step = tuple[str, Any]  # how a path goes on: ("[]", key), (".", name) or ("<>", "key")
Children = Iterable[tuple[Step, Any]]
Join = Callable[[list[Any]], Any]

_PLAIN: Final = frozenset({type(None), bool, int, float, str, bytes})
_ELEMENT: Final[Step] = ("<>", "element")
_KEY: Final[Step] = ("<>", "key")


class Walk(ABC):
    """Turns a value into a tree of plain data in which each form is what `tag` made of it. For one value only."""

    def __init__(self, at: str) -> None:
        self.at = at
        self.trail: list[Step] = []
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

    def tree(self, value: Any) -> Any:
        """Return plain data for the value. Raises CannotStoreError with the path of what cannot be stored."""
        cls = type(value)
        fits = self.fits
        if cls in _PLAIN and fits(value):
            return value
        form = None
        if cls is not list:
            form = FORMS.get(cls) or self.form(value)
            if form.shape is LEAF:
                return self.tag(form, self.leaf(self.parts(form, value)), None)
        if id(value) in self.above:
            self.fault("a value that contains itself cannot be stored; put an id or a name in its place")
        if len(self.trail) >= MAX_DEPTH:
            self.fault(TOO_DEEP)
        self.above.add(id(value))
        children, join = (_numbered(value), _same) if form is None else self.split(form, value)
        trees = []
        for step, child in children:
            if type(child) in _PLAIN and fits(child):
                trees.append(child)
            else:
                self.trail.append(step)
                trees.append(self.tree(child))  # the only recursion: one frame a level
                self.trail.pop()
        self.above.discard(id(value))
        return join(trees)

    def split(self, form: Form, value: Any) -> tuple[Children, Join]:
        """Return the children of a container, and what makes its node from their trees."""
        if type(value) is dict and all(map(self.plain_key, value)):
            return _named("[]", value), lambda trees: dict(zip(value, trees, strict=True))
        parts = self.parts(form, value)
        if form.shape is OBJECT:
            return self.split_object(form, parts)
        extra = None
        if form.extra:
            parts, extra = parts
        if form.shape is ITEMS:
            return _numbered(parts), lambda trees: self.tag(form, trees, extra)
        if form.shape is SET:
            natural = natural_order(parts)
            if natural is not None:
                return ((_ELEMENT, item) for item in natural), lambda trees: self.tag(form, trees, None)
            return ((_ELEMENT, item) for item in parts), lambda trees: self.tag(form, self.ordered(trees), None)
        pairs = chain.from_iterable(((_KEY, key), (("[]", key), item)) for key, item in parts)
        return pairs, lambda trees: self.tag(form, _by_twos(trees), extra)

    def split_object(self, form: Form, parts: Any) -> tuple[Children, Join]:
        type_name, sections = parts
        children: list[tuple[Step, Any]] = []
        mappings: list[tuple[str, dict[str, Any]]] = []
        others = []
        for name, content in sections.items():
            if type(content) is dict and all(map(self.plain_key, content)):
                mappings.append((name, content))
                children += _named(".", content)
            else:
                others.append(name)
        children += [((".", name), sections[name]) for name in others]

        def join(trees: list[Any]) -> Any:
            remaining = iter(trees)
            made = {name: {key: next(remaining) for key in content} for name, content in mappings}
            made.update((name, next(remaining)) for name in others)
            return self.tag(form, type_name, {name: made[name] for name in sections})

        return children, join

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
        raise CannotStoreError(f"{shorten(path)}: {why}", path) from cause

    def path(self) -> str:
        """Return where the walk is, such as `context['order'].lines[2]`."""
        return self.at + "".join(_step(style, name) for style, name in self.trail)


def is_utf8(text: str) -> bool:
    """Say whether UTF-8 can hold the text: it has no lone surrogates."""
    try:
        return text.isascii() or text.encode() != b""
    except UnicodeEncodeError:
        return False


def shorten(path: str) -> str:
    """Return a path for a message: a long one without its middle."""
    return path if len(path) <= 200 else f"{path[:120]} … {path[-60:]}"


def show_key(key: Any) -> str:
    """Return a key for a message: on one line, not long, and without running a `__repr__` of the application."""
    if type(key) not in _PLAIN:
        return f"<{type(key).__name__}>"
    if type(key) is int and key.bit_length() > 128:
        return "<int>"
    text = repr(key)
    return text if len(text) <= 40 else f"{text[:36]}…{text[-1]}"


def _step(style: str, name: Any) -> str:
    if style == ".":
        return f".{name}" if type(name) is str and name.isidentifier() else f"[{show_key(name)}]"
    return f"<{name}>" if style == "<>" else f"[{show_key(name)}]"


def _same(trees: list[Any]) -> list[Any]:
    return trees


def _numbered(items: Iterable[Any]) -> Children:
    return ((("[]", index), item) for index, item in enumerate(items))


def _named(style: str, mapping: dict[Any, Any]) -> Children:
    return (((style, key), item) for key, item in mapping.items())


def _by_twos(trees: list[Any]) -> list[list[Any]]:
    return [trees[index : index + 2] for index in range(0, len(trees), 2)]
