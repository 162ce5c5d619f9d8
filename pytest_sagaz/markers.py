"""What the markers say: their arguments, bound to a real signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, TypeVar

from sagaz_core.errors import SagazError, UsageError, nearest
from sagaz_core.faults.plan import NO_FAULTS, FaultPlan

if TYPE_CHECKING:
    import pytest

T = TypeVar("T")


@dataclass(frozen=True)
class ReplayFrom:
    """`replay_from(...)`."""

    source: str
    step: str | None
    override: Mapping[str, Any]
    freeze: bool


@dataclass(frozen=True)
class Matrix:
    """`saga_matrix(...)`; `kinds` is None for those that the run is set to."""

    saga: Any
    context: Mapping[str, Any]
    kinds: str | Iterable[str] | None


def replay_from(
    id_or_path: str | PathLike[str],
    step: str | None = None,
    override: Mapping[str, Any] | None = None,
    freeze: bool = True,
) -> ReplayFrom:
    """Check the arguments of the marker."""
    source = fspath(id_or_path) if isinstance(id_or_path, PathLike) else id_or_path
    _expect(isinstance(source, str) and bool(source), "id_or_path", id_or_path, "the id of a saga or a path")
    _expect(step is None or (isinstance(step, str) and bool(step)), "step", step, "the name of a step")
    _expect(override is None or isinstance(override, Mapping), "override", override, "a mapping of context keys")
    _expect(isinstance(freeze, bool), "freeze", freeze, "True or False")
    return ReplayFrom(source, step, dict(override or {}), freeze)


def force_failure(step: str, at: str = "before", exc: BaseException | type[BaseException] | None = None) -> FaultPlan:
    """Return the plan of one fault that the marker names."""
    _expect(isinstance(step, str) and bool(step), "step", step, "the name of a step")
    _expect(isinstance(at, str), "at", at, "a kind of fault, such as 'after'")
    raised = exc is None or isinstance(exc, BaseException) or (isinstance(exc, type) and issubclass(exc, BaseException))
    _expect(raised, "exc", exc, "an exception, or a class of them")
    plan = FaultPlan.parse(f"{step}@{at}")
    if len(plan.faults) != 1:
        raise UsageError(f"step={step!r}, at={at!r}: a marker is one fault; stack another one for the next")
    return FaultPlan((replace(plan.faults[0], exception=exc),)) if exc is not None else plan


def saga_matrix(saga: Any, context: Mapping[str, Any] | None, kinds: str | Iterable[str] | None = None) -> Matrix:
    """Check the arguments of the marker."""
    from sagaz_core.faults.kinds import parse_kinds

    _expect(context is None or isinstance(context, Mapping), "context", context, "a mapping")
    if kinds is not None:
        parse_kinds(kinds)
    return Matrix(saga, dict(context or {}), kinds)


def _expect(right: bool, name: str, value: object, what: str) -> None:
    if not right:
        raise UsageError(f"{name}={value!r:.60}: give {what}")


def _bound(signature: Callable[..., T], mark: pytest.Mark) -> T:
    """Call the signature with the mark's arguments. Raises `UsageError`, which names the marker, for wrong ones."""
    try:
        inspect.signature(signature).bind(*mark.args, **mark.kwargs)
    except TypeError as error:
        known = inspect.signature(signature).parameters
        unknown = next((name for name in mark.kwargs if name not in known), None)
        hint = nearest(unknown, known) if unknown else ""
        raise UsageError(f"@{mark.name}: {error}{hint}; write {mark.name}{_shown(signature)}") from None
    try:
        return signature(*mark.args, **mark.kwargs)
    except SagazError as error:
        raise UsageError(f"@{mark.name}: {error}") from error


def _shown(signature: Callable[..., Any]) -> str:
    parameters = inspect.signature(signature).parameters.values()
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    return str(inspect.Signature(bare))


def forced_plan(node: pytest.Item) -> FaultPlan:
    """Return the faults that the node's `force_failure` markers name, the outermost first."""
    plan = NO_FAULTS
    for mark in reversed(list(node.iter_markers("force_failure"))):
        plan += _bound(force_failure, mark)
    return plan


def replayed(node: pytest.Item) -> ReplayFrom | None:
    """Return what the node's closest `replay_from` says."""
    mark = node.get_closest_marker("replay_from")
    return None if mark is None else _bound(replay_from, mark)


def matrix_of(node: pytest.Item) -> Matrix | None:
    """Return what the node's closest `saga_matrix` says."""
    mark = node.get_closest_marker("saga_matrix")
    return None if mark is None else _bound(saga_matrix, mark)
