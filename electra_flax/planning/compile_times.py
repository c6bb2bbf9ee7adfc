"""What plan shows while it works: which step it is at, for how long, and how long it took here before.

The compiler tells nothing of how far it is. So nothing is foretold but from a compile that was timed on this machine.
"""

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import NamedTuple

from electra_flax.errors import UserError
from electra_flax.files import recall, write_whole
from electra_flax.formats import duration
from electra_flax.runtime.console import columns, is_progress_shown
from electra_flax.runtime.progress_bar import Drawn

log = logging.getLogger("electra_flax")

_FILE = "compile_times.json"
_DELAY = 5.0  # seconds: a step that is shorter shows nothing


class Timed(NamedTuple):
    """A compile that was timed."""

    seconds: float
    day: str


class _Clock(Drawn):
    """The time that has passed and, where one is known, what is left of the time that it took before.

    `is_kept` is set to False where the time says nothing of the next one.
    """

    def __init__(self, what: str, before: float | None) -> None:
        super().__init__(_DELAY, columns if is_progress_shown() else None)
        self.is_kept = True
        self._what, self._before, self._started = what, before, time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def line(self, width: int | None) -> str:
        return said(self._what, self.seconds, self._before, width)


def said(what: str, seconds: float, before: float | None, width: int | None = None) -> str:
    """Return the line about a step that goes on for so long; a narrow terminal gets the first parts of it."""
    parts = [f"{what}: {duration(seconds)} so far"]
    if before is not None and seconds < before:
        parts += [f"about {duration(before - seconds)} to go", f"{duration(before)} last time"]
    elif before is not None:
        parts += [f"longer than last time ({duration(before)})"]
    while width is not None and len(", ".join(parts)) >= width and len(parts) > 1:
        parts.pop()
    return ", ".join(parts)


@contextmanager
def stage(what: str, before: float | None = None) -> Iterator[_Clock]:
    """Show for how long a step goes on, from a thread: the compiler keeps this one."""
    clock, done = _Clock(what, before), threading.Event()

    def tick() -> None:
        while not done.wait(0.5):
            clock.refresh()

    ticker = threading.Thread(target=tick, daemon=True)
    with clock:
        ticker.start()
        try:
            yield clock
        finally:
            done.set()
            ticker.join()


@contextmanager
def timed(what: str, like: str, folder: Path) -> Iterator[_Clock]:
    """Show a step as `stage` does, and remember in a folder how long programs `like` this take."""
    known = recall(folder / _FILE, dict[str, Timed]) or {}
    before = known.get(like)
    took = f"{like}: {duration(before.seconds)} here on {before.day}" if before else f"{like}: not timed here yet"
    log.info("%s (%s)", what, took)
    with stage(what, before.seconds if before else None) as clock:
        yield clock
        seconds = clock.seconds
    log.info("%s: done in %s", what, duration(seconds))
    if not clock.is_kept:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        known[like] = Timed(round(seconds, 1), date.today().isoformat())
        write_whole(folder / _FILE, json.dumps(known, indent=1) + "\n")
    except (OSError, UserError):  # only what the next time foretells is lost
        return
