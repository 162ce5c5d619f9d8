"""Noting which fields of a typed context are read.

A model is made one of a subclass that notes the attributes it is asked for; everything else is the user's own class.
What looks at the model as a whole (`model_dump`, iteration) is not seen.
"""

from __future__ import annotations

from abc import ABCMeta
from functools import cache
from typing import Any, Self, TypeVar

from sagaz_core.saga.context import keep_with

ModelT = TypeVar("ModelT")

NOTES = "_sagaz_reads"
"""Where the noted names are kept with the model: a copy of the model notes too."""

_PYDANTIC = frozenset(("model_config", "model_fields"))
"""What older releases of pydantic ask a model for when a field is set."""


class _Notes:
    """What a model and all its copies note in."""

    __slots__ = ("add",)

    def __init__(self, reads: set[str]) -> None:
        self.add = reads.add

    def __deepcopy__(self, memo: object) -> Self:
        return self


def watched(model: ModelT, reads: set[str]) -> ModelT:
    """Let a pydantic model note the names of its attributes that are read, and return it."""
    keep_with(model, NOTES, _Notes(reads))
    kind: Any = type(model)
    if NOTES not in kind.__dict__:
        object.__setattr__(model, "__class__", _watching(kind))
    return model


def is_model(context: object) -> bool:
    """Whether it is a typed context: pydantic need not be there to tell."""
    return hasattr(type(context), "model_fields")


@cache
def _watching(kind: Any) -> type:
    asked: Any = kind.__getattribute__

    def noting(model: Any, name: str) -> Any:
        if not name.startswith("_") and name not in _PYDANTIC:
            try:
                notes = object.__getattribute__(model, "__pydantic_private__")[NOTES]
            except (AttributeError, KeyError, TypeError):
                pass  # another model of this class, that the step made
            else:
                notes.add(name)
        return asked(model, name)

    # Not by pydantic's metaclass, which would work the whole schema out again: this one has no field of its own.
    names = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__getattribute__": noting,
        NOTES: True,
    }
    made: type = ABCMeta.__new__(type(kind), kind.__name__, (kind,), names)
    return made
