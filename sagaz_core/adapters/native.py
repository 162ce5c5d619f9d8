"""Our own sagas."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sagaz_core.engine.run import RunOptions, Served, resume_saga, run_saga
from sagaz_core.errors import DefinitionError
from sagaz_core.saga.base import Saga, describe

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping, Sequence

    from sagaz_core.engine.result import SagaResult
    from sagaz_core.model import SagaModel
    from sagaz_core.state import SagaState

_DEFAULT = RunOptions()


class NativeAdapter:
    """Runs `sagaz_core.Saga`. It can have every kind of fault."""

    name = "native"
    cannot: Mapping[str, str] = MappingProxyType({})
    one_order = ""

    def accepts(self, target: object) -> bool:
        """Whether it is a `Saga` or a subclass."""
        return isinstance(target, Saga) or (isinstance(target, type) and issubclass(target, Saga))

    def create(self, target: Any) -> Saga[Any]:
        """Return the instance (it holds no state of a run), or make one of a class that needs no arguments."""
        if isinstance(target, Saga):
            return target
        try:
            made: Saga[Any] = target()
        except TypeError as error:
            if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
                raise  # from inside: it was made as it wants to be
            raise DefinitionError(
                f"{target.__name__} cannot be made without arguments ({error}): "
                f"give an instance or a function that makes one, in tests by the saga_factory fixture"
            ) from error
        return made

    async def describe(self, saga: Saga[Any]) -> SagaModel:
        """Return the saga's model."""
        return await describe(saga)

    def run(
        self,
        saga: Saga[Any],
        context: Mapping[str, Any] | None,
        *,
        saga_id: str | None = None,
        served: Sequence[Served] = (),
        options: RunOptions = _DEFAULT,
    ) -> Coroutine[Any, Any, SagaResult]:
        """Run it by our engine."""
        return run_saga(saga, context, saga_id=saga_id, served=served, options=options)

    async def resume(self, saga: Saga[Any], state: SagaState, *, options: RunOptions = _DEFAULT) -> SagaResult:
        """Run it on by our engine."""
        return await resume_saga(saga, state, options=options)
