"""Progress on the standard error: a line that is drawn anew on a terminal, elsewhere a line every half minute."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from rich.cells import cell_len

from electra_flax import formats

_PLAIN_SECONDS = 30.0  # between two lines where no terminal reads them
_DRAWN_SECONDS = 0.5
_SURE_UPDATES, _SURE_SHARE = 100, 0.01  # after one of which a rate foretells something
_BAR_CELLS = (10, 30)

_lock = threading.RLock()
_drawn: Drawn | None = None  # the one that a terminal shows


class Drawn:
    """A line about what goes on. Nothing is shown where `columns` is None.

    `columns` tells how wide the terminal is that reads a stream (None: no terminal reads it).
    """

    def __init__(
        self, delay: float, columns: Callable[[TextIO], int | None] | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock, self._columns = clock, columns
        self._next = clock() + delay if columns and columns(sys.stderr) else clock() + _PLAIN_SECONDS
        self._cells = 0  # that are drawn now

    def line(self, width: int | None) -> str:
        """Return what is shown, in fewer than `width` cells."""
        raise NotImplementedError

    def refresh(self) -> None:
        """Show it, if the time has come."""
        if self._columns and (now := self._clock()) >= self._next:
            self._show(now)

    def close(self) -> None:
        global _drawn
        with _lock:
            if _drawn is self:
                self.clear()
                _drawn = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _show(self, now: float) -> None:
        global _drawn
        width = self._columns(sys.stderr) if self._columns else None
        if width is None:
            self._next = now + _PLAIN_SECONDS
            print(self.line(None), file=sys.stderr, flush=True)
            return
        self._next = now + _DRAWN_SECONDS
        with _lock:
            _drawn = self
            self.draw()

    def draw(self) -> None:
        """Draw it on the terminal, over what is drawn there."""
        line = self.line(self._columns(sys.stderr) if self._columns else None)
        cells = cell_len(line)
        print(f"\r{line}{' ' * (self._cells - cells)}", end="", file=sys.stderr, flush=True)
        self._cells = cells

    def clear(self) -> None:
        """Take it from the terminal."""
        print(f"\r{' ' * self._cells}\r", end="", file=sys.stderr, flush=True)
        self._cells = 0


class Bar(Drawn):
    """How far something is, how fast it goes and how long it takes. Bytes ("B") have units of their own."""

    def __init__(
        self, total: float, what: str, unit: str, *, scaled: bool, initial: float, delay: float,
        columns: Callable[[TextIO], int | None] | None, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        super().__init__(delay, columns, clock)
        self.total, self.n = total, initial
        self._what, self._scaled, self._unit = what, scaled, unit
        self._note = ""
        self._from = self._since = clock(), initial  # where counting began; the first update, from which rates count
        self._updates = 0

    def update(self, n: float = 1) -> None:
        """Count so much more as done."""
        self.n += n
        self._updates += 1
        now = self._clock()
        if self._updates == 1:  # what came before it, a file that is opened or a first step, comes once
            self._since = now, self.n
        self.refresh()

    def go_back(self, n: float) -> None:
        """Go on from `n`."""
        self.n, self._updates = n, 0
        self._from = self._since = self._clock(), n

    def note(self, text: str) -> None:
        """Show a text behind the numbers from the next update on."""
        self._note = text

    def line(self, width: int | None) -> str:
        """Return what is shown; what matters least is left out where it does not fit."""
        share = min(self.n / self.total, 1.0) if self.total else 1.0
        head = f"{self._what} {share:.0%}"
        counts = f"{self._count(self.n)} of {self._count(self.total)}{'' if self._unit == 'B' else f' {self._unit}'}"
        rate, left = self._rate(), ""
        if rate:
            left = f"{formats.duration(max(self.total - self.n, 0) / rate)} to go"
        parts = [head, counts, left, self._speed(rate) if rate else "", self._note]
        while True:
            line = ", ".join(filter(None, parts))
            room = width - 1 - cell_len(line) if width is not None else 0
            if room >= 0 or len(parts) == 1:
                break
            parts.pop()
        if room < _BAR_CELLS[0] + 3:
            return line
        cells = min(room - 3, _BAR_CELLS[1])
        filled = int(share * cells)
        return line.replace(head, f"{head} [{'#' * filled}{'.' * (cells - filled)}]", 1)

    def _rate(self) -> float | None:
        """Return how much is done in a second, or None while it is not known."""
        seconds, count = self._clock() - self._since[0], self.n - self._since[1]
        # Of a few updates the time is chance, unless they are a good part of all.
        is_sure = self._updates > _SURE_UPDATES or count >= _SURE_SHARE * (self.total - self._from[1])
        return count / seconds if is_sure and count > 0 and seconds > 0 else None

    def _speed(self, rate: float) -> str:
        if self._unit == "B":
            return f"{formats.size(rate)}/s"
        if self._scaled:
            return f"{formats.scaled(rate)} {self._unit}/s"
        if rate < 1:
            return f"{f'{1 / rate:.3g} s' if rate > 0.01 else formats.duration(1 / rate)} each"
        return formats.rate(rate, self._unit)

    def _count(self, number: float) -> str:
        if self._unit == "B":
            return formats.size(number)
        return formats.scaled(number) if self._scaled else f"{number:,.0f}"


def write(line: str) -> None:
    """Write a line on the standard error, above what is drawn there."""
    with _lock:
        if _drawn is not None:
            _drawn.clear()
        print(line, file=sys.stderr, flush=True)
        if _drawn is not None:
            _drawn.draw()
