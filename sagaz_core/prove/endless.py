"""What is said of a call that never ends."""

from __future__ import annotations

from sagaz_core.errors import SagazError
from sagaz_core.prove.verdict import Finding, Verdict


class NeverEndsError(SagazError):
    """A call never ends; the message names it (`call`)."""

    advice = "give the step a timeout, or fewer retries"

    def __init__(self, message: str, call: str = "", step: str | None = None) -> None:
        super().__init__(message)
        self.call = call
        self.step = step

    @property
    def finding(self) -> Finding:
        """What is said of a run that was given up for it."""
        return Finding(Verdict.ENDLESS, self.step, str(self), self.advice)


class IgnoresCancellationError(NeverEndsError):
    """A call never ends, and goes on when it is cancelled, so that a timeout would not end it."""

    advice = "let asyncio.CancelledError out of the step (clean up, and raise it again): else no timeout ends it"


class NeverYieldsError(NeverEndsError):
    """A step kept the event loop for itself for too long; the message names it, and says what to do."""

    advice = ""
