"""A store in a bucket in which a few records are a long saga already, and a few pages a very long one."""

from sagaz_core.storage import _s3_changes as changes
from sagaz_core.storage import _s3_cutting as cutting
from sagaz_core.storage import _s3_folding as folding
from sagaz_core.storage import _s3_writing as writing
from sagaz_core.storage._s3_pages import EVENTS, SNAPSHOTS


def have_claims_beside_heads(monkeypatch):
    """Let each snapshot's id be taken for nobody else's, as if it were a UUID."""
    monkeypatch.setattr(writing, "is_nobody_elses", lambda snapshot_id: True)


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
