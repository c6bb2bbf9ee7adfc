"""The time to the first step: programs compiled by an earlier start, and where the rest went."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import jax

log = logging.getLogger("electra_flax")


def use_compilation_cache(folder: str) -> None:
    """Keeps compiled programs in a folder, local or gs://, and takes them from there; "" keeps none.

    Whoever may write there can run code here: it must not be shared with strangers.
    """
    if not folder:
        return
    jax.config.update("jax_compilation_cache_dir", folder if "://" in folder else str(Path(folder).expanduser()))


class StartClock:
    """Says when the first step was done, and how much of that time went where."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._hits = 0
        jax.monitoring.register_event_listener(self._listen)

    def _listen(self, event: str, **unused: object) -> None:
        self._hits += event == "/jax/compilation_cache/cache_hits"

    def report(self, step_seconds: float) -> None:
        """Logs, after the first step has finished; `step_seconds` is what it took, compilation included."""
        jax.monitoring.unregister_event_listener(self._listen)
        log.info(
            "first step done %.0f s after the start, %.0f s of them compiling and taking it; %s",
            time.perf_counter() - self._started, step_seconds,
            f"{self._hits} programs came from the compilation cache" if self._hits else "all programs were compiled",
        )  # fmt: skip
