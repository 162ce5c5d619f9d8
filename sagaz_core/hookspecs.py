"""What plugins can bring. A plugin is named in its distribution's entry-point group `sagaz`, and marks with `hookimpl`.

pyproject.toml:

    [project.entry-points.sagaz]
    mystore = "mystore.plugin"

mystore/plugin.py:

    from sagaz_core.hookspecs import hookimpl

    @hookimpl
    def sagaz_storages():
        return {"mystore": open_mystore}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from sagaz_core.adapters.base import Adapter
    from sagaz_core.prove.evidence import Evidence
    from sagaz_core.prove.verdict import Finding
    from sagaz_core.storage.base import SnapshotStorage

hookspec = pluggy.HookspecMarker("sagaz")
hookimpl = pluggy.HookimplMarker("sagaz")


@hookspec
def sagaz_adapters() -> list[Adapter]:  # type: ignore[empty-body] # pluggy wants a function without one
    """Return adapters for saga engines, made anew. Those of plugins are asked before ours which sagas they take."""


@hookspec
def sagaz_storages() -> Mapping[str, Callable[[str], SnapshotStorage]]:  # type: ignore[empty-body] # see above
    """Return openers of stores by URL scheme, such as `{"mystore": open_mystore}`.

    An opener takes the whole URL and returns a store without touching it: what is wrong with the URL is a `UsageError`,
    what is wrong with the store is raised by its first use. Import drivers in the opener, and raise `MissingExtraError`
    when one is not installed. A plugin's scheme replaces ours of the same name.
    """


@hookspec
def sagaz_key_providers() -> Mapping[str, Callable[[str], Any]]:  # type: ignore[empty-body] # see above
    """Return makers of key providers by name, for contexts of which fields are encrypted.

    Nothing asks for them yet: give `ReplayConfig(encrypt_fields=...)` a `field_cipher`.
    """


@hookspec
def sagaz_monitors() -> list[Callable[[Evidence], Iterable[Finding]]]:  # type: ignore[empty-body] # see above
    """Return monitors: invariants of your own. Each is given the evidence of a run and yields what is wrong with it.

    Every run under a plan is judged by them too, unless its faults never happened.
    """
