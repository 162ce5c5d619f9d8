"""The bytes of snapshots: small, whole, and refused by name when they are not."""

import os
import random
import sqlite3
from datetime import timedelta

import drive
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from sagaz_core.errors import DamagedSnapshotError
from sagaz_core.storage import Base, Batch, open_storage
from sagaz_core.storage.codec import encode
from sagaz_core.storage.contract import T0, a_snapshot
from sagaz_core.storage.frames import KEYFRAME_EVERY, FrameWriter, standalone, state_bytes

MEGABYTE = 1024 * 1024


def states(count, size=1000):
    """Return states that go on from one another, as a saga's do."""
    text = random.Random(size).randbytes(size)
    return [text + b"".join(b"step %d is done; " % done for done in range(number)) for number in range(count)]


def written(contents, seqs=None, saga_id="s", **options):
    writer = FrameWriter(**options)
    return [
        writer.frame(a_snapshot(saga_id, seq, snapshot_id=f"{saga_id}.{number:06}"), state)
        for number, (seq, state) in enumerate(zip(seqs or range(len(contents)), contents, strict=True))
    ]


def with_bases(snapshots):
    """Return them as a store does."""
    return [
        one._replace(bases=tuple(Base(b.snapshot_id, b.data) for b in snapshots[:n] if b.seq >= one.base_seq))
        if one.base_seq is not None
        else one
        for n, one in enumerate(snapshots)
    ]


def stored(url, snapshots):
    storage = open_storage(url)
    drive.now(storage.write(Batch("s", snapshots=snapshots)))
    return storage


@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=40), st.booleans())
def test_what_was_framed_is_read_again(contents, compress):
    snapshots = with_bases(written(contents, compress=compress))
    assert [state_bytes(snapshot) for snapshot in snapshots] == contents


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40))
def test_whatever_the_numbers_are_each_base_comes_before(steps):
    seqs, seq = [], 0
    for step in steps:
        seq += step
        seqs.append(seq)
    contents = states(len(seqs), 50)
    snapshots = with_bases(written(contents, seqs))
    assert [state_bytes(snapshot) for snapshot in snapshots] == contents


