"""Sagas of the package `sagaz` from PyPI, run by its own engine: what is tested is what runs in production."""

from __future__ import annotations

import asyncio
import sys
from contextlib import nullcontext
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sagaz_core.engine.result import SagaResult, result_of
from sagaz_core.engine.run import RunOptions, Served, open_journal
from sagaz_core.errors import DefinitionError, UsageError
from sagaz_core.events import SagaStarted, StepSucceeded
from sagaz_core.saga.definition import mapping_or_empty
from sagaz_core.state import SagaState
from sagaz_core.storage.base import checked_id

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sagaz_core.adapters._sagaz_watch import Prepared
    from sagaz_core.model import SagaModel

_DEFAULT = RunOptions()
_MODULES = ("sagaz.core.decorators", "sagaz.core.saga")
_CANNOT_RESUME = "the engine of the sagaz package cannot take up a run that another process left"


class SagazAdapter:
    """Runs the sagas of the `sagaz` package, declarative and imperative ones.

    Each run works on a copy of the saga: nothing is left in the class or the instance, and what a step sets on `self`
    stays with its run. The copy of a run that is watched has one more step behind the last one, which the saga's
    listeners are not told of.
    """

    name = "sagaz"
    cannot: Mapping[str, str] = MappingProxyType(
        dict.fromkeys(("crash", "crash-recorded", "undo-crash", "undo-crash-recorded"), _CANNOT_RESUME)
    )
    one_order = "the engine of the sagaz package chooses in which order it undoes steps that nothing orders"

    def accepts(self, target: object) -> bool:
        """Whether it is a saga of the package, or a class of them. Does not import the package."""
        return _kind_of(target) is not None

    def create(self, target: Any) -> Any:
        """Make a saga of a class that needs no arguments, or copy an instance to what it was before any run."""
        if not isinstance(target, type):
            return _fresh(target)
        try:
            return target()
        except TypeError as error:
            if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
                raise  # from inside: it was made as it wants to be
            raise DefinitionError(
                f"{target.__name__} cannot be made without arguments ({error}): "
                f"give an instance or a function that makes one, in tests by the saga_factory fixture"
            ) from error

    async def describe(self, saga: Any) -> SagaModel:
        """Return the saga's model: what its engine does, not what the saga asks for and that engine does not do."""
        return (await _prepared(saga)).model

    async def run(
        self,
        saga: Any,
        context: Mapping[str, Any] | None,
        *,
        saga_id: str | None = None,
        served: Sequence[Served] = (),
        options: RunOptions = _DEFAULT,
    ) -> SagaResult:
        """Run it by its engine. The result's `status` is what that engine claims.

        Everything else in the result, and the journal's state, is what happened: a saga that the engine says is rolled
        back although a compensation failed has the status `rolled_back`, a step that is `stuck`, and a `failed` state.
        Raises `CancelledError` when its task was cancelled, the saga then being left as it is, and what capture raised.
        """
        from sagaz_core.adapters._sagaz_watch import Watch

        prepared = await _prepared(saga)
        initial = prepared.initial(mapping_or_empty(context))
        identity = _identity(saga_id, initial, options)
        model, state = prepared.model, SagaState()
        journal = open_journal(model, state, identity, options, source=prepared.source, adapter=self.name)
        watch = Watch(prepared, journal, options.interceptors, served)
        journal.emit(SagaStarted, identity, model.name, model.version, model.fingerprint, initial, journal.run_id)
        for step in served:
            journal.emit(StepSucceeded, step.step, 0, step.result, step.delta, "served")
        prepared.wrap(watch)
        with journal.capture or nullcontext():
            # In a task of its own, so that cancelling the saga can be told from an engine's own timeouts.
            work = asyncio.create_task(prepared.run(dict(initial), identity), name=f"{model.name}:sagaz")
            try:
                claimed, error = await work
            except asyncio.CancelledError:
                await watch.close()
                raise
            await watch.finish(claimed, error)
        if watch.abort is not None:
            raise watch.abort
        return replace(result_of(journal, watch.exception), status=claimed)

    async def resume(self, saga: Any, state: SagaState, *, options: RunOptions = _DEFAULT) -> SagaResult:
        """Raise `UsageError`: that engine cannot."""
        raise UsageError(
            f"saga {state.saga_id} cannot be resumed: {_CANNOT_RESUME}; replay it from a checkpoint instead"
        )


def _kind_of(target: object) -> str | None:
    """Return the module whose sagas the target is one of. A module that was never imported has none."""
    kind = target if isinstance(target, type) else type(target)
    for module in _MODULES:
        base = getattr(sys.modules.get(module), "Saga", None)
        if isinstance(base, type) and issubclass(kind, base):
            return module
    return None


def _fresh(saga: Any) -> Any:
    if _kind_of(saga) == _MODULES[0]:
        from sagaz_core.adapters import _sagaz_declarative

        return _sagaz_declarative.fresh(saga)
    from sagaz_core.adapters import _sagaz_imperative

    return _sagaz_imperative.fresh(saga)


async def _prepared(saga: Any) -> Prepared:
    if _kind_of(saga) == _MODULES[0]:
        from sagaz_core.adapters._sagaz_declarative import Declarative

        return Declarative(saga)
    from sagaz_core.adapters._sagaz_imperative import Imperative, built

    return Imperative(await built(saga))


def _identity(saga_id: str | None, initial: Mapping[str, Any], options: RunOptions) -> str:
    given: Any = saga_id
    if given is None:
        given = initial.get("saga_id")  # where that engine looks for it too
        if not isinstance(given, str | UUID) or not given:
            return options.new_id()
    return checked_id(given)
