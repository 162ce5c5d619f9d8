"""What actions and compensations are given: the saga's data so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from types import MappingProxyType
from typing import Any

from sagaz_core.errors import DefinitionError, UsageError
from sagaz_core.events import NO_DELTA, Delta

_MISSING = object()
_NO_RESULTS: Mapping[str, Any] = MappingProxyType({})
_RESULTS = "_sagaz_results"


class SagaContext(dict[str, Any]):
    """The saga's data, a mapping. Each call gets its own: what it sets is kept when the call succeeds.

    Return or set new values; what is changed inside a value (a list, say) is only noticed where the run is captured.
    `compensation_results` has what the compensations that ran before this one returned, by step.
    """

    compensation_results: Mapping[str, Any] = _NO_RESULTS  # of the class: making a context costs no more than a dict
    _touched = False

    def __getstate__(self) -> dict[str, Any]:
        """Return its attributes; what only shows the results can neither be copied deep nor pickled."""
        state = vars(self).copy()
        if "compensation_results" in state:
            state["compensation_results"] = dict(self.compensation_results)
        return state


def _noting(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def noting(self: SagaContext, *args: Any, **named: Any) -> Any:
        self._touched = True
        return method(self, *args, **named)

    return noting


# Most calls change nothing, and to compare the whole context after each takes longer than all else that is done for it.
for _name in ("__setitem__", "__delitem__", "__ior__", "clear", "pop", "popitem", "setdefault", "update"):
    setattr(SagaContext, _name, _noting(getattr(dict, _name)))


def context_for_undo(data: Mapping[str, Any], results: Mapping[str, Any]) -> SagaContext:
    """Return the context for a compensation, which may look at what those before it returned (read-only `results`)."""
    made = SagaContext(data)
    made.compensation_results = results
    return made


def delta_of(before: Mapping[str, Any], after: Mapping[str, Any], result: Any) -> Delta:
    """Return what a call changed: keys that it set or deleted in its own context, and its result if it is a mapping.

    Raises `DefinitionError` for a result with a key that is not a string.
    """
    if result is None and type(after) is SagaContext and not after._touched:
        return NO_DELTA
    return _changes(before, after, result)


def _changes(before: Mapping[str, Any], after: Mapping[str, Any], result: Any) -> Delta:
    changed: dict[str, Any] = {}
    deleted: tuple[str, ...] = ()
    if type(after) is not SagaContext or after._touched:
        changed = {key: value for key, value in after.items() if before.get(key, _MISSING) is not value}
        if len(after) - len(changed) < len(before):
            deleted = tuple(key for key in before if key not in after)
    if result is not None and isinstance(result, Mapping):
        for key in result:
            if not isinstance(key, str):
                raise DefinitionError(
                    f"its result has the key {key!r:.80}, but a mapping goes into the context, whose keys are strings: "
                    f"return it under a key"
                )
        changed.update(result)
        if deleted:
            deleted = tuple(key for key in deleted if key not in changed)
    return Delta(changed, deleted) if changed or deleted else NO_DELTA


class TypedContext:
    """Gives a pydantic model in place of the mapping, for `Saga[Model]`.

    A step may set the model's fields or return a mapping of them; a key that the model does not have is a
    `DefinitionError`, because it would be lost, and so is a value that the model does not take.
    """

    def __init__(self, model: type[Any]) -> None:
        self.model = model
        self.extra = model.model_config.get("extra") == "allow"
        # Data is kept under the fields' own names, whatever aliases they are read by.
        # Its errors show no values: they get into logs, and what a step left into the store.
        config = {"populate_by_name": True, "hide_input_in_errors": True}
        namespace = {"__module__": model.__module__, "model_config": config}
        self._view: Any = type(model.__name__, (_WithResults, model), namespace)
        self._view.__qualname__ = model.__qualname__

    def initial(self, saga: str, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the whole initial context, checked. Raises `UsageError`."""
        try:
            given = self.data(self.view(data, _NO_RESULTS))
            return self.data(self.view(given, _NO_RESULTS))  # as each step sees it: a default is not checked at first
        except ValueError as error:
            raise UsageError(
                f"the context of saga {saga!r} does not fit {self.model.__name__}: {first_line(error, values=False)}"
            ) from error

    def view(self, data: Mapping[str, Any], results: Mapping[str, Any]) -> Any:
        """Return the model over a copy of the data. Raises pydantic's `ValidationError` for data that does not fit."""
        made = self._view.model_validate(dict(data))
        keep_with(made, _RESULTS, results)
        return made

    def data(self, view: Any) -> dict[str, Any]:
        """Return the model's data as a mapping, values as they are."""
        fields = self.model.model_fields
        found = {key: value for key, value in view.__dict__.items() if key in fields}  # there are cached properties too
        return {**found, **(view.__pydantic_extra__ or {})}

    def put(self, view: Any, values: Mapping[str, Any]) -> None:
        """Set fields of a view, unchecked."""
        for key, value in values.items():
            (view.__dict__ if key in self.model.model_fields else view.__pydantic_extra__)[key] = value

    def delta(self, step: str, before: Mapping[str, Any], view: Any, result: Any) -> Delta:
        """Return what a call changed: fields of its view, and its result if it is a mapping. Raises `DefinitionError`.

        Fields are compared by value: the model made its own lists and dicts of what it was given.
        """
        after = self.data(view)
        if isinstance(result, Mapping):
            self._check_keys(step, result)
            after.update(result)
        changed = {key: value for key, value in after.items() if key not in before or _differs(before[key], value)}
        if not changed:
            return NO_DELTA
        try:
            checked = self.data(self.view({**before, **after}, _NO_RESULTS))
        except ValueError as error:
            raise DefinitionError(
                f"step {step!r} left a context that does not fit {self.model.__name__}: "
                f"{first_line(error, values=False)}"
            ) from error
        return Delta({key: checked[key] for key in changed if key in checked})

    def _check_keys(self, step: str, result: Mapping[Any, Any]) -> None:
        for key in result:
            if key not in self.model.model_fields and not (self.extra and isinstance(key, str)):
                raise DefinitionError(
                    f"step {step!r} returned the key {key!r:.80}, which {self.model.__name__} does not declare: "
                    f"add the field, or return only declared ones"
                )


