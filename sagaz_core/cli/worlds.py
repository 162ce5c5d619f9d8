"""`--world`: the world that a saga acts on, made by a function of the user's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import click

from sagaz_core.adapters.locate import import_module
from sagaz_core.cli.failure import message_of
from sagaz_core.errors import UnknownSagaClassError, UsageError, nearest
from sagaz_core.prove.world import World

F = TypeVar("F", bound=Callable[..., Any])


def world_option(function: F) -> F:
    """Add --world."""
    return click.option(
        "--world",
        "world_spec",
        metavar="MODULE:FUNCTION",
        help="A function that returns the World that the saga acts on; it may take the saga.",
    )(function)


def world_of(spec: str, saga: Any) -> World:
    """Return the world that the function makes for the saga. Raises `UsageError` and `UnknownSagaClassError`."""
    module_name, colon, qualname = spec.partition(":")
    if not colon or not module_name or not qualname:
        raise UsageError(f"--world {spec!r} does not name a function: write MODULE:FUNCTION, such as shop.fakes:world")
    module = import_module(module_name)
    make: Callable[..., Any] | None = getattr(module, qualname, None)
    if make is None:
        raise UnknownSagaClassError(f"module {module_name!r} has no {qualname!r}{nearest(qualname, vars(module))}")
    try:
        world = make(saga) if inspect.signature(make).parameters else make()
    except Exception as error:  # the user's code
        raise UsageError(f"--world {spec!r} made no world: {message_of(error)}") from error
    if inspect.iscoroutine(world):
        world.close()
        raise UsageError(f"--world {spec!r} is an async function: let it return the World at once")
    if not isinstance(world, World):
        raise UsageError(f"--world {spec!r} gives {type(world).__name__}, not a World: return sagaz_core.World()")
    return world
