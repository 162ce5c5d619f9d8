"""Settings of a saga and of its capture. They come from users, so they are checked (pydantic)."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, model_validator

from sagaz_core.encryption import FieldCipher
from sagaz_core.errors import UsageError
from sagaz_core.saga.context import first_line

OnCompensationFailure = Literal["fail_fast", "continue_on_error", "retry_then_continue", "skip_dependents"]


class SnapshotStrategy(StrEnum):
    """When snapshots are taken. All but `manual` also keep the final state and the state after each compensation."""

    BEFORE_EACH_STEP = "before_each_step"
    AFTER_EACH_STEP = "after_each_step"
    ON_FAILURE = "on_failure"
    ON_COMPLETION = "on_completion"
    MANUAL = "manual"


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **data: object) -> None:
        try:
            super().__init__(**data)
        except ValueError as error:
            raise UsageError(f"{type(self).__name__}: {first_line(error)}") from None


class ReplayConfig(_Settings):
    """What is captured of a run, and for how long it is kept.

    `journal=False` keeps snapshots only: time travel then knows nothing between them, and of two processes that run one
    saga none may be found out. `capture_timeout` is in seconds; a store that fails or takes longer fails the run,
    which is not undone unless the store can be told so, or with `on_capture_error="warn"` is logged, and so is a value
    that cannot be stored. `retention_days=None` keeps for ever; a run of `max_snapshots_per_saga` keeps its last ones.

    `durability` says when a step may start: when its snapshot is in the store (`sync`); the same, but the writes of
    many sagas at a time go in one round trip (`group`); or at once (`background`): what is not written yet is lost when
    the process dies, and only a compensation and the run's end wait for it.

    `index_keys` are keys of the context whose values are stored as readable text, by which a saga can be found
    (`find_sagas(tags=…)`, `sagaz find --tag key=value`): texts, numbers, truths, times, enums and UUIDs, of at most 255
    characters. Name none whose values must not be read.

    `encrypt_fields` are keys whose values are stored as what `field_cipher` makes of them, wherever keys of the context
    stand: in it, in what a step changed of it, and in a mapping that a step returned. A run that is resumed or replayed
    is given what the cipher reads.
    """

    enable_snapshots: bool = True
    snapshot_strategy: SnapshotStrategy = SnapshotStrategy.BEFORE_EACH_STEP
    retention_days: float | None = Field(default=None, gt=0, le=1_000_000)
    compression: Literal["zstd"] | None = "zstd"
    journal: bool = True
    durability: Literal["sync", "group", "background"] = "sync"
    max_snapshots_per_saga: int | None = Field(default=None, gt=0)
    index_keys: tuple[str, ...] = ()
    on_capture_error: Literal["raise", "warn"] = "raise"
    capture_timeout: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    encrypt_fields: tuple[str, ...] = ()
    encryption_key_id: str | None = None
    field_cipher: InstanceOf[FieldCipher] | None = Field(default=None, repr=False)

    @model_validator(mode="after")
    def _hides_no_tag(self) -> ReplayConfig:
        for key in self.encrypt_fields:
            if key in self.index_keys:
                raise ValueError(f"{key!r} is both in encrypt_fields and in index_keys, whose values can be read")
        return self


class SagaConfig(_Settings):
    """How a saga behaves when things go wrong.

    `on_sibling_failure`: a step that still runs when another one fails is awaited (`wait`: then it is known what it
    did), or cancelled (`cancel`: it is then in doubt). `forward_retries` and their backoff are for steps after a pivot.
    """

    on_compensation_failure: OnCompensationFailure = "continue_on_error"
    on_sibling_failure: Literal["wait", "cancel"] = "wait"
    forward_retries: int = Field(default=5, ge=0)
    replay_config: ReplayConfig | None = None
