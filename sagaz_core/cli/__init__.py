"""The command line: `sagaz`, and `pytest-sagaz`, which is the same."""

from sagaz_core.cli.app import main

__all__ = ["main"]
