"""Finding sagas: by `module:qualname`, by name in the modules of an application, and the adapter of each."""

from __future__ import annotations

import inspect
import logging
import os
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

from sagaz_core._importing import import_application
from sagaz_core.errors import DefinitionError, UnknownSagaClassError, UsageError, nearest, quoted
from sagaz_core.plugins import plugin_manager

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import ModuleType

    from sagaz_core.adapters.base import Adapter
    from sagaz_core.storage.base import SagaRecord


@cache
def adapters() -> tuple[Adapter, ...]:
    """Return every adapter, those of plugins included."""
    return tuple(adapter for group in plugin_manager().hook.sagaz_adapters() for adapter in group)


def adapter_for(target: object) -> Adapter:
    """Return the adapter that takes this saga or class, or raise `DefinitionError`."""
    for adapter in adapters():
        if adapter.accepts(target):
            return adapter
    name = getattr(target, "__qualname__", None) or repr(target)
    raise DefinitionError(
        f"{name:.80} is not a saga: give a Saga class or instance of sagaz_core, or of an engine with an adapter "
        f"(for the sagaz package: pip install 'pytest-sagaz[sagaz]')"
    )


def make_importable(folder: str | None = None) -> None:
    """Let modules of this folder (the current one) be imported, as `python -m` does."""
    path = folder or os.getcwd()
    if path not in sys.path and "" not in sys.path:
        sys.path.insert(0, path)


def import_module(name: str) -> ModuleType:
    """Import the module. Raises `UnknownSagaClassError` with one line, whatever its import raises.

    Root log handlers that the import sets up are taken away again: the process is ours, not the application's.
    """
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        return import_application(name)
    except ImportError as error:
        missing = getattr(error, "name", None)
        if missing and (name == missing or name.startswith(missing + ".")):
            what = "check the name, and the folder you are in"
            if missing == "sagaz":
                what = "for the sagaz package, pip install 'pytest-sagaz[sagaz]'"
            raise UnknownSagaClassError(f"there is no module {name!r}: {what}") from error
        raise UnknownSagaClassError(f"module {name!r} cannot be imported: {error}") from error
    except Exception as error:  # a module may raise anything
        raise UnknownSagaClassError(f"module {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        if root.handlers != handlers:
            root.handlers[:] = handlers
            root.setLevel(level)


def load_saga(spec: str) -> Any:
    """Return the class or instance that `module:qualname` names."""
    found = load_object(spec)
    adapter_for(found)
    return found


def load_made(spec: str) -> Any:
    """Return the class or instance that `module:qualname` names, or what the function makes that it names."""
    found = load_object(spec)
    is_function = callable(found) and not isinstance(found, type) and not any(one.accepts(found) for one in adapters())
    if is_function:
        try:
            inspect.signature(found).bind()
        except (TypeError, ValueError) as error:
            raise UsageError(f"{spec!r} cannot make a saga ({error}): let it need no arguments") from error
        found = found()
    adapter_for(found)
    return found


def load_object(spec: str) -> Any:
    """Return what `module:qualname` names: a saga, or a function that makes one."""
    module_name, colon, qualname = spec.partition(":")
    if not colon or not module_name or not qualname:
        raise UsageError(f"{spec!r} does not name a saga class: write MODULE:CLASS, such as shop.orders:OrderSaga")
    found: Any = import_module(module_name)
    for part in qualname.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            known = [name for name, _ in sagas_in(sys.modules[module_name])]
            hint = nearest(qualname, known) or (f"; its sagas: {quoted(known)}" if known else "")
            raise UnknownSagaClassError(f"module {module_name!r} has no {qualname!r}{hint}") from None
    return found


def find_saga(saga_name: str, modules: Iterable[str]) -> Any:
    """Return the saga class of this name in the modules, or raise `UnknownSagaClassError`.

    Two different classes of one name are a `DefinitionError` that says where both are.
    """
    found: dict[str, Any] = {}
    names: set[str] = set()
    for module in modules:
        for saga in [load_saga(module)] if ":" in module else [saga for _, saga in sagas_in(import_module(module))]:
            name = name_of(saga)
            names.add(name)
            if name == saga_name:
                kind = saga if isinstance(saga, type) else type(saga)
                # A class and an instance of it are one saga; an engine's own class has as many as there are instances.
                where = repr(saga) if _is_engine_base(kind) else f"{kind.__module__}:{kind.__qualname__}"
                if where not in found or saga is kind:
                    found[where] = saga
    if len(found) > 1:
        raise DefinitionError(f"two sagas are named {saga_name!r}, {' and '.join(sorted(found))}: rename one")
    if not found:
        raise UnknownSagaClassError(
            f"no saga named {saga_name!r} is known here{nearest(saga_name, names)}: "
            f"name its module with --app MODULE, or in pyproject.toml under [tool.sagaz] sagas = [...]"
        )
    return next(iter(found.values()))


def saga_of(record: SagaRecord, modules: Iterable[str] = ()) -> tuple[Any, str]:
    """Return the recorded saga's class and what a new record says of where it is (`""`: its adapter knows).

    It is looked for in the modules if there are any, else where the record says. Raises as `find_saga` and `load_saga`.
    """
    if modules:
        return find_saga(record.saga_name, modules), ""
    if record.source:
        return load_saga(record.source), record.source
    raise UnknownSagaClassError(
        f"saga {record.saga_id!r} does not say where its class {record.saga_name!r} is: "
        f"give a saga_factory, or name its module with --app"
    )


def sagas_in(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Iterate the saga classes and instances that the module's globals hold, in order."""
    for name, value in list(vars(module).items()):
        if name.startswith("_") or inspect.ismodule(value):
            continue
        is_class = isinstance(value, type)
        if is_class and _is_engine_base(value):
            continue
        if any(adapter.accepts(value) for adapter in adapters()):
            yield name, value


def _is_engine_base(kind: type) -> bool:
    return kind.__name__ == "Saga" and kind.__module__.partition(".")[0] in ("sagaz", "sagaz_core")


def name_of(saga: Any) -> str:
    """Return the name that the saga's recordings carry. A class that does not say it is asked through an instance."""
    name = getattr(saga, "saga_name", None)
    if isinstance(name, str) and name:
        return name
    if not isinstance(saga, type):
        return str(getattr(saga, "name", None) or type(saga).__name__)
    try:
        made = saga()
    except Exception:  # a class that needs arguments, or whose code fails: its own name must do
        return saga.__name__
    return saga.__name__ if isinstance(made, type) else name_of(made)
