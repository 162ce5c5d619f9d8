"""Buckets for tests: in this process, or where a few records are a long saga and a few pages a very long one."""

import re

from obstore.store import MemoryStore

from sagaz_core.storage import _s3_changes as changes
from sagaz_core.storage import _s3_cutting as cutting
from sagaz_core.storage import _s3_folding as folding
from sagaz_core.storage import _s3_writing as writing
from sagaz_core.storage import open_storage, snapshot_ids
from sagaz_core.storage._s3_pages import EVENTS, SNAPSHOTS


def a_bucket_in_memory(objects=None):
    """Return a store in a bucket that is in this process, behind the same driver: in a new one or in these objects."""
    storage = open_storage("s3://bucket/prefix?region=x&access_key_id=x&secret_access_key=x")
    storage._objects._store = MemoryStore() if objects is None else objects
    return storage


def have_own_names(monkeypatch):
    """Let the ids that the contract gives snapshots, `s/3`, name their saga and `seq`, as `s@3` does."""
    monkeypatch.setattr(snapshot_ids, "_NAME", re.compile(snapshot_ids._NAME.pattern.replace("@", "[@/]"), re.DOTALL))


def have_small_pages(monkeypatch, *, events=3, snapshots=2, large=1, size=2000, lines=400, small=4096):
    """Let pages have at most so many records and bytes, and the head so many bytes about them.

    Data of more than `small` bytes are large.
    """
    monkeypatch.setitem(cutting.MOST, EVENTS, events)
    monkeypatch.setitem(cutting.MOST, SNAPSHOTS, snapshots)
    monkeypatch.setattr(cutting, "_LARGE", large)
    monkeypatch.setattr(cutting, "_BYTES", size)
    monkeypatch.setattr(folding, "_MOST", lines)
    for module in (changes, cutting, writing):
        monkeypatch.setattr(module, "SMALL", small)
