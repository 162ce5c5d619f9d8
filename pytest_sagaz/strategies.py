"""For Hypothesis: contexts that fit a pydantic model, the fault plans of a saga, and a machine that interleaves sagas.

@given(context=contexts(OrderContext), plan=plans(OrderSaga, max_faults=3))
def test_nothing_is_left_behind(context, plan):
    run(OrderSaga, context, plan).assert_sound()
"""

from __future__ import annotations

import math
import types
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pytest_sagaz.plans import LegalPlans
from sagaz_core.errors import MissingExtraError, UsageError, nearest
from sagaz_core.faults.kinds import parse_kinds
from sagaz_core.faults.plan import Fault, FaultPlan
from sagaz_core.model import SagaModel

try:
    from hypothesis import strategies as st
except ImportError as error:
    raise MissingExtraError(
        "pytest_sagaz.strategies needs the hypothesis extra: pip install 'pytest-sagaz[hypothesis]'"
    ) from error
else:
    from pytest_sagaz.machine import SagaMachine

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pydantic import BaseModel

Strategy = st.SearchStrategy[Any]

__all__ = ["SagaMachine", "contexts", "plans"]


# ---- contexts


def contexts(model: type[BaseModel], **fields: Strategy) -> st.SearchStrategy[dict[str, Any]]:
    """Return contexts that the model accepts: mappings from its fields to values of their types, within their limits.

    `fields` gives a strategy for a field by its name, for types that Hypothesis does not know. Numbers are finite.
    Raises `UsageError` for what is no model, and for a field that it does not have.
    """
    if not isinstance(model, type) or not hasattr(model, "model_fields"):
        raise UsageError(f"contexts({model!r:.60}): give a pydantic model, the class")
    for name in fields:
        if name not in model.model_fields:
            raise UsageError(f"{model.__name__} has no field {name!r}{nearest(name, model.model_fields)}")
    return _built(model, fields).map(lambda made: {**dict(made), **(made.__pydantic_extra__ or {})})


@cache  # one for each model, so that one that has itself in it has an end
def _instances(model: type[BaseModel]) -> st.SearchStrategy[BaseModel]:
    return st.deferred(lambda: _built(model, {}))


def _built(model: type[BaseModel], fields: Mapping[str, Strategy]) -> st.SearchStrategy[BaseModel]:
    from pydantic import ValidationError

    required: dict[str, Strategy] = {}
    optional: dict[str, Strategy] = {}
    for name, field in model.model_fields.items():
        alias = field.validation_alias if isinstance(field.validation_alias, str) else field.alias or name
        strategy = fields[name] if name in fields else _of(field.annotation, field.metadata)
        (required if field.is_required() else optional)[alias] = strategy

    def validated(data: dict[str, Any]) -> Any:
        try:
            return model.model_validate(data)
        except ValidationError:  # a validator of the user's own, or a limit that is only tried
            return None

    return st.fixed_dictionaries(required, optional=optional).map(validated).filter(lambda made: made is not None)


def _of(kind: Any, limits: Iterable[Any] = ()) -> Strategy:
    """Return values of this type within the limits that annotate it."""
    limits = list(limits)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _of(arguments[0], [*arguments[1:], *limits])
    if origin in (Union, types.UnionType):
        first_none = sorted(arguments, key=lambda argument: argument is not type(None))  # what Hypothesis shrinks to
        return st.one_of([_of(argument, () if argument is type(None) else limits) for argument in first_none])
    if origin is Literal:
        return st.sampled_from(arguments)
    if isinstance(kind, type) and hasattr(kind, "model_fields"):
        return _instances(kind)
    found = _Limits(limits)
    if kind in (int, float, Decimal):
        return _number(kind, found)
    if kind in (str, bytes):
        return _text(kind, found)
    if (origin or kind) in (list, set, frozenset, tuple, dict):
        return _collection(origin or kind, arguments, found)
    return st.from_type(kind)


class _Limits:
    """The limits of a field, from annotated-types and from pydantic's own kind of them."""

    def __init__(self, limits: Iterable[Any]) -> None:
        self._values: dict[str, Any] = {}
        for limit in limits:
            for name in ("gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length"):
                self._take(name, getattr(limit, name, None))
            for name in ("pattern", "max_digits", "decimal_places"):
                self._take(name, getattr(limit, name, None))

    def _take(self, name: str, value: Any) -> None:
        if value is not None:
            self._values[name] = value

    def __getattr__(self, name: str) -> Any:
        return self._values.get(name)

    @property
    def sizes(self) -> dict[str, Any]:
        return {"min_size": self.min_length or 0, "max_size": self.max_length}


