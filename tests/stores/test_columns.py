"""The index of a saga in columns: rows within packed bytes, slots by hash, and order by `seq` and by time."""

import os
import random
from array import array

import ormsgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagaz_core.storage._columns import Line, SlotsByHash
from sagaz_core.storage._packed_rows import Parts, array_head, end_of
from sagaz_core.storage._room import OutOfRoom, Room
from sagaz_core.storage._room_order import Order
from sagaz_core.storage._room_slots import SlotsInRoom
from sagaz_core.storage._room_words import Field, Words
from sagaz_core.storage._saga_index import SagaIndex
from sagaz_core.storage.contract import a_snapshot, an_event
from tests.stores.small_room import have_small_room

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=300)
    | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=5), inner, max_size=20),
    max_leaves=40,
)


@given(VALUES, st.binary(max_size=5))
def test_a_value_ends_where_its_bytes_end(value, behind):
    packed = ormsgpack.packb(value)
    assert end_of(b"before" + packed + behind, 6) == 6 + len(packed)


@pytest.mark.parametrize("value", ["x" * 70_000, b"x" * 70_000, [None] * 70_000, {str(n): n for n in range(70_000)}])
def test_a_large_value_ends_where_its_bytes_end(value):
    packed = ormsgpack.packb(value)
    assert end_of(packed + b"\x93", 0) == len(packed)


@pytest.mark.parametrize("data", [b"", b"\x92\x01", b"\xd9\x05abc", b"\xc1", b"\xc7\x01\x01x"])
def test_what_is_no_value_has_no_end(data):
    with pytest.raises((IndexError, ValueError)):
        end_of(data, 0)


@given(st.integers(0, 70_000))
def test_the_head_of_an_array_is_as_the_driver_writes_it(count):
    assert ormsgpack.packb([None] * count).startswith(array_head(count))
    assert end_of(array_head(count) + b"\xc0" * count, 0) == len(array_head(count)) + count


@given(st.lists(st.lists(VALUES, max_size=6), max_size=8), st.sampled_from([0, 20_000]))
def test_rows_are_found_where_they_are_in_short_and_in_long_data(rows, padding):
    data = ormsgpack.packb(["id", b"x" * padding, rows, rows, "end", 1])
    for given_as in (data, memoryview(data)):
        parts = Parts(given_as)
        assert parts.values(2) == ["id", b"x" * padding]
        for _ in range(2):
            found = list(parts.rows())
            assert [one.row for one in found] == rows
            assert [data[one.at : one.at + len(one.packed)] for one in found] == [one.packed for one in found]
            assert [ormsgpack.unpackb(one.packed) for one in found] == rows
        assert parts.rest() == ["end", 1]


def test_rows_that_another_encoder_wrote_are_found_where_they_are():
    long_one = b"\xd1\x00\x01"  # 1 in more bytes than it needs
    data = b"\x91\x92\x92" + long_one + b"\xa1a" + b"\x91\xc0"
    first, second = Parts(data).rows()
    assert (first.row, first.at, first.packed) == ([1, "a"], 2, b"\x92" + long_one + b"\xa1a")
    assert (second.row, second.at) == ([None], 8)


class Same(str):
    """A text whose hash is that of all others."""

    __slots__ = ()

    def __hash__(self):
        return 7


def test_texts_of_one_hash_are_all_found():
    slots = SlotsByHash()
    for number in range(100):
        slots.append(Same(number) if number % 2 else str(number))
    assert sorted(slots.find(Same("1"))) == list(range(1, 100, 2))
    assert list(slots.find("42")) == [42]
    assert list(slots.find("43")) == []
    kept = slots.keep([1, 3, 42])
    assert sorted(kept.find(Same("x"))) == [0, 1]
    assert list(kept.find("42")) == [2]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30), st.randoms())
def test_a_line_finds_what_looking_at_all_finds(items, chance):
    """Whatever comes in whatever order, with a clock that goes back."""
    seqs, moments = array("q"), array("q")
    line, known = Line(seqs, moments), []
    for seq, moment in items:
        slot = len(seqs)
        seqs.append(seq)
        moments.append(moment)
        place = line.above(seq)
        if place == len(known):
            line.append(slot, moment)
        else:
            line.insert(place, slot)
        known.insert(place, slot)
        if chance.random() < 0.1:
            known = known[1:]
            line.keep(line.order[1:])
        assert list(line.order) == known
        for until in (None, 0, 4, 9):
            fit = [s for s in known if until is None or moments[s] <= until]
            for most in (None, 0, 4, 9):
                right = [s for s in fit if most is None or seqs[s] <= most]
                found = [s for s in line.back(line.end(until, most)) if until is None or moments[s] <= until]
                assert found == right[::-1]
            assert until is None or line.after(until) == (known.index(fit[-1]) + 1 if fit else 0)


