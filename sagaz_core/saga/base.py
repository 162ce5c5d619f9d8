"""`Saga`: what users subclass, or build step by step."""

from __future__ import annotations

from functools import cache, cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar, get_args

from sagaz_core.errors import DefinitionError
from sagaz_core.saga.context import TypedContext
from sagaz_core.saga.declare import (
    DEFAULT_BACKOFF,
    DEFAULT_UNDO_RETRIES,
    Declarations,
    declarations_of,
    dependency_names,
)
from sagaz_core.saga.definition import Definition
from sagaz_core.saga.step import Backoff, Function, InDoubt, Operation, Step, rejections

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
    from uuid import UUID

    from typing_extensions import TypeVar as DefaultTypeVar

    from sagaz_core.engine.result import SagaResult
    from sagaz_core.interceptor import Interceptor
    from sagaz_core.model import SagaModel
    from sagaz_core.saga.config import ReplayConfig, SagaConfig
    from sagaz_core.storage.base import SnapshotStorage

    ContextT = DefaultTypeVar("ContextT", default=Any)
else:
    ContextT = TypeVar("ContextT")  # the default, which only type checkers need, came with Python 3.13


_INITIALISED = frozenset(
    (
        *("name", "config", "replay_config", "snapshot_storage", "interceptors"),
        *("_added", "_built", "_has_run", "_kept"),
    )
)


