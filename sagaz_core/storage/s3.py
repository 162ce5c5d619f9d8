"""Snapshots in an object store: S3 and what speaks its protocol, and Google's and Azure's by URL.

Nothing is shared by sagas. A saga has one head object with its index and its small data, which each write replaces on
the condition that it is still the one that was read: so of two writers one is told, reads again and goes on, and what a
batch says is there as a whole or not at all.

    PREFIX/sagas/<id, in order>          a saga's head, with its last records
    PREFIX/data/<hash of the saga>/…     pages of what a head has no room for any longer, and large data
    PREFIX/snapshots/<hash of its id>    whose a snapshot is that has an id which does not say so, with its large data
    PREFIX/replays/…, replays-of/…       the log of replays
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode

import ormsgpack

from sagaz_core.errors import CorruptDataError, UsageError
from sagaz_core.storage._checks import check_find, check_limit, fits
from sagaz_core.storage._listing import Listing
from sagaz_core.storage._network import count, seconds
from sagaz_core.storage._rows import replay_from_row, replay_row, saga_from_row
from sagaz_core.storage._s3_core import HEADS_AT_ONCE, sound
from sagaz_core.storage._s3_deleting import S3Deleting
from sagaz_core.storage._s3_events import S3Events
from sagaz_core.storage._s3_head import Head
from sagaz_core.storage._s3_keys import SAGAS, hashed, replay_key, replay_marks
from sagaz_core.storage._s3_objects import FORMAT, all_of
from sagaz_core.storage._s3_snapshots import S3Snapshots
from sagaz_core.storage._s3_window import Window
from sagaz_core.storage._s3_writing import S3Writing
from sagaz_core.storage.base import Page, ReplayRecord, SagaRecord, StoreInfo
from sagaz_core.storage.url import safe_url

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

_ENDPOINT = re.compile(r"https?://[^\s/?#@\\\"<>^`{|}%]+(/[\w/.~-]*)?", re.ASCII | re.IGNORECASE)


class S3SnapshotStorage(S3Snapshots, S3Events, S3Writing, S3Deleting):
    """A store below a prefix of a bucket, safe for any number of machines at once.

    `url` is `s3://bucket/prefix` with options (see `open_s3`). A request is tried again for at most `timeout` seconds.
    """

    # ---- sagas

    async def get_saga(self, saga_id: str) -> SagaRecord | None:
        """See `SnapshotStorage.get_saga`."""
        record = (await self._head(saga_id)).index.record
        return None if record is None else saga_from_row(record)

    async def list_sagas(self, *, prefix: str = "", limit: int = 100, cursor: str | None = None) -> Page:
        """See `SnapshotStorage.list_sagas`."""
        check_limit(limit)
        page = Listing(limit)
        async for saga_id, found in self._heads(prefix, cursor, limit + 1):
            record = page.made(saga_id, sound, found).index.record
            if record is not None and not page.takes(saga_id, page.made(saga_id, saga_from_row, record)):
                break
        return page.page()

    async def find_sagas(
        self,
        *,
        status: str | None = None,
        saga_name: str | None = None,
        step_name: str | None = None,
        failed_between: tuple[datetime, datetime] | None = None,
        tags: Mapping[str, str] | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page:
        """See `SnapshotStorage.find_sagas`. It reads the head of every saga until the page is full."""
        between, wanted = check_find(failed_between, tags, limit)
        page = Listing(limit)
        async for saga_id, found in self._heads("", cursor, HEADS_AT_ONCE):
            summary = page.made(saga_id, sound, found).index.summary
            if summary is None or not fits(summary, status, saga_name, step_name, between, wanted):
                continue
            if not page.takes(saga_id, summary._replace(tags=dict(summary.tags))):
                break
        return page.page()

    # ---- replays

    async def log_replay(self, record: ReplayRecord) -> None:
        """See `SnapshotStorage.log_replay`."""
        row = replay_row(record)
        await self._objects.put(f"{replay_marks(record.original_saga_id)}/{hashed(record.replay_id)}", b"", always=True)
        await self._objects.put(replay_key(record.replay_id), ormsgpack.packb(row), always=True)

    async def list_replays(self, saga_id: str) -> Sequence[ReplayRecord]:
        """See `SnapshotStorage.list_replays`."""
        names = [key.rpartition("/")[2] async for key in self._objects.keys(replay_marks(saga_id))]
        found = await all_of([self._objects.get(f"replays/{name}") for name in names])
        records = [replay_from_row(ormsgpack.unpackb(one[0])) for one in found if one is not None]
        mine = [record for record in records if record.original_saga_id == saga_id]
        return sorted(mine, key=lambda record: (record.created_at, record.replay_id))

    # ---- the store

    async def info(self) -> StoreInfo:
        """See `SnapshotStorage.info`."""
        sagas = events = snapshots = replays = 0
        async for _, head in self._heads("", None, HEADS_AT_ONCE):
            if isinstance(head, CorruptDataError):
                continue
            sagas += head.index.record is not None
            events += len(head.index.events) + head.event_pages.length
            snapshots += len(head.index.snapshots) + head.snapshot_pages.length
        async for _ in self._objects.keys("replays"):
            replays += 1
        return StoreInfo(self.url, FORMAT, sagas, events, snapshots, replays, await self._objects.size())

    async def upgrade(self) -> int:
        """See `SnapshotStorage.upgrade`. There is nothing to create; whether the bucket can be read is found out."""
        async for _ in self._objects.keys(SAGAS):
            break
        return FORMAT

    async def close(self) -> None:
        """See `SnapshotStorage.close`."""
        self._known.clear()
        self._listed = Window(Head(""))
        self._objects.close()


# ---- URLs


def open_s3(url: str) -> S3SnapshotStorage:
    """Open `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`.

    `?timeout=` is in seconds (10), `?retries=` a number (10), `?allow_http=true` permits an endpoint without TLS; every
    other option is the driver's, such as `endpoint`, `region`, `access_key_id`. What is not given is taken from the
    environment (`AWS_…`), where credentials belong.
    """
    where, _, query = url.partition("?")
    options, rest = {"timeout": "10", "retries": "10"}, list[tuple[str, str]]()
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in options:
            options[name] = value
            continue
        rest.append((name, value))
        if name.endswith("endpoint") and not _ENDPOINT.fullmatch(value):  # by which the driver panics, or fails later
            shown = safe_url(where)  # and not the endpoint, which may have a password
            raise UsageError(f"{shown!r} gives {name} as what is no address: give http://host:port or https://host")
    timeout, retries = seconds(url, "timeout", options["timeout"]), count(url, "retries", options["retries"], least=0)
    return S3SnapshotStorage(f"{where}?{urlencode(rest)}" if rest else where, timeout=timeout, retries=retries)
