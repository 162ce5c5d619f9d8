"""The parts of a running sagaz: ours, and those that other distributions bring in the entry-point group `sagaz`."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

import pluggy

from sagaz_core import hookspecs
from sagaz_core.errors import UsageError
from sagaz_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sagaz_core.adapters.base import Adapter
    from sagaz_core.storage.base import SnapshotStorage

BUILT_IN = "built in"


class _BuiltIn:
    """Our own parts. Each is imported when it is asked for."""

    @hookimpl
    def sagaz_adapters(self) -> list[Adapter]:
        from sagaz_core.adapters.native import NativeAdapter
        from sagaz_core.adapters.sagaz import SagazAdapter

        return [NativeAdapter(), SagazAdapter()]

    @hookimpl
    def sagaz_storages(self) -> Mapping[str, Callable[[str], SnapshotStorage]]:
        from sagaz_core.storage.url import OPENERS

        return OPENERS


@cache
def plugin_manager() -> pluggy.PluginManager:
    """Return the process's plugin manager, made and filled by the first call.

    Raises `UsageError` that names the plugin when one cannot be loaded.
    """
    manager = pluggy.PluginManager("sagaz")
    manager.add_hookspecs(hookspecs)
    manager.register(_BuiltIn(), BUILT_IN)
    for entry_point in entry_points(group="sagaz"):
        _load(manager, entry_point)
    return manager


def _load(manager: pluggy.PluginManager, entry_point: EntryPoint) -> None:
    if manager.has_plugin(entry_point.name) or manager.is_blocked(entry_point.name):
        return
    try:
        manager.register(entry_point.load(), entry_point.name)
        manager.check_pending()
    except Exception as error:  # a plugin may raise anything
        source = f" of {entry_point.dist.name} {entry_point.dist.version}" if entry_point.dist else ""
        raise UsageError(
            f"the sagaz plugin {entry_point.name!r}{source} cannot be loaded "
            f"({type(error).__name__}: {' '.join(str(error).split())}): repair it, or uninstall it"
        ) from error


def results_by_plugin(hook: str) -> Iterator[tuple[str, Any]]:
    """Call the hook's implementations, ours first, and yield each one's plugin and result.

    Raises `UsageError` that names the plugin when one fails.
    """
    for implementation in getattr(plugin_manager().hook, hook).get_hookimpls():
        try:
            result = implementation.function()
        except Exception as error:  # a plugin may raise anything
            raise UsageError(
                f"{hook} of the sagaz plugin {implementation.plugin_name!r} failed "
                f"({type(error).__name__}: {' '.join(str(error).split())}): repair it, or uninstall it"
            ) from error
        yield implementation.plugin_name, result
