"""What both kinds of `sagaz` sagas need to be copied and named for one run."""

from __future__ import annotations

from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any

from sagaz_core.model import END

if TYPE_CHECKING:
    from collections.abc import Iterable

END_KEY = "__sagaz_core_end__"
"""The step that a run's copy has behind its last one, so that the saga can be made to fail when all is done."""


def copy_of(saga: Any, base: type, **arguments: Any) -> Any:
    """Return a saga of the same class and attributes, in which `base` has set up all that it keeps afresh."""
    copied = object.__new__(type(saga))
    copied.__dict__.update(saga.__dict__)
    base.__init__(copied, **arguments)  # type: ignore[misc] # on a copy, on purpose
    return copied


def rebound(function: Any, old: object, new: object) -> Any:
    """Return the function with `new` in the place of `old`: as the owner of a method, or an argument of a partial."""
    if isinstance(function, MethodType):
        return MethodType(function.__func__, new) if function.__self__ is old else function
    if isinstance(function, partial):
        arguments = [new if argument is old else argument for argument in function.args]
        keywords = {key: new if value is old else value for key, value in function.keywords.items()}
        return partial(rebound(function.func, old, new), *arguments, **keywords)
    return function


def safe_names(keys: Iterable[str]) -> dict[str, str]:
    """Return, for each name that the engine takes, the one that a plan can be written with: the same, if it can."""
    names: dict[str, str] = {}
    taken = set(keys := list(keys))
    for key in keys:
        name = "".join("_" if c in "@+#:" or c.isspace() else c for c in str(key)) or "_"
        if name != key or name == END:
            stem, number = name if name != END else f"{END}_", 1
            name = stem
            while name in taken:
                number += 1
                name = f"{stem}_{number}"
        taken.add(name)
        names[key] = name
    return names
