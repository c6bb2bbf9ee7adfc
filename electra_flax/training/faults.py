"""When to save, and what to do about steps that are not finite: decisions of the loop, without its arrays."""

from __future__ import annotations

import time
from collections.abc import Callable

_FIRST_RETRY_SECONDS = 30.0


class SaveClock:
    """When the last checkpoint is too old. After a failed save it asks again in 30 s, 60 s, and so on."""

    def __init__(self, minutes: float, now: Callable[[], float] = time.monotonic) -> None:
        self._interval, self._now = 60 * minutes, now
        self._failures = 0
        self._next = now() + self._interval

    def is_due(self) -> bool:
        return self._now() >= self._next

    def saved(self) -> None:
        self._failures = 0
        self._next = self._now() + self._interval

    def failed(self) -> None:
        self._next = self._now() + min(self._interval, _FIRST_RETRY_SECONDS * 2**self._failures)
        self._failures += 1


class SkippedSteps:
    """Counts steps in a row that were not finite."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._gave_up_at = -1
        self.first = 0
        self.in_a_row = 0

    def add(self, step: int, was_skipped: bool) -> None:
        if was_skipped and not self.in_a_row:
            self.first = step
        self.in_a_row = self.in_a_row + 1 if was_skipped else 0

    @property
    def too_many(self) -> bool:
        return self.in_a_row > self._limit

    def go_back(self, step: int) -> bool:
        """Return whether going back from `step` may help: not the second time at the same place."""
        may_help = self.first > self._gave_up_at
        self._gave_up_at = step
        self.in_a_row = 0
        return may_help
