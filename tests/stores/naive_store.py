"""The plainest store that can be written: lists, and a look at every record. What it says is right."""

from dataclasses import replace

from sagaz_core.errors import DuplicateSagaError


class NaiveStore:
    def __init__(self):
        self.sagas, self.events, self.snapshots, self.replays, self.known = {}, {}, {}, {}, set()

    def write(self, batch):
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
        if batch.saga or batch.events or batch.snapshots:
            self.known.add(batch.saga_id)

    def get_saga(self, saga_id):
        return self.sagas.get(saga_id)

    def list_sagas(self, prefix):
        return [self.sagas[saga_id] for saga_id in sorted(self.sagas) if saga_id.startswith(prefix)]

    def get_snapshot(self, snapshot_id):
        return self.snapshots.get(snapshot_id)

    def list_snapshots(self, saga_id):
        found = [snapshot for snapshot in self.snapshots.values() if snapshot.saga_id == saga_id]
        return sorted(found, key=lambda snapshot: (snapshot.seq, snapshot.snapshot_id))

    def latest_snapshot(self, saga_id, step, phase, until, max_seq):
        found = [
            snapshot
            for snapshot in self.list_snapshots(saga_id)
            if step in (None, snapshot.step_name)
            and phase in (None, snapshot.phase)
            and (until is None or snapshot.created_at <= until)
            and (max_seq is None or snapshot.seq <= max_seq)
        ]
        return found[-1] if found else None

    def read_events(self, saga_id, after_seq, until):
        found = sorted((e for e in self.events.values() if e.saga_id == saga_id), key=lambda event: event.seq)
        last = max((e.seq for e in found if until is None or e.at <= until), default=-1)
        return [event for event in found if after_seq < event.seq <= last]

    def delete_snapshots(self, saga_id, below_seq):
        return self._delete(lambda snapshot: snapshot.saga_id == saga_id and snapshot.seq < below_seq)

    def prune(self, now):
        return self._delete(lambda snapshot: snapshot.retention_until is not None and snapshot.retention_until < now)

    def delete_saga(self, saga_id):
        self._delete(lambda snapshot: snapshot.saga_id == saga_id)
        self.sagas.pop(saga_id, None)
        self.events = {key: event for key, event in self.events.items() if key[0] != saga_id}
        there = saga_id in self.known
        self.known.discard(saga_id)
        return there

    def log_replay(self, record):
        self.replays[record.replay_id] = replace(record)

    def list_replays(self, saga_id):
        found = [replay for replay in self.replays.values() if replay.original_saga_id == saga_id]
        return sorted(found, key=lambda replay: (replay.created_at, replay.replay_id))

    def _delete(self, doomed):
        kept = {key: snapshot for key, snapshot in self.snapshots.items() if not doomed(snapshot)}
        deleted = len(self.snapshots) - len(kept)
        self.snapshots = kept
        return deleted
