"""Bytes as a person reads them, and back: a number, a text, or the bytes if they are neither."""

from __future__ import annotations

_LONGEST_NUMBER = 18  # digits: what fits into 64 bits, as the codec's numbers must


def readable(data: bytes) -> int | str | bytes:
    """Return `3` for `b"3"`, `"x"` for `b"x"`, and bytes that are no UTF-8 as they are. `data_of` is the inverse."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return data
    digits = text[1:] if text.startswith("-") else text
    if digits.isascii() and digits.isdigit() and len(digits) <= _LONGEST_NUMBER and str(int(text)) == text:
        return int(text)
    return text


def data_of(value: float | str | bytes) -> bytes:
    """Return the bytes that `readable` was given."""
    return value if isinstance(value, bytes) else str(value).encode()


def key_of(data: bytes) -> str | bytes:
    """Return a key as text, or as it is when it is none."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data
