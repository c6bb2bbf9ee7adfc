"""How output looks: the one place that knows whether a terminal reads it."""

from __future__ import annotations

import json
import sys
import time
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from tqdm import tqdm

_PLAIN_SECONDS = 30.0  # between two lines of progress where no terminal reads them


def console() -> Console:
    """The standard output: plain text, no line broken, where it is no terminal; NO_COLOR takes the colours."""
    return Console(soft_wrap=not sys.stdout.isatty(), highlight=False)


def print_json(value: Any) -> None:
    """To the standard output."""
    print(json_text(value))


def json_text(value: Any) -> str:
    """JSON that the standard output can carry, whatever its encoding."""
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    return json.dumps(value, indent=1, ensure_ascii=not is_utf8)


def progress(
    total: float, what: str, unit: str = "", *, scaled: bool = False, initial: float = 0, delay: float = 0.0,
    enabled: bool = True,
) -> Any:  # fmt: skip
    """A bar with an ETA on a terminal; elsewhere a line every half minute. Has `update(n)`, `n`, `close`, `with`.

    `scaled`: counts are shown as 1.2M; `delay`: seconds before anything is shown.
    """
    if enabled and not sys.stderr.isatty():
        return PlainProgress(total, what, unit, scaled=scaled, initial=initial)
    return tqdm(
        total=total, desc=what, unit=unit, unit_scale=scaled, initial=initial, delay=delay, dynamic_ncols=True,
        mininterval=0.5, disable=not enabled,
    )  # fmt: skip


def write_line(line: str) -> None:
    """A line on the standard error that does not break a bar."""
    tqdm.write(line, file=sys.stderr)


class PlainProgress:
    """A line of progress every half minute, without escapes and carriage returns."""

    def __init__(
        self, total: float, what: str, unit: str, *, scaled: bool = False, initial: float = 0,
        file: TextIO | None = None,
    ) -> None:  # fmt: skip
        self.total, self.n = total, initial
        self._what, self._unit, self._scaled, self._initial = what, unit, scaled, initial
        self._file = file
        self._postfix = ""
        self._begin = self._last = time.monotonic()

    def update(self, n: float = 1) -> None:
        self.n += n
        now = time.monotonic()
        if now - self._last >= _PLAIN_SECONDS:
            self._last = now
            line = tqdm.format_meter(
                self.n, self.total, now - self._begin, ncols=0, prefix=self._what, unit=self._unit,
                unit_scale=self._scaled, initial=self._initial, postfix=self._postfix,
            )  # fmt: skip
            print(line, file=self._file or sys.stderr, flush=True)

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        self._postfix = text

    def refresh(self) -> None:
        return

    def close(self) -> None:
        return

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
