"""How output looks: the one place that knows whether a terminal reads it."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TextIO

from rich.cells import cell_len
from rich.console import Console

from electra_flax.errors import escaped
from electra_flax.runtime import progress_bar
from electra_flax.runtime.progress_bar import Bar


def console() -> Console:
    """Return the standard output: plain text, no line broken, where it is no terminal; NO_COLOR takes the colours.

    Brackets and colons are letters, also in tables: names of folders and words hold them. Styles are those of Text.
    """
    return Console(soft_wrap=not sys.stdout.isatty(), highlight=False, markup=False, emoji=False)


def print_line(line: object) -> None:
    """Print one line, whatever names it holds: their line breaks and escapes are shown."""
    print(escaped(line))


def print_rows(text: str) -> None:
    """Print lines of cells: as they are, but a terminal gets what texts hold besides escaped."""
    if sys.stdout.isatty():
        text = "\n".join("\t".join(map(escaped, line.split("\t"))) for line in text.split("\n"))
    print(text)


class OneLine(logging.Formatter):
    """The message; names in it are shown escaped, and the lines that it has itself stay."""

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record.args, tuple):
            record.args = tuple(
                escaped(value) if isinstance(value, str | os.PathLike | Exception) else value for value in record.args
            )
        return record.getMessage()


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    print(json_text(value))


def json_text(value: Any) -> str:
    """Return JSON that the standard output can carry, whatever its encoding."""
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    return json.dumps(value, indent=1, ensure_ascii=not is_utf8)


def progress(
    total: float, what: str, unit: str, *, scaled: bool = False, initial: float = 0, delay: float = 0.0,
    enabled: bool = True,
) -> Bar:  # fmt: skip
    """Return a bar with an ETA on a terminal; elsewhere a line every half minute.

    `unit` is a plural; `scaled`: counts are shown as 1.2M; `delay`: seconds before anything is shown.
    """
    of_terminal = columns if enabled and is_progress_shown() else None
    return Bar(total, what, unit, scaled=scaled, initial=initial, delay=delay, columns=of_terminal)


_is_shown = ContextVar("is_shown", default=True)


@contextmanager
def progress_shown(is_shown: bool) -> Iterator[None]:
    """Show progress inside the `with`, or nothing of it."""
    before = _is_shown.set(is_shown)
    try:
        yield
    finally:
        _is_shown.reset(before)


def is_progress_shown() -> bool:
    return _is_shown.get()


def write_line(line: str) -> None:
    """Write to the standard error, without breaking a bar, or a word at the edge of a terminal."""
    _write(escaped(line))


def _write(text: str) -> None:
    progress_bar.write(fitted(text, columns(sys.stderr)))


def print_text(text: str, indent: int = 2) -> None:
    """Print without breaking a word at the edge of a terminal; `indent` as in `fitted`."""
    print(fitted(text, columns(sys.stdout), indent))


def columns(stream: TextIO) -> int | None:
    """Return how wide the terminal is that reads the stream, or None where none does."""
    if not stream.isatty():
        return None
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given):
        return int(given)
    return os.get_terminal_size(stream.fileno()).columns or 80


def fitted(text: str, width: int | None, indent: int = 2) -> str:
    """Return the text with lines of at most `width` cells, broken between words; as it is where `width` is None.

    They are continued `indent` cells further in than they begin; a word that is longer stays whole.
    """
    if width is None:
        return text
    lines = []
    for line in text.split("\n"):
        begin = " " * (len(line) - len(line.lstrip(" ")) + indent)
        while cell_len(line) > width and (place := _break(line, width)) > 0:
            lines.append(line[:place].rstrip())
            line = begin + line[place:].lstrip(" ")
        lines.append(line.rstrip() if len(line) > len(begin) else line)
    return "\n".join(lines)


def _break(line: str, width: int) -> int:
    """Return at which space to break a line, 0 where there is none.

    The last one within the width, rather one after a comma in its second half, so that a number stays with its name;
    else the first one.
    """
    cells = place = after_comma = 0
    has_begun = False
    for i, letter in enumerate(line):
        if cells > width and place:
            break
        if letter == " " and has_begun:
            place = i
            if line[i - 1] == "," and cells > width / 2:
                after_comma = i
        has_begun |= letter != " "
        cells += cell_len(letter)
    return after_comma or place


class LogHandler(logging.Handler):
    """Log lines on the standard error, as write_line writes them."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(OneLine())

    def emit(self, record: logging.LogRecord) -> None:
        try:
            _write(self.format(record))
        except Exception:
            self.handleError(record)
