"""Where snapshots, events and replay logs are kept. `open_storage(url)` imports the backend that the URL names."""

from sagaz_core.storage.base import (
    Base,
    Batch,
    Page,
    ReplayRecord,
    SagaRecord,
    SagaSnapshot,
    SagaSummary,
    SnapshotStorage,
    StoredEvent,
    StoreInfo,
    checked_id,
)
from sagaz_core.storage.memory import InMemorySnapshotStorage
from sagaz_core.storage.url import open_storage, safe_url

__all__ = [
    "Base",
    "Batch",
    "InMemorySnapshotStorage",
    "Page",
    "ReplayRecord",
    "SagaRecord",
    "SagaSnapshot",
    "SagaSummary",
    "SnapshotStorage",
    "StoreInfo",
    "StoredEvent",
    "checked_id",
    "open_storage",
    "safe_url",
]
