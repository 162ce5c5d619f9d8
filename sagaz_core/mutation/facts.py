"""What one run there and back shows of a saga: which keys and which places of the world each function has to do with.

Mutants are made of it, so that each has something to do wrong; and being constants, they keep nothing of a run, which
an explorer may fork at any step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

from sagaz_core.adapters.locate import adapter_for
from sagaz_core.errors import UsageError
from sagaz_core.faults.plan import NO_FAULTS, Fault, FaultPlan
from sagaz_core.model import END
from sagaz_core.mutation.places import Place, differences
from sagaz_core.mutation.wrap import Call, around_action, around_compensation, with_steps
from sagaz_core.prove.trial import Subject, run_trial
from sagaz_core.saga.base import Saga, describe
from sagaz_core.saga.context import SagaContext
from sagaz_core.state import SagaStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from sagaz_core.model import SagaModel
    from sagaz_core.prove.world import World
    from sagaz_core.saga.definition import Definition
    from sagaz_core.saga.step import Operation

SagaT = TypeVar("SagaT", bound=Saga[Any])
Values = Mapping[str, Any]


@dataclass
class Facts:
    """What was seen of the steps, by name: the context before and after each action, the keys that each compensation
    looked at, the places of the world that each function changed, with `True` for the compensation (all of them called
    at least once), and what the saga began with.
    """

    world: World | None = None
    began: Values = field(default_factory=dict)
    before: dict[str, Values] = field(default_factory=dict)
    after: dict[str, Values] = field(default_factory=dict)
    read: dict[str, dict[str, None]] = field(default_factory=dict)
    without_result: set[str] = field(default_factory=set)
    places: dict[tuple[str, bool], list[Place]] = field(default_factory=dict)

    def watching(self, definition: Definition) -> Definition:
        """Return the definition with every function watched."""
        changed = {}
        for name, step in definition.steps.items():
            forward = around_action(step, partial(self._forward, name))
            changed[name] = around_compensation(forward, partial(self._back, name))
        return with_steps(definition, changed)

    def _forward(self, step: str, operation: Operation, context: Any, result: Any) -> Generator[Call, Any, Any]:
        before = _data(context)
        value = yield from self._seen(step, False, Call(operation, context))
        if not self.after:
            self.began = before
        if step not in self.after:
            self.before[step] = before
            self.after[step] = {**_data(context), **(value if isinstance(value, Mapping) else {})}
            if value is None:
                self.without_result.add(step)
        return value

    def _back(self, step: str, operation: Operation, context: Any, result: Any) -> Generator[Call, Any, Any]:
        reads = self.read.setdefault(step, {})
        call = Call(operation, context, result)
        if not isinstance(context, SagaContext):
            reads.update(dict.fromkeys(_data(context)))
            return (yield from self._seen(step, True, call))
        kind = type(context)
        context.__class__ = _noting(kind)
        context.__dict__["reads"] = reads
        try:
            return (yield from self._seen(step, True, call))
        finally:
            del context.__dict__["reads"]
            context.__class__ = kind

    def _seen(self, step: str, undo: bool, call: Call) -> Generator[Call, Any, Any]:
        world = self.world
        before = world.save() if world is not None else {}
        self.places.setdefault((step, undo), [])
        value = yield call
        if world is not None and not self.places[step, undo]:
            self.places[step, undo] = differences(before, world.save(), world.append_only)
        return value


class _Noting(SagaContext):
    """Notes what is asked of a context."""

    reads: dict[str, None]

    def __getitem__(self, key: str) -> Any:
        self.reads[key] = None
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.reads[key] = None
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.reads[str(key)] = None
        return super().__contains__(key)

    def __iter__(self) -> Iterator[str]:
        self._note_all()
        return super().__iter__()

    def keys(self) -> Any:
        self._note_all()
        return super().keys()

    def values(self) -> Any:
        self._note_all()
        return super().values()

    def items(self) -> Any:
        self._note_all()
        return super().items()

    def _note_all(self) -> None:
        self.reads.update(dict.fromkeys(dict.keys(self)))


@cache
def _noting(kind: type[SagaContext]) -> type[_Noting]:
    """Return the class that a context of this one is made for a while; others may watch it too."""
    return _Noting if kind is SagaContext else type("_Noting", (_Noting, kind), {})


def _data(context: Any) -> dict[str, Any]:
    # Not what a subclass makes of it: to look at a context that someone watches must not be noticed.
    return dict(dict.items(context)) if isinstance(context, dict) else dict(vars(context))


def native(made: Any) -> Saga[Any]:
    """Return the saga of a class or instance of ours. Raises `UsageError` for one of another engine."""
    adapter = adapter_for(made)
    saga = adapter.create(made)
    if not isinstance(saga, Saga):
        raise UsageError(
            f"mutants are made of sagas of sagaz_core, and {type(saga).__name__} runs on the engine {adapter.name!r}"
        )
    return saga


async def survey(make: Callable[[], Any], context: Values, world: World | None) -> Facts:
    """Run the saga once to its end, and once there and back, and return what was seen. The world is put back.

    Raises `UsageError` when it does not complete without faults: then there is nothing to do wrong.
    """
    seen = world if world is not None and world.restorable else None
    facts = Facts(seen)
    saved = seen.save() if seen is not None else None

    def watched() -> Saga[Any]:
        return changed_by(native(make()), facts.watching)

    saga = native(make())
    model = await describe(saga)
    for plan in (NO_FAULTS, *_there_and_back(model)):
        outcome = await run_trial(Subject(watched, context, world=world, closely=False), plan)
        if seen is not None and saved is not None:
            seen.restore(saved)
        if not plan and outcome.status is not SagaStatus.COMPLETED:
            why = f": {outcome.evidence.state.error}" if outcome.evidence.state.error else ""
            raise UsageError(
                f"saga {model.name!r} ended {outcome.status.value} without any fault{why}: "
                f"give a context with which it completes"
            )
    return facts


def _there_and_back(model: SagaModel) -> list[FaultPlan]:
    """The plan that undoes all; with pivots, after which nothing is undone, those that do as much as can be."""
    pivots = [name for name in model.order if model.step(name).pivot]
    if not pivots:
        return [FaultPlan((Fault(END, "before"),))]
    return [FaultPlan((Fault(pivot, "after"),)) for pivot in pivots]


def changed_by(saga: SagaT, change: Callable[[Definition], Definition]) -> SagaT:
    """Return a copy of the saga whose definition is changed so; the saga and its class are left as they are."""
    made = object.__new__(type(saga))  # copy.copy() leaves a note of its own in the class
    made.__dict__.update(vars(saga), _added=dict(saga._added), _changes=(*saga._changes, _Once(change)))
    return made


class _Once:
    """A change that is made once for as long as it is of the same definition: a run asks several times."""

    def __init__(self, change: Callable[[Definition], Definition]) -> None:
        self._change = change
        self._known: tuple[Definition, Definition] | None = None

    def __call__(self, definition: Definition) -> Definition:
        if self._known is None or self._known[0] is not definition:
            self._known = definition, self._change(definition)
        return self._known[1]