def _number(kind: Any, limits: _Limits) -> Strategy:
    low = limits.ge if limits.gt is None else limits.gt
    high = limits.le if limits.lt is None else limits.lt
    if limits.multiple_of:
        unit = Decimal(str(limits.multiple_of))
        first = None if low is None else math.ceil(Decimal(str(low)) / unit)
        last = None if high is None else math.floor(Decimal(str(high)) / unit)
        found: Strategy = st.integers(first, last).map(lambda count: kind(count * unit))
    elif kind is int:
        found = st.integers(None if low is None else math.ceil(low), None if high is None else math.floor(high))
    elif kind is float:
        found = st.floats(
            None if low is None else float(low),
            None if high is None else float(high),
            allow_nan=False,
            allow_infinity=False,
        )
    else:
        found = _decimals(limits, low, high)
    if limits.gt is not None:
        found = found.filter(lambda value: value > limits.gt)
    if limits.lt is not None:
        found = found.filter(lambda value: value < limits.lt)
    return found


def _decimals(limits: _Limits, low: Any, high: Any) -> Strategy:
    places = limits.decimal_places
    if limits.max_digits is not None:
        places = places or 0
        most = Decimal(10) ** (limits.max_digits - places) - Decimal(10) ** -places
        low = -most if low is None else max(Decimal(str(low)), -most)
        high = most if high is None else min(Decimal(str(high)), most)
    return st.decimals(low, high, allow_nan=False, allow_infinity=False, places=places)


def _text(kind: Any, limits: _Limits) -> Strategy:
    if kind is bytes:
        return st.binary(**limits.sizes)
    if limits.pattern is None:
        return st.text(**limits.sizes)
    low, high = limits.min_length or 0, limits.max_length or math.inf
    return st.from_regex(limits.pattern).filter(lambda text: low <= len(text) <= high)


def _collection(kind: Any, arguments: tuple[Any, ...], limits: _Limits) -> Strategy:
    parts = [_of(argument) for argument in arguments if argument is not Ellipsis]
    if kind is dict:
        return st.dictionaries(*(parts or [st.text(), st.integers()]), **limits.sizes)
    if kind is tuple and parts and Ellipsis not in arguments:
        return st.tuples(*parts)
    return st.lists(parts[0] if parts else st.integers(), unique=kind in (set, frozenset), **limits.sizes).map(kind)


# ---- plans


def plans(saga: Any, kinds: str | Iterable[str] = "all", *, max_faults: int = 1) -> st.SearchStrategy[FaultPlan]:
    """Return plans that the saga can have, of up to `max_faults` faults, which all strike in a run of it.

    `saga` is a class, an instance, a function that makes one, or a `SagaModel`; its steps must succeed by themselves.
    Benign faults of actions come before the fatal one, if there is one, and after it faults of the compensations that
    then run. Faults of compensations alone imply the end of the saga (or its first pivot), which is not counted. They
    are in the order in which they strike. A failing plan shrinks to the fewest faults, simplest kinds, earliest steps.
    """
    if not isinstance(max_faults, int) or max_faults < 1:
        raise UsageError(f"max_faults={max_faults!r}: a plan has at least 1 fault")
    model = saga if isinstance(saga, SagaModel) else _model_of(saga)
    legal = LegalPlans(model, parse_kinds(kinds))
    if not legal.added_to(()):
        raise UsageError(f"saga {model.name!r} can have no fault of the kinds {kinds!r}")
    return _drawn(legal, max_faults)


@st.composite
def _drawn(draw: st.DrawFn, legal: LegalPlans, max_faults: int) -> FaultPlan:
    faults: tuple[Fault, ...] = ()
    while candidates := legal.added_to(faults):
        # Always of all kinds and all steps, so that a choice means the same wherever it stands: then Hypothesis can
        # leave faults out, and make kinds and steps smaller, each by itself.
        kinds = {fault.kind for fault in candidates}
        kind = draw(st.sampled_from(legal.kinds).filter(kinds.__contains__))
        steps = {fault.step for fault in candidates if fault.kind == kind}
        step = draw(st.sampled_from(legal.steps).filter(steps.__contains__))
        faults = (*faults, Fault(step, kind))
        # Drawn after the last fault too: else the one before it could not be left out.
        if not draw(st.booleans()) or len(faults) == max_faults:
            break
    return legal.plan(faults)


def _model_of(saga: Any) -> SagaModel:
    from pytest_sagaz.sagas import model_of

    return model_of(saga)
