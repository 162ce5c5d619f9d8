"""Keys of objects: safe in any bucket, and for sagas in the order of their ids, so that a listing comes in order."""

from __future__ import annotations

from base64 import b64decode, b64encode
from hashlib import blake2b

SAGAS = "sagas"
SNAPSHOTS = "snapshots"
_STANDARD = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_ORDERED = b"-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"
_ENCODE = bytes.maketrans(_STANDARD, _ORDERED)
_DECODE = bytes.maketrans(_ORDERED, _STANDARD)
_KEPT = 480
STEM = _KEPT * 8 // 6
"""The characters of a key that are in the order of ids; a key is 1,024 bytes at most, an id may be of 1,020."""


def ordered(text: str) -> str:
    """Return at most `STEM` safe characters, in the order of the texts by code point."""
    return b64encode(text.encode()[:_KEPT]).rstrip(b"=").translate(_ENCODE).decode()


def saga_key(saga_id: str) -> str:
    """Return the key of the saga's object."""
    stem = ordered(saga_id)
    return f"{SAGAS}/{stem}" if len(saga_id.encode()) <= _KEPT else f"{SAGAS}/{stem}.{hashed(saga_id)}"


def saga_of_key(key: str) -> str | None:
    """Return the id of the saga whose key it is, `None` when the id is too long to be in it."""
    name = key.rpartition("/")[2]
    if "." in name:
        return None
    return b64decode(name.encode().translate(_DECODE) + b"=" * (-len(name) % 4)).decode()


def hashed(text: str) -> str:
    """Return what stands for the text in a key where order is of no use."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def snapshot_key(snapshot_id: str) -> str:
    """Return the key of the object that says which saga a snapshot is of."""
    return f"{SNAPSHOTS}/{hashed(snapshot_id)}"


def own_name(snapshot_id: str, digest: bytes) -> str:
    """Return the name, in the folder of its saga, of the object with the data of a large snapshot that needs no claim.

    Other data have another name: so of two that write an id at once neither changes what the other has written.
    """
    return hashed(digest.hex() + snapshot_id)


def data_folder(saga_id: str) -> str:
    """Return the prefix of the objects with a saga's larger data."""
    return f"data/{hashed(saga_id)}"


def replay_key(replay_id: str) -> str:
    """Return the key of a replay's record."""
    return f"replays/{hashed(replay_id)}"


def replay_marks(saga_id: str) -> str:
    """Return the prefix of the empty objects that name the replays of an original."""
    return f"replays-of/{hashed(saga_id)}"
