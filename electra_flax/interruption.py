"""What ends a run from outside: SIGTERM, Ctrl-C, a machine that is taken away, and a step that never ends."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from electra_flax.errors import INTERRUPTED

log = logging.getLogger("electra_flax")

_POLL_SECONDS = 5.0


class Interruption:
    """Inside its `with`, SIGTERM and the first Ctrl-C do not end the process but set `requested`; the second does.

    Spot capacity gives some 30 s of notice: through SIGTERM, or only in the machine's metadata, which are asked every
    few seconds where `metadata_host` names their server.
    """

    def __init__(self, metadata_host: str | None) -> None:
        self.requested = self._is_second_ctrl_c = False
        self._host = metadata_host
        self._before: dict[signal.Signals, Any] = {}
        self._ended = threading.Event()

    def __enter__(self) -> Interruption:
        handlers = {signal.SIGTERM: self._receive, signal.SIGINT: self._receive_ctrl_c}
        if _is_main_thread():
            self._before = {number: signal.signal(number, do) for number, do in handlers.items()}
        if self._host:
            threading.Thread(target=self._poll, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        for number, before in self._before.items():
            signal.signal(number, before)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def _receive_ctrl_c(self, number: int, frame: FrameType | None) -> None:
        if self._is_second_ctrl_c:
            os._exit(INTERRUPTED)  # an exception could be caught, or wait for a device that hangs
        self._is_second_ctrl_c = self.requested = True
        # Not print: the signal may come while the buffer of the standard error is being written.
        os.write(2, b"\nelectra-flax: saving and ending (Ctrl-C); again to end at once\n")

    def _poll(self) -> None:
        url = f"http://{self._host}/computeMetadata/v1/instance/preempted"
        request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
        while not self._ended.wait(_POLL_SECONDS):
            try:
                with urllib.request.urlopen(request, timeout=_POLL_SECONDS) as answer:
                    if answer.read().strip() == b"TRUE":
                        log.warning("this machine is being taken away (preempted)")
                        self.requested = True
                        return
            except OSError:
                continue  # a server that is away for a moment; SIGTERM still comes


def metadata_host() -> str | None:
    """The metadata server of a Google machine: where its libraries are pointed to, else the usual one on a VM."""
    given = os.environ.get("GCE_METADATA_HOST") or os.environ.get("GCE_METADATA_IP")
    if given:
        return given
    product = Path("/sys/class/dmi/id/product_name")
    is_google = product.exists() and product.read_text().startswith("Google")
    return "metadata.google.internal" if is_google else None


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


class Watchdog:
    """Ends the process with exit code 3 when nothing was reported for `minutes`: a hung collective never returns.

    Where every thread was stuck is written to `report`.
    """

    def __init__(self, minutes: float, report: Path, end: Callable[[int], None] = os._exit) -> None:
        self._seconds = 60 * minutes
        self._report = report
        self._end = end
        self._last = time.monotonic()
        self._what = "the start"
        self._ended = threading.Event()

    def __enter__(self) -> Watchdog:
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()

    def alive(self, what: str) -> None:
        """Something was finished; `what` comes next, for the message."""
        self._last, self._what = time.monotonic(), what

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self._seconds / 10)):
            silent = time.monotonic() - self._last
            if silent > self._seconds:
                with self._report.open("w", encoding="utf-8") as file:
                    faulthandler.dump_traceback(file, all_threads=True)
                print(
                    f"\nelectra-flax: error: nothing happened for {silent / 60:,.1f} minutes in {self._what} (a hung "
                    f"device or another process that is gone; training.hang_minutes): where it hung is in "
                    f"{self._report}; the same command continues from the last checkpoint",
                    file=sys.stderr,
                    flush=True,
                )
                self._end(3)
                return
