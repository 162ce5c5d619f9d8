"""A store in a folder in which two records are a long saga already, and pages of its index have a few words."""

from sagaz_core.storage import _columns, _file_segment, _room_order, _room_slots, _room_words


def have_small_room(monkeypatch, *, long=2, page=80, most=4, together=3):
    """Have an index on the disk from so many records on, in pages of so many bytes."""
    monkeypatch.setattr(_file_segment, "LONG", long)
    monkeypatch.setattr(_room_words, "PAGE", page)
    monkeypatch.setattr(_room_order, "PAGE", page // 4)
    monkeypatch.setattr(_room_slots, "_MOST", most)
    monkeypatch.setattr(_room_slots, "_TOGETHER", together)
    monkeypatch.setattr(_columns, "_GROUP", 2)
    monkeypatch.setattr(_columns, "_NEAR", 1)
