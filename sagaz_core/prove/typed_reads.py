"""Noting which fields of a typed context are read.

A model is made one of a subclass that notes the attributes it is asked for; everything else is the user's own class.
What looks at the model as a whole (`model_dump`, iteration) is not seen.
"""

from __future__ import annotations

from abc import ABCMeta
from functools import cache
from typing import Any, TypeVar

ModelT = TypeVar("ModelT")

NOTES = "_sagaz_reads"
"""Where the noted names are, among the model's attributes and none of its fields: a copy of the model notes too."""


def watched(model: ModelT, reads: set[str]) -> ModelT:
    """Let a pydantic model note the names of its attributes that are read, and return it."""
    vars(model)[NOTES] = reads
    kind: Any = type(model)
    if _noting is not kind.__dict__.get("__getattribute__"):
        object.__setattr__(model, "__class__", _watching(kind))
    return model


def is_model(context: object) -> bool:
    """Whether it is a typed context: pydantic need not be there to tell."""
    return hasattr(type(context), "model_fields")


@cache
def _watching(kind: Any) -> type:
    # Not by pydantic's metaclass, which would work the whole schema out again: this one has no field of its own.
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__getattribute__": _noting}
    made: type = ABCMeta.__new__(type(kind), kind.__name__, (kind,), names)
    return made


def _noting(model: Any, name: str) -> Any:
    if not name.startswith("_"):
        object.__getattribute__(model, "__dict__")[NOTES].add(name)
    return object.__getattribute__(model, name)
