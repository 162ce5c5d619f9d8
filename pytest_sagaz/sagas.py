"""Which saga a recording or a marker means, what it is made of, and how one is made for a run."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from sagaz_core.adapters.locate import adapter_for, find_saga, import_module, load_saga
from sagaz_core.errors import DefinitionError, SagazError, UnknownSagaClassError, UnknownSagaError, UsageError, quoted
from sagaz_core.network import no_network
from sagaz_core.saga.base import Saga
from sagaz_core.virtual_time import run

if TYPE_CHECKING:
    import pytest

    from pytest_sagaz.recordings import Found
    from pytest_sagaz.settings import Settings
    from sagaz_core.model import SagaModel

Make = Callable[[], Any]


def class_of(found: Found, settings: Settings) -> Any:
    """Return the class (or instance) of a recorded saga. Raises `UnknownSagaClassError`.

    What the project names counts first; else a store says where the class was, and a file's word for it is not taken.
    """
    check_named(settings)
    name = found.recording.saga_name
    missing: UnknownSagaError | None = None
    for group in settings.apps:
        try:
            return find_saga(name, group.value)
        except UnknownSagaClassError as error:
            missing = error
    source = found.recording.record.source
    if source and found.trusted:
        return load_saga(source)
    if missing is not None:
        raise missing
    if not found.trusted:
        says = f" (it says {source}, which is not taken from a file)" if source else ""
        where = found.path.name if found.path else repr(found.saga_id)
        raise UnknownSagaClassError(
            f"the recording {where} is of saga {name!r}, and no module is named that has it{says}: "
            f"give --app MODULE, or write the ini sagaz_sagas = MODULE, or override the fixture saga_factory"
        )
    raise UnknownSagaClassError(
        f"saga {found.saga_id!r} does not say where its class {name!r} is: "
        f"give --app MODULE, or write the ini sagaz_sagas = MODULE, or override the fixture saga_factory"
    )


def check_named(settings: Settings) -> None:
    """Raise `UnknownSagaClassError` for a module or class that is named and not there, whether or not it is needed."""
    for group in settings.apps:
        for module in group.value:
            load_saga(module) if ":" in module else import_module(module)


def has_own_factory(config: pytest.Config) -> bool:
    """Whether a conftest or a plugin overrides the fixture `saga_factory`."""
    for plugin in config.pluginmanager.get_plugins():
        if (
            "saga_factory" in getattr(plugin, "__dict__", ())
            and getattr(plugin, "__name__", "") != "pytest_sagaz.plugin"
        ):
            return True
    return False


def model_of(saga: Any) -> SagaModel:
    """Return what the saga is made of. Raises `DefinitionError`, or what the user's code raises."""
    with no_network():
        return run(_described(saga))


async def _described(saga: Any) -> SagaModel:
    target = saga if _is_saga(saga) else maker(None, "", saga)()
    adapter = adapter_for(target)
    try:
        made = adapter.create(target)
    except DefinitionError:
        if not (isinstance(target, type) and issubclass(target, Saga)):
            raise
        # It wants its services, which it does not need for saying what its steps are.
        made = target.__new__(target)
        Saga.__init__(made)
    return await adapter.describe(made)


def model_or_none(saga: Any, *, has_factory: bool) -> SagaModel | None:
    """Return the model if it can be had without a test's fixtures.

    A wrong definition is raised, unless the saga is made by a factory, which only tests have.
    """
    try:
        return None if saga is None else model_of(saga)
    except SagazError:
        if has_factory:
            return None
        raise
    except Exception:  # the user's code, here without what the tests give it
        return None


def _is_saga(target: object) -> bool:
    try:
        adapter_for(target)
    except DefinitionError:
        return False
    return True


def maker(factory: Any, name: str, default: Any) -> Make:
    """Return what makes the saga of a run.

    `factory` is what the fixture `saga_factory` gives: None (then `default` is taken alike), a saga class or instance,
    a function (without parameters, or with the saga's name), or a mapping from names to any of these.
    """
    if isinstance(factory, Mapping):
        if name not in factory:
            raise UsageError(f"saga_factory has no entry for saga {name!r}; it has {quoted(map(str, factory))}")
        factory = factory[name]
    source = default if factory is None else factory
    if source is None:
        raise UnknownSagaClassError(f"the class of saga {name!r} is not known: override the fixture saga_factory")
    if _is_saga(source):
        return lambda: source
    if not callable(source):
        adapter_for(source)  # says what it should be
    takes_name = takes_a_parameter(source)

    def make() -> Any:
        made = source(name) if takes_name else source()
        if isinstance(made, Awaitable):
            close = getattr(made, "close", None)
            if close is not None:
                close()
            raise UsageError("saga_factory gives a coroutine: make the saga in a function that is not async")
        adapter_for(made)
        return made

    return make


def takes_a_parameter(function: Callable[..., Any]) -> bool:
    """Whether it has to be given something."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
