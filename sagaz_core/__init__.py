"""Sagas: declare and run them, capture them, replay them, ask their past, and prove their rollback.

The names are loaded when they are first used, so that importing a store loads no engine, and the engine no pydantic.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sagaz_core.engine.result import SagaResult
    from sagaz_core.errors import SagazError, StepRejected
    from sagaz_core.faults.build import crash, fail, repeat
    from sagaz_core.faults.plan import FaultPlan
    from sagaz_core.prove.explorer import explore
    from sagaz_core.prove.outcome import Outcome, UnsoundError
    from sagaz_core.prove.world import World
    from sagaz_core.recording.base import Recording
    from sagaz_core.replay.replay import SagaReplay
    from sagaz_core.replay.result import ReplayResult, ReplayStatus
    from sagaz_core.saga.base import Saga
    from sagaz_core.saga.config import ReplayConfig, SagaConfig, SnapshotStrategy
    from sagaz_core.saga.context import SagaContext
    from sagaz_core.saga.declare import action, compensate, forward_recovery
    from sagaz_core.saga.definition import Recovery
    from sagaz_core.saga.step import Backoff
    from sagaz_core.state import SagaStatus
    from sagaz_core.storage.base import SagaSnapshot, SnapshotStorage
    from sagaz_core.storage.memory import InMemorySnapshotStorage
    from sagaz_core.storage.url import open_storage
    from sagaz_core.time_travel import HistoricalState, SagaTimeTravel

_WHERE = {
    "Backoff": "saga.step",
    "FaultPlan": "faults.plan",
    "HistoricalState": "time_travel",
    "InMemorySnapshotStorage": "storage.memory",
    "Outcome": "prove.outcome",
    "Recording": "recording.base",
    "Recovery": "saga.definition",
    "ReplayConfig": "saga.config",
    "ReplayResult": "replay.result",
    "ReplayStatus": "replay.result",
    "Saga": "saga.base",
    "SagaConfig": "saga.config",
    "SagaContext": "saga.context",
    "SagaReplay": "replay.replay",
    "SagaResult": "engine.result",
    "SagaSnapshot": "storage.base",
    "SagaStatus": "state",
    "SagaTimeTravel": "time_travel",
    "SagazError": "errors",
    "SnapshotStorage": "storage.base",
    "SnapshotStrategy": "saga.config",
    "StepRejected": "errors",
    "UnsoundError": "prove.outcome",
    "World": "prove.world",
    "action": "saga.declare",
    "compensate": "saga.declare",
    "crash": "faults.build",
    "explore": "prove.explorer",
    "fail": "faults.build",
    "forward_recovery": "saga.declare",
    "open_storage": "storage.url",
    "repeat": "faults.build",
}

__all__ = [
    "Backoff",
    "FaultPlan",
    "HistoricalState",
    "InMemorySnapshotStorage",
    "Outcome",
    "Recording",
    "Recovery",
    "ReplayConfig",
    "ReplayResult",
    "ReplayStatus",
    "Saga",
    "SagaConfig",
    "SagaContext",
    "SagaReplay",
    "SagaResult",
    "SagaSnapshot",
    "SagaStatus",
    "SagaTimeTravel",
    "SagazError",
    "SnapshotStorage",
    "SnapshotStrategy",
    "StepRejected",
    "UnsoundError",
    "World",
    "action",
    "compensate",
    "crash",
    "explore",
    "fail",
    "forward_recovery",
    "open_storage",
    "repeat",
]


def __getattr__(name: str) -> Any:
    where = _WHERE.get(name)
    if where is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{where}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