class Saga(Generic[ContextT]):
    """A chain or DAG of steps, each undone by its compensation when a later one fails.

    Subclass it and mark methods with `@action` and `@compensate`, or make one with a name and call `add_step`. An
    instance holds no state of a run: any number of runs may be under way at once.

    `migrations` maps a recorded version to a function that makes its initial context fit this definition; without one,
    what was recorded on another definition is not replayed. `replay_config` and
    `snapshot_storage` turn capturing on; `interceptors` wrap every call. These and `config` may also stand in the class
    body, for all sagas of the class that are made without them.
    """

    saga_name: ClassVar[str] = ""
    version: ClassVar[str] = "1.0"
    migrations: ClassVar[Mapping[str, Callable[[dict[str, Any]], Mapping[str, Any]]]] = MappingProxyType({})
    _declared: ClassVar[Declarations] = Declarations()
    _context_model: ClassVar[TypedContext | None] = None
    # What mutants do to the definition: on an instance to that saga's, on a class to those of all its sagas.
    _changes: tuple[Callable[[Definition], Definition], ...] = ()

    def __init__(
        self,
        name: str | None = None,
        *,
        config: SagaConfig | None = None,
        replay_config: ReplayConfig | None = None,
        snapshot_storage: SnapshotStorage | None = None,
        interceptors: Sequence[Interceptor] = (),
    ) -> None:
        if name is not None and not isinstance(name, str):
            raise DefinitionError(
                f"{type(self).__name__}({name!r:.60}): a saga's name is text "
                f"(the marker saga_matrix takes a context too: saga_matrix({type(self).__name__}, {{}}))"
            )
        self.name = name or type(self).saga_name or type(self).__name__
        own = type(self)
        self.config: SagaConfig | None = config or getattr(own, "config", None)
        self._check("config", self.config, "replay_config", "a SagaConfig")
        self.replay_config: ReplayConfig | None = (
            replay_config
            or (config.replay_config if config else None)
            or getattr(own, "replay_config", None)
            or (self.config.replay_config if self.config else None)
        )
        self._check("replay_config", self.replay_config, "enable_snapshots", "a ReplayConfig")
        self.snapshot_storage: SnapshotStorage | None = (
            getattr(own, "snapshot_storage", None) if snapshot_storage is None else snapshot_storage
        )
        self._check("snapshot_storage", self.snapshot_storage, "write", "a store, such as open_storage(URL) returns")
        given = interceptors or getattr(own, "interceptors", ())
        self._check("interceptors", given, "__iter__", "a sequence of interceptors")
        self.interceptors: tuple[Interceptor, ...] = tuple(given)
        for interceptor in self.interceptors:
            self._check("an interceptor", interceptor, "intercept", "an object with a method intercept(call, proceed)")
        self._added: dict[str, Step] = {}
        self._kept: tuple[list[Function], Definition] | None = None
        self._has_run = False
        self._built = type(self).build is Saga.build

    def _check(self, what: str, given: object, attribute: str, wanted: str) -> None:
        """Raise `DefinitionError` for what does not have the attribute. The classes are not imported for this.

        The value is not shown: a URL has a password.
        """
        if given is not None and (isinstance(given, type) or not hasattr(given, attribute)):
            is_now = f"the class {given.__name__}" if isinstance(given, type) else f"a {type(given).__name__}"
            raise DefinitionError(f"{type(self).__name__}: {what} is {is_now}, and must be {wanted}")

    if not TYPE_CHECKING:  # to a type checker an attribute that is not there is an error

        def __getattr__(self, name: str) -> Any:
            """Say what is wrong with a saga that was not initialised."""
            if name in _INITIALISED and "_built" not in vars(self):
                raise DefinitionError(
                    f"{type(self).__name__}.__init__ must call super().__init__() before it uses the saga"
                )
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

    @cached_property
    def _building(self) -> asyncio.Lock:
        import asyncio  # declaring must not load it

        return asyncio.Lock()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._declared = declarations_of(cls)
        model = _context_model(cls)
        if model is not None:
            cls._context_model = TypedContext(model)

    async def build(self) -> None:
        """Override it to add steps with `add_step`; it is awaited once, before the first run."""

    def add_step(
        self,
        name: str,
        action: Callable[..., Any],
        compensation: Callable[..., Any] | None = None,
        *,
        depends_on: Iterable[str] | None = None,
        timeout: float | None = None,
        retries: int = 0,
        backoff: Backoff = DEFAULT_BACKOFF,
        compensation_timeout: float | None = None,
        compensation_retries: int = DEFAULT_UNDO_RETRIES,
        pivot: bool = False,
        in_doubt: InDoubt = "ignore",
        rejects: Iterable[type[BaseException]] = (),
        recovery: Callable[..., Any] | None = None,
    ) -> Self:
        """Add a step; the parameters are those of `@action` and `@compensate`. Returns the saga."""
        if name in self._added or name in self._declared.steps:
            raise DefinitionError(f"saga {self.name!r} has a step {name!r} already: rename one")
        undo = None
        if compensation is not None:
            undo = Operation(compensation, compensation_timeout, compensation_retries, backoff)
        self._added[name] = Step(
            name,
            Operation(action, timeout, retries, backoff),
            undo,
            Operation(recovery) if recovery is not None else None,
            None if depends_on is None else dependency_names(depends_on, name),
            pivot,
            in_doubt,
            rejections(rejects, name),
        )
        self._kept = None
        return self

    def definition(self) -> Definition:
        """Return what the engine runs. Raises `DefinitionError` when the steps do not fit together.

        Steps that `build` adds are in it only after `build` ran (see `prepare`).
        """
        methods = self._declared.methods_of(self)
        # A test may have put another function in the place of a method, or have taken it away again.
        if self._kept is not None and self._kept[0] == methods:
            definition = self._kept[1]
        else:
            definition = self._defined()
            self._kept = methods, definition
        for change in self._changes:
            definition = change(definition)
        return definition

    def _defined(self) -> Definition:
        steps = {**self._declared.bound_to(self), **self._added}
        config = self.config
        made = Definition(
            self.name,
            steps,
            version=self.version,
            typed=self._typed(),
            on_compensation_failure=self._policy(),
            model=self._known_model(),
        )
        if config is not None:
            made.on_sibling_failure = config.on_sibling_failure
            made.forward_retries = config.forward_retries
        if not self._added:
            self._declared.models[self.name, self.version, self._policy()] = made.model
        return made

    def _policy(self) -> str:
        return "continue_on_error" if self.config is None else self.config.on_compensation_failure

    def _known_model(self) -> SagaModel | None:
        """Return the description of its class if it was made already: it is the same for all instances."""
        return None if self._added else self._declared.models.get((self.name, self.version, self._policy()))

    def _typed(self) -> TypedContext | None:
        if self._context_model is None:  # Saga[Model]("name") is no class of its own: it notes what it was made of
            made_of = getattr(self, "__orig_class__", None)
            model = None if made_of is None else _context_model(made_of)
            return None if model is None else TypedContext(model)
        return self._context_model

    async def prepare(self, *, to_run: bool = False) -> Definition:
        """Let `build` add its steps if it has not yet, and return the definition.

        It is kept until the first run takes it, and again from the second one on. A definition holds the saga, so that
        one that held its own would not go when it is let go of, but at some later time with much else: and one that is
        made for a run is made by the thousand.
        """
        if not self._built:
            await self._build_once()
        definition = self.definition()
        if to_run and not self._has_run:
            self._has_run = True
            if not self._changes:
                self._kept = None
        return definition

    async def _build_once(self) -> None:
        async with self._building:  # of runs that begin together, one builds and the others wait for it
            if not self._built:
                added = self._added.copy()
                try:
                    await self.build()
                except BaseException:
                    self._added, self._kept = added, None
                    raise
                self._built = True

    async def run(self, context: Any = None, *, saga_id: str | UUID | None = None) -> SagaResult:
        """Run it once and return how it ended; a failure of a step is in the result, not raised.

        `context` is a mapping, or a model for a typed saga. Raises `DefinitionError` when the saga cannot run,
        `CancelledError` when its task was cancelled (after compensating), and what capture raised: after compensating
        too, but where the store cannot be told of that. Then it stays as it is, and `resume` goes on with it.
        """
        return await _runner()(self, context, saga_id=saga_id)

    async def execute(self, context: Any = None, *, saga_id: str | UUID | None = None) -> SagaResult:
        """Do what `run` does."""
        return await self.run(context, saga_id=saga_id)

    async def resume(self, saga_id: str | UUID, *, allow_drift: bool = False) -> SagaResult:
        """Run a captured saga on whose process died, whose store went away, or that was cancelled past its pivot.

        Returns how it ended. What had ended before is only told. Steps that were running are run again. Make sure that
        no other process runs it still: of two, the one whose write comes second stops where it is, undoes nothing and
        raises `DuplicateSagaError`. Raises `UnknownSagaError`, `DriftError` when the definition is not the recorded
        one, and `UsageError` without a `snapshot_storage`; else as `run`.
        """
        from sagaz_core.engine.run import resume_stored  # as in _runner()

        return await resume_stored(self, saga_id, allow_drift=allow_drift)

    @staticmethod
    def take_snapshot(label: str) -> Awaitable[None]:
        """Capture the state now, from inside an action or compensation, under any strategy.

        `await` it to have it stored at once; without (in a sync step) it is stored with the next events. In a thread it
        is stored when the call returns. Raises `UsageError` outside of a captured run.
        """
        from sagaz_core.engine.capture import take_snapshot  # as in _runner()

        return take_snapshot(label)


async def describe(saga: Saga[Any]) -> SagaModel:
    """Let `build` add its steps if it has not yet, and return the saga's description. Raises `DefinitionError`."""
    if not saga._built:
        await saga._build_once()
    known = None if saga._changes else saga._known_model()
    return known or saga.definition().model


@cache
def _runner() -> Callable[..., Awaitable[SagaResult]]:
    from sagaz_core.engine.run import run_saga  # the engine is above this layer; declaring must not load it

    return run_saga


def _context_model(cls: Any) -> type[Any] | None:
    bases = vars(cls).get("__orig_bases__", ()) if isinstance(cls, type) else (cls,)
    for base in bases:
        for argument in get_args(base):
            if isinstance(argument, type) and hasattr(argument, "model_fields"):
                return argument
    return None