def test_an_index_stays_right_when_most_of_it_is_dropped():
    from sagaz_core.storage._packed_rows import PackedRow, pack_rows
    from sagaz_core.storage._rows import event_entry, event_row, snapshot_entry, snapshot_row

    held, chance = bytearray(), random.Random(3)
    read = lambda at, size, checksum, seq: bytes(held[at : at + size])  # noqa: E731 - what stores give
    index = SagaIndex(read, read, placed=False)
    seqs = list(range(400))
    chance.shuffle(seqs)
    for seq in seqs:
        snapshot = a_snapshot("s", seq, step_name=f"step_{seq % 3}", base_seq=seq - seq % 4)
        for columns, row in (
            (index.events, event_row(event_entry(an_event("s", seq)))),
            (index.snapshots, snapshot_row(snapshot_entry(snapshot))),
        ):
            (packed,) = pack_rows([row])
            columns.add(PackedRow(row, len(held), packed.packed))
            held += packed.packed
    left = list(range(400))
    while left:
        gone = (
            left[: chance.randint(1, 60)]
            if chance.random() < 0.5
            else chance.sample(left, chance.randint(1, 9) % len(left))
        )
        assert index.snapshots.drop([f"s/{seq}" for seq in gone], []) == 105 * len(gone)
        left = [seq for seq in left if seq not in gone]
        assert [index.snapshots.entry(slot).seq for slot in index.snapshots.line.order] == left
        assert index.snapshots.last_id == (f"s/{left[-1]}" if left else None)
        for seq in left[::7]:
            slot = index.snapshots.find(f"s/{seq}")
            assert index.snapshots.entry(slot).seq == seq
            assert [index.snapshots.entry(base).seq for base in index.snapshots.bases(slot)] == [
                other for other in left if seq - seq % 4 <= other < seq
            ]
            found = index.snapshots.latest("step_1", None, None, seq, 0)
            right = [other for other in left if other % 3 == 1 and other <= seq]
            assert (found is None) == (not right)
            assert found is None or index.snapshots.entry(found).seq == right[-1]
        assert all(index.snapshots.find(f"s/{seq}") is None for seq in gone)
    assert [index.events.entry(slot).seq for slot in index.events.line.order] == list(range(400))


# ---- in a room on the disk


@pytest.fixture
def room(tmp_path):
    return Room([str(tmp_path)])


def words_in_small_pages(typecode, width=1):
    with pytest.MonkeyPatch.context() as monkeypatch:
        have_small_room(monkeypatch)
        return Words(Room([None]), typecode, width=width)


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(0, 60))
def test_words_in_a_room_are_what_an_array_would_be(right, end):
    words, end = words_in_small_pages("q"), min(end, len(right))
    for word in right:
        words.append(word)
    if right:
        words[end // 2] = right[end // 2] = 7
    assert len(words) == len(right)
    assert list(words) == [words[at] for at in range(len(right))] == right
    assert list(words.between(end // 3, end)) == right[end // 3 : end]
    check_pages(words, right, end)


def check_pages(words, right, end):
    pages = list(words.pages_back(end))
    assert [word for page in pages[::-1] for word in page] == right[:end]
    assert all(len(page) <= words.length for page in pages)


@given(st.lists(st.integers(0, 99), max_size=80), st.integers(0, 80), st.integers(0, 80))
def test_an_order_in_a_room_is_what_a_list_would_be(places, start, end):
    with pytest.MonkeyPatch.context() as monkeypatch:
        have_small_room(monkeypatch)
        order, right = Order(Room([None]), range(5)), list(range(5))
    for slot, place in enumerate(places, 5):
        at = len(right) if place > 60 else place % (len(right) + 1)
        order.append(slot) if at == len(right) else order.insert(at, slot)
        right.insert(at, slot)
        assert order[at] == slot
    assert len(order) == len(right)
    assert list(order) == [order[at] for at in range(len(right))] == right
    assert [order[-at] for at in range(1, len(right))] == right[:0:-1]
    assert list(order[start:end]) == list(order[:][start:end]) == right[start:end]
    check_pages(order, right, min(end, len(right)))


@given(st.lists(st.tuples(*[st.integers(-9, 9)] * 3), max_size=30), st.integers(0, 30), st.integers(0, 30))
def test_a_column_in_a_room_is_every_nth_word(rows, start, stop):
    words = words_in_small_pages("q", 3)
    for row in rows:
        words.extend(row)
    stop = min(stop, len(rows))
    for at in range(3):
        column = Field(words, 3, at)
        assert [column[slot] for slot in range(len(rows))] == [row[at] for row in rows]
        assert list(column.between(start, stop)) == [row[at] for row in rows[start:stop]]
        assert all(list(column.row(slot)) == list(row) for slot, row in enumerate(rows))
        if rows:
            column[len(rows) // 2] = 7
            rows[len(rows) // 2] = (*rows[len(rows) // 2][:at], 7, *rows[len(rows) // 2][at + 1 :])


def test_slots_in_a_room_are_found_by_their_texts(room):
    texts = [f"s/{number}" for number in range(20_000)]
    slots = SlotsInRoom(room, map(hash, texts[:3000]))
    for text in texts[3000:]:
        slots.append(text)
    assert all(number in slots.find(text) for number, text in enumerate(texts))
    assert sum(len(list(slots.find(f"t/{number}"))) for number in range(20_000)) < 20
    kept = slots.keep(range(10_000, 20_000, 2))
    assert all(number in kept.find(text) for number, text in enumerate(texts[10_000::2]))


def test_texts_of_one_hash_that_are_too_many_for_a_room_are_told(room):
    with pytest.raises(OutOfRoom):
        SlotsInRoom(room, [7] * 600)
    assert sorted(SlotsInRoom(room, [7] * 500).find(Same("x"))) == list(range(500))


def test_what_is_let_go_of_is_room_for_others(tmp_path):
    room = Room([str(tmp_path)])
    kept, size = Words(room, "q", range(1000)), 0
    for _ in range(20):
        Words(room, "q", range(100_000))
        size = size or os.fstat(room.file().fd).st_size
    assert os.fstat(room.file().fd).st_size < size + (1 << 16)  # the last chunk may be filled now
    assert list(kept) == list(range(1000))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_passed_over(tmp_path):
    assert list(Words(Room([str(tmp_path / "none"), str(tmp_path)]), "q", range(1000))) == list(range(1000))
    with pytest.raises(OutOfRoom):
        Words(Room([str(tmp_path / "none")]), "q")
