"""Frozen clocks (freezegun's, time-machine's) that move with virtual time."""

from __future__ import annotations

import contextlib
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

from sagaz_core.clock import monotonic, plain
from sagaz_core.errors import NaiveTimeError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from freezegun.api import FrozenDateTimeFactory

# Packages that wait with time limits, or time the tests: their modules keep the real clocks that they hold.
_UNTOUCHED = frozenset(
    (
        "_pytest", "asyncio", "concurrent", "coverage", "execnet", "gi", "hypothesis", "multiprocessing", "pluggy",
        "prompt_toolkit", "pytest", "queue", "sagaz_core", "selenium", "socket", "subprocess", "syrupy", "threading",
        "xdist",
    )
)  # fmt: skip
# freezegun gives the real time, too, to whatever such a module calls, at up to five removes. That would hold for an
# action in a thread (called by threading), so the list for that is short: what reads `time.monotonic` as an attribute.
_REAL_FOR_CALLEES = ("concurrent.futures._base", "multiprocessing.")


def clock_is_frozen() -> bool:
    """Say whether freezegun or time-machine is active, importing neither."""
    modules = sys.modules
    return bool(
        ((api := modules.get("freezegun.api")) is not None and api.freeze_factories)
        or ((travel := modules.get("time_machine")) is not None and _travellers(travel))
    )


def move_frozen_clocks(delta_seconds: float) -> None:
    """Move every clock that freezegun or time-machine holds by so much, to the microsecond; never past year 9999.

    All nested freezes are moved: time passes for the outer ones, too.
    """
    modules = sys.modules
    if (api := modules.get("freezegun.api")) is not None and api.freeze_factories:
        for factory in api.freeze_factories:
            # Not factory.tick(): that of a ticking clock forgets the real time gone by since it was started.
            try:
                factory.time_to_freeze += timedelta(seconds=delta_seconds)
            except OverflowError:
                factory.time_to_freeze = api.real_datetime.max
    if (travel := modules.get("time_machine")) is not None:
        for traveller in _travellers(travel):
            with contextlib.suppress(OverflowError):
                traveller.shift(timedelta(seconds=delta_seconds))


def _travellers(time_machine: Any) -> list[Any]:
    stack: list[Any] = getattr(time_machine, "traveller_stack", None) or getattr(time_machine, "coordinates_stack", [])
    return stack


@contextlib.contextmanager
def frozen_at(moment: datetime) -> Iterator[FrozenDateTimeFactory]:
    """Freeze the wall clock at `moment` with freezegun; under a `VirtualClockLoop` it then moves with the loop.

    `datetime.now()`, `date.today()` and `time.time()` give the frozen time, in every thread; pytest, asyncio and
    whatever waits with a time limit keep the real one. `moment` must be aware, else `NaiveTimeError`. Gives
    freezegun's handle (`move_to`, `tick`). The first freeze looks through all modules, later ones only at what
    changed, and one inside another costs microseconds.
    """
    if moment.tzinfo is None:
        raise NaiveTimeError(
            f"cannot freeze the clock at {moment}, a time without a zone: write datetime(…, tzinfo=UTC)"
        )
    import asyncio  # freezegun imports it anyway

    import freezegun
    from freezegun import api

    freezer = freezegun.freeze_time(plain(moment).astimezone(UTC))
    # What the user told freezegun to leave alone stays so; of its own defaults, all prefixes, "gi" is also "github".
    freezer.ignore = tuple(name for name in freezer.ignore if name not in _UNTOUCHED)
    with _quick_look_at_modules(api):
        factory = cast("FrozenDateTimeFactory", freezer.start())
    api.ignore_lists[-1] = (*freezer.ignore, *_REAL_FOR_CALLEES)
    loop_class: Any = asyncio.BaseEventLoop
    frozen_time, loop_class.time = loop_class.time, _loop_time
    try:
        yield factory
    finally:
        loop_class.time = frozen_time
        freezer.stop()


def _loop_time(_loop: object) -> float:
    # An ordinary loop under a freeze would sleep for ever.
    return monotonic()


_seen: dict[str, tuple[int, int, list[tuple[str, Any]]]] = {}


@contextlib.contextmanager
def _quick_look_at_modules(api: Any) -> Iterator[None]:
    """Let freezegun find the clocks that modules hold in a hundredth of the time.

    It hashes the `dir()` of every module at each start, and reads each attribute with `getattr`, which wakes lazy ones.
    The module's namespace has all that matters, and its size tells whether anything was added since.
    """
    thorough = getattr(api, "_get_cached_module_attributes", None)
    real_ids = getattr(api, "_real_time_object_ids", None)
    if thorough is None or real_ids is None:  # another release of freezegun: slower, and as right
        yield
        return

    def quick(module: Any) -> Any:
        try:
            name, namespace = module.__name__, vars(module)
        except (AttributeError, TypeError):
            return thorough(module)
        if name.partition(".")[0] in _UNTOUCHED:
            return []
        key, size, clocks = _seen.get(name, (0, -1, []))
        if key != id(module) or size != len(namespace):
            clocks = [(name, value) for name, value in list(namespace.items()) if id(value) in real_ids]
            _seen[name] = (id(module), len(namespace), clocks)
        return [(name, value) for name, value in clocks if namespace.get(name) is value]

    api._get_cached_module_attributes = quick
    try:
        yield
    finally:
        api._get_cached_module_attributes = thorough
