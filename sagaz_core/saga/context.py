"""What actions and compensations are given: the saga's data so far."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from sagaz_core.errors import DefinitionError
from sagaz_core.events import NO_DELTA, Delta

_MISSING = object()
_NO_RESULTS: Mapping[str, Any] = MappingProxyType({})


class SagaContext(dict[str, Any]):
    """The saga's data, a mapping. Each call gets its own: what it sets is kept when the call succeeds.

    `compensation_results` has what the compensations that ran before this one returned, by step.
    """

    __slots__ = ("compensation_results",)

    compensation_results: Mapping[str, Any]

    def __init__(self, data: Mapping[str, Any] = MappingProxyType({}), results: Mapping[str, Any] = _NO_RESULTS) -> None:
        dict.__init__(self, data)
        self.compensation_results = results


def delta_of(before: Mapping[str, Any], after: Mapping[str, Any], result: Any) -> Delta:
    """Return what a call changed: keys that it set or deleted in its own context, and its result if it is a mapping."""
    changed = {key: value for key, value in after.items() if before.get(key, _MISSING) is not value}
    deleted: tuple[str, ...] = ()
    if len(after) - len(changed) < len(before):
        deleted = tuple(key for key in before if key not in after)
    if result is not None and isinstance(result, Mapping):
        changed.update(result)
        if deleted:
            deleted = tuple(key for key in deleted if key not in changed)
    return Delta(changed, deleted) if changed or deleted else NO_DELTA


class TypedContext:
    """Gives a pydantic model in place of the mapping, for `Saga[Model]`.

    A step may set the model's fields or return a mapping of them; a key that the model does not have is a
    `DefinitionError`, because it would be lost.
    """

    def __init__(self, model: type[Any]) -> None:
        self.model = model
        self.extra = model.model_config.get("extra") == "allow"
        self._view = type(model.__name__, (_WithResults, model), {"__module__": model.__module__})
        self._view.__qualname__ = model.__qualname__

    def view(self, data: Mapping[str, Any], results: Mapping[str, Any]) -> Any:
        """Return the model over a copy of the data. Raises pydantic's `ValidationError` for data that does not fit."""
        made = self._view.model_validate(dict(data))
        made.__dict__["_sagaz_results"] = results
        return made

    def data(self, view: Any) -> dict[str, Any]:
        """Return the model's data as a mapping, values as they are."""
        found = {key: value for key, value in view.__dict__.items() if key != "_sagaz_results"}
        return {**found, **(view.__pydantic_extra__ or {})}

    def check(self, step: str, result: Any) -> None:
        """Raise `DefinitionError` when a step's result has a key that the model does not declare."""
        if self.extra or not isinstance(result, Mapping):
            return
        for key in result:
            if key not in self.model.model_fields:
                raise DefinitionError(
                    f"step {step!r} returned the key {key!r}, which {self.model.__name__} does not declare: "
                    f"add the field, or return only declared ones"
                )


class _WithResults:
    @property
    def compensation_results(self) -> Mapping[str, Any]:
        results: Mapping[str, Any] = self.__dict__.get("_sagaz_results", _NO_RESULTS)
        return results
