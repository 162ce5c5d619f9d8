"""Proving rollback: runs under fault plans, and the judgement of how they end."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from sagaz_core.explore.explorer import explore

        return explore(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
