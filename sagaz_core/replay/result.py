"""How a replay ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sagaz_core.engine.result import SagaResult
from sagaz_core.state import SagaStatus


class ReplayStatus(StrEnum):
    """How a replay ended; `started` is what the log says of one that has not, or whose process died."""

    STARTED = "started"
    DRY_RUN = "dry_run"
    SUCCESS = "success"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"


STATUS_OF = {
    SagaStatus.COMPLETED: ReplayStatus.SUCCESS,
    SagaStatus.ROLLED_BACK: ReplayStatus.ROLLED_BACK,
}


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """What a replay did, or (`dry_run`) would do.

    `served` steps were taken from the record, `ran` were run; of those, `compensated` were undone and `stuck` could not
    be. `reran` are steps that the original had undone, and which therefore ran again. `missed` are the forced failures
    that never happened. `result` is the run's own.
    """

    replay_status: ReplayStatus
    original_saga_id: str
    new_saga_id: str | None
    checkpoint: str
    served: tuple[str, ...] = ()
    ran: tuple[str, ...] = ()
    reran: tuple[str, ...] = ()
    compensated: tuple[str, ...] = ()
    stuck: tuple[str, ...] = ()
    context: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    missed: tuple[str, ...] = ()
    error: str = ""
    result: SagaResult | None = None
    replay_id: str = ""

    @property
    def success(self) -> bool:
        """Whether the replayed saga completed (or, of a dry run, could be replayed)."""
        return self.replay_status in (ReplayStatus.SUCCESS, ReplayStatus.DRY_RUN)