def first_line(error: ValueError, *, values: bool = True) -> str:
    """Return the first thing that pydantic (or a validator) has to say, on one line; of a value without `values` only
    the type: it may be a secret, and of a field that is missing it is all the rest.
    """
    errors = getattr(error, "errors", None)
    if errors is None:
        return (str(error).splitlines() or [type(error).__name__])[0]
    first = errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    got = "" if first["type"] == "missing" else f", got {first['input']!r:.80}"
    if got and not values:
        got = f", got a value of type {type(first['input']).__name__!r}"
    return f"{where}{': ' if where else ''}{first['msg']}{got}"


def _differs(one: Any, other: Any) -> bool:
    try:
        return one is not other and (type(one) is not type(other) or bool(one != other))
    except Exception:  # the user's __eq__, or one that gives no truth (an array)
        return True


def keep_with(model: Any, name: str, value: Any) -> None:
    """Keep something with a pydantic model, and with its copies, where its user does not come across it.

    That is among its private attributes: what is in `__dict__` and no field is dumped once a field of a model that
    allows more keys was set.
    """
    kept = model.__pydantic_private__
    if kept is None:
        kept = {}
        object.__setattr__(model, "__pydantic_private__", kept)
    kept[name] = value


class _WithResults:
    @property
    def compensation_results(self) -> Mapping[str, Any]:
        kept: dict[str, Any] = getattr(self, "__pydantic_private__", None) or {}
        return MappingProxyType(kept.get(_RESULTS, _NO_RESULTS))
