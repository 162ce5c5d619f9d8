"""One step as declared: its functions and settings."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from sagaz_core.errors import DefinitionError
from sagaz_core.model import StepModel

InDoubt = Literal["ignore", "compensate"]
Function = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds to wait before the next attempt: `first`, then `factor` times more each time, `cap` at most."""

    first: float = 0.1
    factor: float = 2.0
    cap: float = 30.0

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait after this attempt (1, 2…) failed."""
        try:
            return float(min(self.cap, self.first * self.factor ** (attempt - 1)))
        except OverflowError:
            return self.cap


@dataclass(frozen=True)
class Operation:
    """A function of the user's and how to call it. Times are in seconds; `None` is no limit."""

    function: Function
    timeout: float | None = None
    retries: int = 0
    backoff: Backoff = field(default_factory=Backoff)
    is_async: bool = field(init=False)
    takes_second: bool = field(init=False)

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise DefinitionError(f"{self.function!r} is not callable: give a function")
        if self.timeout is not None and not self.timeout > 0:
            raise DefinitionError(f"a timeout of {self.timeout!r}: give seconds above 0, or None for no limit")
        if not isinstance(self.retries, int) or self.retries < 0:
            raise DefinitionError(f"{self.retries!r} retries: give a number from 0")
        object.__setattr__(self, "is_async", _is_async(self.function))
        object.__setattr__(self, "takes_second", _takes_second(self.function))

    def bound(self, function: Function, takes_second: bool | None = None) -> Operation:
        """Return it with another function, as async as its own, which takes what that does unless it is said."""
        # Not through `__init__`: each instance of a saga class binds all of its operations, which were checked before.
        made = object.__new__(Operation)
        fields = made.__dict__
        fields.update(self.__dict__)
        fields["function"] = function
        if takes_second is not None:
            fields["takes_second"] = takes_second
        return made


@dataclass(frozen=True)
class Step:
    """One declared step. `depends_on=None` means: after the step that was declared before it."""

    name: str
    action: Operation
    compensation: Operation | None = None
    recovery: Operation | None = None
    depends_on: tuple[str, ...] | None = None
    pivot: bool = False
    in_doubt: InDoubt = "ignore"
    rejects: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        if self.in_doubt not in ("ignore", "compensate"):
            raise DefinitionError(f"in_doubt={self.in_doubt!r} of step {self.name!r}: give 'ignore' or 'compensate'")
        if self.in_doubt == "compensate" and self.compensation is None:
            raise DefinitionError(f"step {self.name!r} has in_doubt='compensate' but no compensation: add @compensate")

    def bound(self, operations: Mapping[str, Operation]) -> Step:
        """Return it with other operations, by field."""
        made = object.__new__(Step)
        fields = made.__dict__
        fields.update(self.__dict__)
        fields.update(operations)
        return made

    def described(self, previous: str | None) -> StepModel:
        """Return its description; `previous` is the step declared before it."""
        depends_on = self.depends_on
        if depends_on is None:
            depends_on = () if previous is None else (previous,)
        undo = self.compensation
        return StepModel(
            name=self.name,
            depends_on=depends_on,
            has_compensation=undo is not None,
            pivot=self.pivot,
            timeout=self.action.timeout,
            compensation_timeout=undo.timeout if undo else None,
            retries=self.action.retries,
            compensation_retries=undo.retries if undo else 0,
            in_doubt=self.in_doubt,
            has_recovery=self.recovery is not None,
        )


def rejections(kinds: Iterable[type[BaseException]], step: str) -> tuple[type[BaseException], ...]:
    """Return the exception classes as a tuple. Raises `DefinitionError` for anything else."""
    found: Any = (kinds,) if isinstance(kinds, type) else tuple(kinds)
    for kind in found:
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise DefinitionError(f"rejects of step {step!r} has {kind!r}: give exception classes")
    return cast("tuple[type[BaseException], ...]", found)


def _is_async(function: Function) -> bool:
    while isinstance(function, (functools.partial, staticmethod)):
        function = function.func if isinstance(function, functools.partial) else function.__func__
    called = getattr(function, "__call__", None)  # noqa: B004 - the method itself is asked about
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)


def _takes_second(function: Function) -> bool:
    """Whether it takes a second value. A default that means something (`name=name`, in a loop) is left to it."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some builtins have none
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) < 2:
        return any(p.kind is p.VAR_POSITIONAL for p in parameters)
    default = positional[1].default
    return default is None or default is inspect.Parameter.empty
