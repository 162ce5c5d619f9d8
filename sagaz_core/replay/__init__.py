"""Running a recorded saga again, from any checkpoint."""

from sagaz_core.replay.replay import SagaReplay
from sagaz_core.replay.result import ReplayResult, ReplayStatus

__all__ = ["ReplayResult", "ReplayStatus", "SagaReplay"]
