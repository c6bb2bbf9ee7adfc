"""What ends a run from outside: SIGTERM, Ctrl-C, a machine that is taken away, and a step that never ends."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from electra_flax.errors import INTERRUPTED
from electra_flax.formats import duration

log = logging.getLogger("electra_flax")

_POLL_SECONDS = 5.0

_SAVES = "saving, then stopping (Ctrl-C again: stop at once)"
_NOTHING_TO_SAVE = "stopping before the next step, nothing is lost (Ctrl-C again: stop at once)"
_AT_ONCE = "stopped at once (Ctrl-C); the same command continues from the last checkpoint"


class Interruption:
    """Inside its `with`, SIGTERM and the first Ctrl-C do not end the process but set `requested`; the second does.

    Spot capacity gives some 30 s of notice: through SIGTERM, or only in the machine's metadata, which are asked every
    few seconds where `metadata_host` names their server. `saves` says what the first Ctrl-C is answered with. One that
    is not entered never asks to stop, Ctrl-C is Python's, and the process is not the run's to end.
    """

    def __init__(self, metadata_host: str | None) -> None:
        self.requested = self.saves = self._is_entered = False
        self._host = metadata_host
        self._before: dict[signal.Signals, Any] = {}
        self._ended = threading.Event()

    def __enter__(self) -> Interruption:
        self._is_entered = True
        if _is_main_thread():
            # Python runs handlers between two lines of the main thread, which a compiler or a device that hangs may
            # keep for minutes; the number of the signal is written to this socket at once.
            self._heard, self._told = socket.socketpair()
            self._told.setblocking(False)
            self._wakeup_before = signal.set_wakeup_fd(self._told.fileno(), warn_on_full_buffer=False)
            self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
            self._listener = threading.Thread(target=self._listen, daemon=True)
            self._listener.start()
        if self._host:
            threading.Thread(target=self._poll, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_entered = False
        self._ended.set()
        for number, before in self._before.items():
            signal.signal(number, before)
        if self._before:
            signal.set_wakeup_fd(self._wakeup_before)
            self._told.close()  # which ends the listener, after what it was told
            self._listener.join()

    def watchdog(self, minutes: float, report: Path) -> Watchdog:
        """Return that of a run inside the `with`; outside, one that watches nothing."""
        return Watchdog(minutes, report, os._exit if self._is_entered else None)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def _listen(self) -> None:
        """Answer each Ctrl-C, whatever the main thread does."""
        asked = 0
        while numbers := self._heard.recv(16):
            self.requested = True
            for _ in range(numbers.count(signal.SIGINT)):
                asked += 1
                if asked > 1:
                    _write(_AT_ONCE)
                    os._exit(INTERRUPTED)  # an exception could be caught, or wait for a device that hangs
                _write(_SAVES if self.saves else _NOTHING_TO_SAVE)
        self._heard.close()

    def _poll(self) -> None:
        url = f"http://{self._host}/computeMetadata/v1/instance/preempted"
        request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy reaches it
        while not self._ended.wait(_POLL_SECONDS):
            try:
                with direct.open(request, timeout=_POLL_SECONDS) as answer:
                    if answer.read().strip() == b"TRUE":
                        log.warning("this host is being preempted")
                        self.requested = True
                        return
            except OSError:
                continue  # a server that is away for a moment; SIGTERM still comes


def metadata_host() -> str | None:
    """Return the metadata server of a Google machine: where its libraries are pointed to, else the usual one of VMs."""
    given = os.environ.get("GCE_METADATA_HOST") or os.environ.get("GCE_METADATA_IP")
    if given:
        return given
    product = Path("/sys/class/dmi/id/product_name")
    is_google = product.exists() and product.read_text().startswith("Google")
    return "metadata.google.internal" if is_google else None


def _write(line: str) -> None:
    """Write, not print: the buffer of the standard error may be locked by a thread that waits."""
    begin = "\n" if os.isatty(2) else ""  # a terminal's line holds a bar, and ^C
    os.write(2, f"{begin}electra-flax: {line}\n".encode())


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


class Watchdog:
    """Ends the process with exit code 3 when nothing was reported for `minutes`: a hung collective never returns.

    Where every thread was stuck is written to `report`. Without an `end` it watches nothing.
    """

    def __init__(self, minutes: float, report: Path, end: Callable[[int], None] | None) -> None:
        self._seconds = 60 * minutes
        self._report = report
        self._end = end
        self._last = time.monotonic()
        self._what = "the start"
        self._ended = threading.Event()

    def __enter__(self) -> Watchdog:
        if self._end is not None:
            threading.Thread(target=self._watch, args=[self._end], daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()

    def alive(self, what: str) -> None:
        """Note that something was finished; `what` comes next, for the message."""
        self._last, self._what = time.monotonic(), what

    def _watch(self, end: Callable[[int], None]) -> None:
        while not self._ended.wait(min(1.0, self._seconds / 10)):
            silent = time.monotonic() - self._last
            if silent > self._seconds:
                where = f"in {self._report}"
                try:
                    with self._report.open("w", encoding="utf-8") as file:
                        faulthandler.dump_traceback(file, all_threads=True)
                except OSError:  # a full disk: what hangs must end all the same
                    faulthandler.dump_traceback(all_threads=True)
                    where = "above"
                print(
                    f"\nelectra-flax: error: no progress for {duration(silent)} in {self._what} (a device hangs, or "
                    f"another process is gone; limit: training.hang_minutes): the stack traces are {where}; the same "
                    "command continues from the last checkpoint",
                    file=sys.stderr,
                    flush=True,
                )
                end(3)
                return
