"""The decorators, and what a class body says: its steps in order of declaration."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

from sagaz_core.errors import DefinitionError, nearest, quoted
from sagaz_core.model import SagaModel
from sagaz_core.saga.step import Backoff, Function, InDoubt, Operation, Step, rejections

F = TypeVar("F", bound=Callable[..., Any])
_MARK = "__sagaz_declared__"

DEFAULT_UNDO_RETRIES = 2
DEFAULT_BACKOFF = Backoff()


@dataclass(frozen=True, slots=True)
class _Action:
    step: Step
    in_doubt: InDoubt


@dataclass(frozen=True, slots=True)
class _Undo:
    step: str
    operation: Operation


@dataclass(frozen=True, slots=True)
class _Recovery:
    step: str
    operation: Operation


def action(
    name: str,
    *,
    depends_on: Iterable[str] | None = None,
    timeout: float | None = None,
    retries: int = 0,
    backoff: Backoff = DEFAULT_BACKOFF,
    pivot: bool = False,
    in_doubt: InDoubt = "ignore",
    rejects: Iterable[type[BaseException]] = (),
) -> Callable[[F], F]:
    """Declare the method as the action of a step. Sync or async; what it returns as a mapping goes into the context.

    Without `depends_on` the step follows the one declared before it; with it (also empty) the steps form a DAG.
    `timeout` is in seconds. `rejects` are exceptions that mean: refused, without any effect (so is `StepRejected`);
    they are not retried. `in_doubt="compensate"` runs the step's own compensation after any other failure.
    """
    depends = None if depends_on is None else dependency_names(depends_on, name)
    refused = rejections(rejects, name)

    def mark(function: F) -> F:
        # in_doubt needs a compensation, which is not known yet: it is put in when the class is complete.
        operation = Operation(function, timeout, retries, backoff)
        step = Step(name, operation, depends_on=depends, pivot=pivot, rejects=refused)
        _put_mark(function, _Action(step, in_doubt))
        return function

    return mark


def compensate(
    step: str, *, timeout: float | None = None, retries: int = DEFAULT_UNDO_RETRIES, backoff: Backoff = DEFAULT_BACKOFF
) -> Callable[[F], F]:
    """Declare the method as what undoes the step. It is given the context, and the step's result if it takes a second
    parameter. What it returns, later compensations read in `ctx.compensation_results`.
    """

    def mark(function: F) -> F:
        _put_mark(function, _Undo(step, Operation(function, timeout, retries, backoff)))
        return function

    return mark


def forward_recovery(step: str, *, timeout: float | None = None) -> Callable[[F], F]:
    """Declare the method as what decides when the step fails after a pivot. It is given the context, and the error if
    it takes a second parameter; it returns a `Recovery`, or a mapping that stands for the step's result.
    """

    def mark(function: F) -> F:
        _put_mark(function, _Recovery(step, Operation(function, timeout, 0)))
        return function

    return mark


def _put_mark(function: Any, mark: object) -> None:
    if _mark_of(function) is not None:
        name = getattr(function, "__qualname__", function)
        raise DefinitionError(f"{name!r} is declared twice: one method is one action or compensation")
    try:
        setattr(function, _MARK, mark)
    except AttributeError:  # a bound method, a builtin
        raise DefinitionError(
            f"{function!r} cannot be marked: wrap it in a function, or give it to add_step()"
        ) from None


def _mark_of(function: object) -> object:
    # Not getattr(): a class may hold objects that answer to every name.
    return getattr(function, "__dict__", {}).get(_MARK)


def dependency_names(names: Iterable[str], step: str) -> tuple[str, ...]:
    """Return the names as a tuple. Raises `DefinitionError` for a single text."""
    if isinstance(names, str):
        raise DefinitionError(f"depends_on of step {step!r} is the text {names!r}: give a list, [{names!r}]")
    return tuple(names)


@dataclass
class Declarations:
    """The steps of a class, with the attribute that holds each function, so that a subclass may override the method.

    `models` keeps the descriptions of its sagas by name, version and failure policy: there may be thousands.
    """

    steps: dict[str, Step] = field(default_factory=dict)
    attributes: dict[int, str] = field(default_factory=dict)
    models: dict[tuple[str, str, str], SagaModel] = field(default_factory=dict)
    _slots: dict[str, list[tuple[str, Operation, str]]] = field(default_factory=dict)
    _inspected: dict[str, tuple[Any, Operation]] = field(default_factory=dict)

    def bound_to(self, saga: object) -> dict[str, Step]:
        """Return the steps with the functions as methods of this saga."""
        if not self._slots:
            self._slots = {name: self._operations(step) for name, step in self.steps.items()}
        return {
            name: self.steps[name].bound(
                {slot: self._bound(operation, attribute, saga) for slot, operation, attribute in operations}
            )
            for name, operations in self._slots.items()
        }

    def methods_of(self, saga: object) -> list[Function]:
        """Return what the saga has now as its actions, compensations and recoveries."""
        return [getattr(saga, attribute) for attribute in self.attributes.values()]

    def _operations(self, step: Step) -> list[tuple[str, Operation, str]]:
        named = (("action", step.action), ("compensation", step.compensation), ("recovery", step.recovery))
        return [(slot, made, self.attributes[id(made)]) for slot, made in named if made is not None]

    def _bound(self, operation: Operation, attribute: str, saga: object) -> Operation:
        """Return the operation with the saga's method, which is inspected when it is not the one of the last time."""
        function = getattr(saga, attribute)
        underlying = getattr(function, "__func__", None)
        known = self._inspected.get(attribute)
        if known is not None and underlying is not None and known[0] is underlying:
            return known[1].bound(function)
        made = replace(operation, function=function)
        self._inspected[attribute] = underlying, made
        return made


