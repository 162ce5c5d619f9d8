"""A saga ready to run: its description, and its functions by step."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

from sagaz_core.errors import DefinitionError, NoStepsError
from sagaz_core.model import SagaModel

if TYPE_CHECKING:
    from sagaz_core.saga.context import TypedContext
    from sagaz_core.saga.step import Step


class Recovery(Enum):
    """What a forward recovery decides: try the step again, go on without it, or give up."""

    RETRY = "retry"
    SKIP = "skip"
    GIVE_UP = "give_up"


class Definition:
    """What the engine runs. It holds nothing of a run, so that any number of runs can share it."""

    __slots__ = ("forward_retries", "model", "on_sibling_failure", "pivots", "steps", "typed")

    def __init__(
        self,
        name: str,
        steps: Mapping[str, Step],
        *,
        version: str = "1.0",
        typed: TypedContext | None = None,
        on_compensation_failure: str = "continue_on_error",
        on_sibling_failure: str = "wait",
        forward_retries: int = 5,
        model: SagaModel | None = None,
    ) -> None:
        self.model = model or _model(name, steps, version, on_compensation_failure)
        self.steps = dict(steps)
        self.typed = typed
        self.on_sibling_failure = on_sibling_failure
        self.forward_retries = forward_retries
        self.pivots = tuple(step.name for step in steps.values() if step.pivot)


def _model(name: str, steps: Mapping[str, Step], version: str, on_compensation_failure: str) -> SagaModel:
    previous: str | None = None
    described = []
    for step in steps.values():
        described.append(step.described(previous))
        previous = step.name
    if not described:
        raise NoStepsError(f"saga {name!r} has no steps: add @action methods, or call add_step()")
    return SagaModel(name, tuple(described), version, on_compensation_failure)


def is_rejection(step: Step, error: BaseException, rejected: type[BaseException]) -> bool:
    """Whether the error says that the action refused, and so had no effect."""
    return isinstance(error, (rejected, *step.rejects))


def mapping_or_empty(context: Any) -> dict[str, Any]:
    """Return a run's initial context as a dict: `None` is empty, a pydantic model gives its fields."""
    if context is None:
        return {}
    if type(context) is dict or isinstance(context, Mapping):
        if not set(map(type, context)) <= {str}:
            for key in context:
                if not isinstance(key, str):
                    raise DefinitionError(
                        f"the context key {key!r} is not a string: name the top-level keys with strings"
                    )
        return dict(context)
    if getattr(type(context), "model_fields", None) is None:
        raise DefinitionError(f"a context of type {type(context).__name__!r}: give a mapping or a pydantic model")
    return {**context.__dict__, **(getattr(context, "__pydantic_extra__", None) or {})}
