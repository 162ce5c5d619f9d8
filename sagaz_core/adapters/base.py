"""The protocol that makes a saga engine testable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sagaz_core.engine.result import SagaResult
    from sagaz_core.engine.run import RunOptions, Served
    from sagaz_core.model import SagaModel
    from sagaz_core.state import SagaState


class Adapter(Protocol):
    """Describes and runs the sagas of one engine.

    `cannot` names the kinds of faults that the engine cannot have, each with the reason; plans that need one are
    reported as not run. An engine that cannot resume has `crash` and its like there. `one_order` says why the engine
    cannot be told to undo the oldest step first (`RunOptions.oldest_first`), nor in what order to do them (`in_order`),
    or is empty for one that can.
    """

    name: str
    cannot: Mapping[str, str]
    one_order: str

    def accepts(self, target: object) -> bool:
        """Whether the target is a saga of this engine, or a class of them. It must not import the engine to know."""

    def create(self, target: Any) -> Any:
        """Return a saga that can be run: a class is called, an instance is given back or copied.

        Called for each run, so that what an engine leaves in an instance never reaches the next run.
        """

    async def describe(self, saga: Any) -> SagaModel:
        """Return the saga's description. Raises `DefinitionError` when its steps do not fit together."""

    async def run(
        self,
        saga: Any,
        context: Mapping[str, Any] | None,
        *,
        saga_id: str | None = None,
        served: Sequence[Served] = (),
        options: RunOptions = ...,
    ) -> SagaResult:
        """Run the saga once, from behind the steps that are served. See `Saga.run` for what is returned and raised."""

    async def resume(self, saga: Any, state: SagaState, *, options: RunOptions = ...) -> SagaResult:
        """Run the saga on from a state that another process left."""
