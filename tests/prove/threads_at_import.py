"""A module that starts a thread when it is imported, as some clients do: what forks it then may hang for ever."""

from __future__ import annotations

import threading

from mortals import ten_steps as make  # noqa: F401 - it is found here

threading.Thread(target=threading.Event().wait, daemon=True).start()