@pytest.mark.parametrize("size", [1_000, 100_000, 600_000, 1_500_000, 5_000_000])
def test_a_difference_is_small_whatever_the_state_is(size):
    chance = random.Random(size)
    text = chance.randbytes(size // 2)

    def state(done):  # the initial context, and the present one
        return b"seq %d;" % done + text + b"now;" * done + text + b"step %d is done;" % done

    snapshots = with_bases(written([state(done) for done in range(3)]))
    key, *others = (len(snapshot.data) for snapshot in snapshots)
    assert key < 0.51 * size + 100
    assert max(others) < 200 + size / 500
    assert state_bytes(snapshots[2]) == state(2)


def test_one_in_sixteen_stands_alone():
    snapshots = written(states(40))
    assert [one.seq for one in snapshots if one.base_seq is None] == [0, 16, 32]
    assert all(one.base_seq == one.seq - one.seq % KEYFRAME_EVERY for one in snapshots if one.base_seq is not None)


def test_after_a_gap_one_stands_alone():
    writer = FrameWriter()
    contents = states(4)
    first, second = (writer.frame(a_snapshot("s", n), contents[n]) for n in (0, 1))
    writer.begin_again()
    third, fourth = (writer.frame(a_snapshot("s", n), contents[n]) for n in (2, 3))
    assert [one.base_seq for one in (first, second, third, fourth)] == [None, 0, None, 2]


def test_a_snapshot_is_not_based_on_one_that_may_have_expired():
    writer = FrameWriter()
    days = timedelta(days=1)
    made = []
    for seq, at in enumerate((0, 1, 40, 41)):
        now = T0 + at * days
        made.append(writer.frame(a_snapshot("s", seq, now, retention_until=now + 30 * days), b"state"))
    assert [one.base_seq for one in made] == [None, 0, None, 2]


@pytest.mark.parametrize("size", [1000, 100_000])
def test_a_further_snapshot_is_small_at_any_size(size):
    snapshots = written(states(11, size))
    assert max(len(snapshot.data) for snapshot in snapshots[1:]) < 120


def test_uncompressed_states_stand_alone_and_are_checked():
    snapshots = written(states(3), compress=False)
    assert [one.base_seq for one in snapshots] == [None] * 3
    damaged = snapshots[1]._replace(data=snapshots[1].data[:-1] + b"?")
    with pytest.raises(DamagedSnapshotError, match=r"'s\.000001'"):
        state_bytes(damaged)


def flipped(data, bit):
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_ten_thousand_flipped_bits_are_ten_thousand_errors_that_name_the_snapshot(kind, tmp_path):
    contents = states(20, 300)
    url = "memory://" if kind == "memory" else f"sqlite:///{tmp_path}/sagaz.db"
    storage = stored(url, written(contents))
    damage = damage_memory if kind == "memory" else damage_sqlite
    chance = random.Random(1)
    with damage(storage) as put:
        whole = {one.snapshot_id: one.data for one in drive.now(storage.list_snapshots("s")).items}
        names = sorted(whole)
        for _ in range(10_000):
            name = chance.choice(names)
            put(name, flipped(whole[name], chance.randrange(8 * len(whole[name]))))
            with pytest.raises(DamagedSnapshotError) as caught:
                state_bytes(drive.now(storage.get_snapshot(name)))
            assert caught.value.snapshot_id == name
            assert repr(name) in str(caught.value)
            put(name, whole[name])
        for name, content in zip(names, contents, strict=True):
            assert state_bytes(drive.now(storage.get_snapshot(name))) == content


class damage_memory:  # noqa: N801 - used as a context manager
    def __init__(self, storage):
        self.storage = storage

    def __enter__(self):
        return self.put

    def put(self, name, data):
        items = self.storage._sagas["s"].snapshots.items
        place = next(n for n, one in enumerate(items) if one.snapshot_id == name)
        items[place] = self.storage._snapshots[name] = items[place]._replace(data=data)

    def __exit__(self, *error):
        pass


class damage_sqlite:  # noqa: N801 - used as a context manager
    def __init__(self, storage):
        self.connection = sqlite3.connect(storage.path, isolation_level=None)
        self.connection.execute("PRAGMA synchronous=OFF")

    def __enter__(self):
        return self.put

    def put(self, name, data):
        self.connection.execute("UPDATE saga_snapshots SET data = ? WHERE snapshot_id = ?", (data, name))

    def __exit__(self, *error):
        self.connection.close()


def test_damage_in_a_base_says_what_can_still_be_read():
    snapshots = written(states(6))
    snapshots[3] = snapshots[3]._replace(data=flipped(snapshots[3].data, 250))
    listed = with_bases(snapshots)
    for number in (0, 1, 2):
        state_bytes(listed[number])
    for number in (3, 4, 5):
        with pytest.raises(DamagedSnapshotError) as caught:
            state_bytes(listed[number])
        assert caught.value.snapshot_id == f"s.{number:06}"
        assert caught.value.readable == ("s.000000", "s.000001", "s.000002")
        message = str(caught.value)
        assert "'s.000003'" in message
        assert "'s.000002' can still be read" in message
        assert "\n" not in message


def test_a_missing_base_is_an_error_that_says_what_can_still_be_read():
    listed = with_bases(written(states(6)))
    gone = listed[5]._replace(bases=tuple(base for base in listed[5].bases if base.snapshot_id != "s.000002"))
    with pytest.raises(
        DamagedSnapshotError, match=r"'s.000005' .* one is missing; 's.000001' can still be read"
    ) as caught:
        state_bytes(gone)
    assert caught.value.readable == ("s.000000", "s.000001")
    with pytest.raises(DamagedSnapshotError, match="those before it may still be read"):
        state_bytes(listed[5]._replace(bases=()))


def test_another_writers_snapshots_between_are_passed_over():
    mine = written(states(4), [1, 3, 5, 7], "s")
    others = [one._replace(saga_id="s") for one in written(states(4, 700), [2, 4, 6, 8], "other")]
    both = sorted([*mine, *others], key=lambda one: one.seq)
    listed = with_bases(both)
    assert [state_bytes(one) for one in listed if one.snapshot_id.startswith("s.")] == states(4)


@pytest.mark.parametrize(
    "change",
    [
        {"snapshot_id": "another"},
        {"saga_id": "another"},
        {"saga_name": "another"},
        {"step_name": "another"},
        {"step_index": 9},
        {"seq": 9},
        {"phase": "after"},
        {"status": "failed"},
        {"created_at": T0},
        {"base_seq": 0},
    ],
)
def test_what_stands_beside_the_bytes_is_checked_too(change):
    snapshot = standalone(a_snapshot("s", 1), b"state")
    assert state_bytes(snapshot) == b"state"
    with pytest.raises(DamagedSnapshotError):
        state_bytes(snapshot._replace(**change))


def test_what_an_earlier_release_wrote_does_not_say_when_it_expires():
    snapshot = standalone(a_snapshot("s", 1), b"state")
    before = snapshot._replace(data=b"\x02" + snapshot.data[1:], retention_until=T0)
    assert state_bytes(before) == b"state"
    with pytest.raises(DamagedSnapshotError):
        state_bytes(before._replace(phase="another"))


@pytest.mark.parametrize(
    "data", [b"", b"\x02", b"\x02\x01" + bytes(12), b"\x02\x02" + bytes(12), b"\xc1\x01" + bytes(30)]
)
def test_what_is_no_frame_is_an_error(data):
    with pytest.raises(DamagedSnapshotError):
        state_bytes(a_snapshot("s", 1, data=data))


def test_a_state_as_it_is_needs_no_frame_if_it_is_whole():
    state = encode({"a": 1})
    assert state_bytes(a_snapshot("s", 1, data=state)) == state
    for damaged in (state[:-1], state + b"x", b"\xc1\x02" + state[2:]):
        with pytest.raises(DamagedSnapshotError):
            state_bytes(a_snapshot("s", 1, data=damaged))


def a_bomb(size, **how):
    """Return a snapshot whose checksums are right and that unpacks to so many bytes."""
    from sagaz_core.storage import frames

    parameters = zstandard.ZstdCompressionParameters.from_level(
        19, format=zstandard.FORMAT_ZSTD1_MAGICLESS, write_checksum=False, **how
    )
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj(
        size=size if how.get("write_content_size", True) else -1
    )
    chunk = bytes(MEGABYTE)
    payload = b"".join([*(compressor.compress(chunk) for _ in range(size // MEGABYTE)), compressor.flush()])
    return frames._sealed(a_snapshot("s", 1), frames._KEYFRAME, b"", payload, None)


def test_a_bomb_is_refused_before_it_is_unpacked():
    resource = pytest.importorskip("resource")
    bombs = [a_bomb(1024 * MEGABYTE), a_bomb(65 * MEGABYTE, write_content_size=False)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for bomb in bombs:
        assert len(bomb.data) < 100_000
        with pytest.raises(DamagedSnapshotError, match="is damaged"):
            state_bytes(bomb)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KB


def test_a_frame_that_lies_about_its_size_is_an_error():
    from sagaz_core.storage import frames

    honest = frames._compressed(os.urandom(300), b"")
    for payload in (honest[:-1], honest + b"x", honest[:1] + b"\xff" + honest[2:]):
        with pytest.raises(DamagedSnapshotError, match="is damaged"):
            state_bytes(frames._sealed(a_snapshot("s", 1), frames._KEYFRAME, b"", payload, None))
