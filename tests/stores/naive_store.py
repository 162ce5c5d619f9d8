"""The plainest store that can be written: lists, and a look at every record. What it says is right."""

from dataclasses import replace
from datetime import UTC, datetime

from sagaz_core.errors import DuplicateSagaError
from sagaz_core.storage import Base, Page, StoreInfo

LONG_AGO = datetime.min.replace(tzinfo=UTC)


class NaiveStore:
    url = "naive://"

    def __init__(self):
        self.sagas, self.events, self.snapshots, self.replays, self.known = {}, {}, {}, {}, set()
        self.summaries = {}

    async def write(self, batch):
        sagas, events, snapshots = dict(self.sagas), dict(self.events), dict(self.snapshots)
        if batch.saga and sagas.setdefault(batch.saga_id, batch.saga) != batch.saga:
            raise DuplicateSagaError
        for event in batch.events:
            if events.setdefault((event.saga_id, event.seq), event) != event:
                raise DuplicateSagaError
        for snapshot in batch.snapshots:
            if snapshots.setdefault(snapshot.snapshot_id, snapshot) != snapshot:
                raise DuplicateSagaError
        self.sagas, self.events, self.snapshots = sagas, events, snapshots
        summary = batch.summary
        if summary and (batch.saga_id not in self.summaries or self.summaries[batch.saga_id].seq < summary.seq):
            self.summaries[batch.saga_id] = summary
        if batch.saga or batch.events or batch.snapshots or summary:
            self.known.add(batch.saga_id)

    async def write_many(self, batches):
        results = []
        for batch in batches:
            try:
                results.append(await self.write(batch))
            except DuplicateSagaError as error:
                results.append(error)
        return results

    async def get_saga(self, saga_id):
        return self.sagas.get(saga_id)

    async def list_sagas(self, prefix="", **page):
        return all_of([self.sagas[saga_id] for saga_id in sorted(self.sagas) if saga_id.startswith(prefix)])

    async def find_sagas(self, *, status=None, saga_name=None, step_name=None, failed_between=None, tags=None, **page):
        return all_of(
            [
                one
                for _, one in sorted(self.summaries.items())
                if status in (None, one.status)
                and saga_name in (None, one.saga_name)
                and step_name in (None, one.step_name)
                and (
                    failed_between is None
                    or (one.failed_at is not None and failed_between[0] <= one.failed_at <= failed_between[1])
                )
                and all(one.tags.get(key) == value for key, value in (tags or {}).items())
            ]
        )

    def served(self, snapshot):
        return snapshot.retention_until is None or snapshot.retention_until >= self.clock()

    def of(self, saga_id):
        found = [snapshot for snapshot in self.snapshots.values() if snapshot.saga_id == saga_id]
        return sorted(found, key=place)

    def with_bases(self, snapshot):
        if snapshot.base_seq is None:
            return snapshot
        return snapshot._replace(bases=tuple(Base(b.snapshot_id, b.data) for b in self.bases_of(snapshot)))

    def bases_of(self, snapshot):
        if snapshot.base_seq is None:
            return []
        return [
            one for one in self.of(snapshot.saga_id) if snapshot.base_seq <= one.seq and place(one) < place(snapshot)
        ]

    async def get_snapshot(self, snapshot_id):
        found = self.snapshots.get(snapshot_id)
        return self.with_bases(found) if found and self.served(found) else None

    async def list_snapshots(self, saga_id, **page):
        return all_of([self.with_bases(one) for one in self.of(saga_id) if self.served(one)])

    async def count_snapshots(self, saga_id):
        return sum(map(self.served, self.of(saga_id)))

    async def latest_snapshot(self, saga_id, step=None, phase=None, until=None, max_seq=None):
        found = [
            snapshot
            for snapshot in self.of(saga_id)
            if self.served(snapshot)
            and step in (None, snapshot.step_name)
            and phase in (None, snapshot.phase)
            and (until is None or snapshot.created_at <= until)
            and (max_seq is None or snapshot.seq <= max_seq)
        ]
        return self.with_bases(found[-1]) if found else None

    async def read_events(self, saga_id, after_seq=-1, until=None):
        found = sorted((e for e in self.events.values() if e.saga_id == saga_id), key=lambda event: event.seq)
        last = max((e.seq for e in found if until is None or e.at <= until), default=-1)
        for event in found:
            if after_seq < event.seq <= last:
                yield event

    async def delete_snapshots(self, saga_id, below_seq):
        old = [one for one in self.of(saga_id) if one.seq < below_seq]
        gone = sum(map(self.served, old))
        first = min(
            (
                one.base_seq
                for one in self.of(saga_id)
                if one.seq >= below_seq and self.served(one) and one.base_seq is not None
            ),
            default=below_seq,
        )
        for one in old:
            if one.seq >= first:
                self.snapshots[one.snapshot_id] = one._replace(retention_until=LONG_AGO)
            else:
                del self.snapshots[one.snapshot_id]
        return gone

    async def prune(self, now, batch=500):
        live = [one for one in self.snapshots.values() if one.retention_until is None or one.retention_until >= now]
        kept = {one.snapshot_id for one in live}
        for one in live:
            kept.update(base.snapshot_id for base in self.bases_of(one))
        gone = len(self.snapshots) - len(kept)
        self.snapshots = {key: one for key, one in self.snapshots.items() if key in kept}
        return gone

    async def delete_saga(self, saga_id):
        self.snapshots = {key: one for key, one in self.snapshots.items() if one.saga_id != saga_id}
        self.sagas.pop(saga_id, None)
        self.summaries.pop(saga_id, None)
        self.events = {key: event for key, event in self.events.items() if key[0] != saga_id}
        there = saga_id in self.known
        self.known.discard(saga_id)
        return there

    async def log_replay(self, record):
        self.replays[record.replay_id] = replace(record)

    async def list_replays(self, saga_id):
        found = [replay for replay in self.replays.values() if replay.original_saga_id == saga_id]
        return sorted(found, key=lambda replay: (replay.created_at, replay.replay_id))

    async def info(self):
        return StoreInfo(self.url, 1, len(self.sagas), len(self.events), len(self.snapshots), len(self.replays), 0)

    async def close(self):
        pass


def place(snapshot):
    return snapshot.seq, snapshot.snapshot_id


def all_of(items):
    return Page(items)
