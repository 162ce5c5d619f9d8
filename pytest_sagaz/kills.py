"""The items of `--sagaz-kill`: each kills a process that runs the recorded saga, and has another one take it up."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sagaz.cases import check_drift, readable
from pytest_sagaz.outside import note_left
from pytest_sagaz.replays import Target, reproduce_kill
from pytest_sagaz.sagas import takes_a_parameter
from pytest_sagaz.settings import settings_of
from sagaz_core.errors import UsageError, quoted
from sagaz_core.prove.trial import NotRunnableError
from sagaz_core.prove.world import as_world

if TYPE_CHECKING:
    from pytest_sagaz.collection import KillItem
    from sagaz_core.prove.kill import Killer
    from sagaz_core.prove.world import World

_KILLER = pytest.StashKey["Killer"]()


def kill(request: pytest.FixtureRequest, saga_factory: Any, saga_world: World) -> None:
    """The test function of every such item."""
    __tracebackhide__ = True
    item: KillItem = request.node
    from sagaz_core.prove.kill import Mortal, model_of, saga_of

    target, settings = item.target, settings_of(item.config)
    recording = target.found.recording
    try:
        spec = _spec_for_another_process(target, saga_factory)
        model = model_of(spec)
    except NotRunnableError as error:
        pytest.skip(f"not run: {error}")
    check_drift(model, recording.model, allowed=settings.allow_drift)
    recording = readable(recording, partial(saga_of, spec), settings.override)
    mortal = Mortal(
        spec,
        model,
        {**recording.context, **settings.override},
        live=settings.live,
        start=None if settings.live else recording.record.started_at,
    )
    world = as_world(saga_world)
    outcome = _killer(item.config).kill(
        mortal,
        item.boundary,
        world=world,
        reproduce=reproduce_kill(target, item.boundary, settings),
    )
    item.user_properties.append(("sagaz_verdict", outcome.verdict.value))
    note_left(item, outcome, world)
    outcome.assert_sound()


def _killer(config: pytest.Config) -> Killer:
    """Return the run's own server of processes to be killed."""
    if _KILLER not in config.stash:
        from sagaz_core.prove.kill import Killer

        config.stash[_KILLER] = Killer()
        config.add_cleanup(config.stash[_KILLER].close)
    return config.stash[_KILLER]


def _spec_for_another_process(target: Target, factory: Any) -> str:
    """Return where another process finds the saga, or what makes it. Raises `NotRunnableError` when it cannot.

    What `saga_factory` gives stands above the recorded class, as in any replay: it may be there to keep the saga from
    the real services, so it is never passed over.
    """
    from sagaz_core.prove.kill import spec_of

    recording = target.found.recording
    if isinstance(factory, Mapping):
        if recording.saga_name not in factory:
            raise UsageError(
                f"saga_factory has no entry for saga {recording.saga_name!r}; it has {quoted(map(str, factory))}"
            )
        factory = factory[recording.saga_name]
    if factory is None and not isinstance(target.saga, type) and target.found.trusted and recording.record.source:
        return recording.record.source
    source, what = (target.saga, "its class") if factory is None else (factory, "what saga_factory gives")
    try:
        spec = spec_of(source)
    except UsageError as error:
        raise NotRunnableError(f"{what}, {error}") from error
    if not isinstance(source, type) and takes_a_parameter(source):
        raise NotRunnableError(f"{what}, {spec}, takes a parameter, which another process does not have")
    return spec
