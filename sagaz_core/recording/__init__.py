"""One saga's portable history: a JSON file that a person can read, compare and check in."""

from sagaz_core.recording.base import Recording

__all__ = ["Recording"]