def declarations_of(cls: type) -> Declarations:
    """Read the class and its bases. Raises `DefinitionError` for a compensation of a step that there is not."""
    found = Declarations()
    undos: dict[str, Operation] = {}
    recoveries: dict[str, Operation] = {}
    doubts: dict[str, InDoubt] = {}
    for attribute, function in _marked(cls).items():
        mark: Any = _mark_of(function)
        if isinstance(mark, _Action):
            if mark.step.name in found.steps:
                raise DefinitionError(f"{cls.__name__} has two actions for step {mark.step.name!r}: rename one")
            found.steps[mark.step.name] = mark.step
            found.attributes[id(mark.step.action)] = attribute
            doubts[mark.step.name] = mark.in_doubt
        else:
            table = undos if isinstance(mark, _Undo) else recoveries
            if mark.step in table:
                kind = "compensations" if table is undos else "forward recoveries"
                raise DefinitionError(f"{cls.__name__} has two {kind} for step {mark.step!r}: keep one")
            table[mark.step] = mark.operation
            found.attributes[id(mark.operation)] = attribute
    for name in (*undos, *recoveries):
        if name not in found.steps:
            raise DefinitionError(
                f"{cls.__name__} compensates or recovers the step {name!r}, which it does not have"
                f"{nearest(name, found.steps)}; its steps: {quoted(found.steps)}"
            )
    for name, step in found.steps.items():
        found.steps[name] = replace(
            step, compensation=undos.get(name), recovery=recoveries.get(name), in_doubt=doubts[name]
        )
    return found


def _marked(cls: type) -> dict[str, Function]:
    functions: dict[str, Function] = {}
    for base in reversed(cls.__mro__):
        for attribute, value in vars(base).items():
            # A decorator below @staticmethod marks the function, one above it the staticmethod.
            for function in (value, getattr(value, "__func__", None)):
                if isinstance(_mark_of(function), (_Action, _Undo, _Recovery)):
                    functions[attribute] = cast(Function, function)
                    break
    return functions
