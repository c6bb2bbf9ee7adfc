"""How a command ends: the exceptions that are meant, and the exit codes, which are a contract."""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager
from functools import cache
from types import NoneType
from typing import Any, get_args, get_type_hints
from unicodedata import category

EXIT_CODES = {
    0: "done",
    1: "an error that you can fix: the last line says how",
    2: "wrong usage",
    3: "the run failed (a loss that is not finite, damaged data, a step that hangs)",
    70: "something is unavailable (another process, a bucket, a device), or an unexpected error: try the same command "
    "again",
    75: "stopped as asked (SIGTERM, the first Ctrl-C, a preempted spot machine) and saved; the same command continues",
    130: "interrupted by Ctrl-C",
}
UNFORESEEN, INTERRUPTED = 70, 130


class UserError(ValueError):
    """Something the user gave is wrong: one line saying what was given, what was expected and the fix."""

    exit_code = 1


class Unavailable(UserError):
    """What the command needs is away for now (another process, a bucket, the network): try the same command again.

    Caught with what is wrong for good by those who go on without.
    """

    exit_code = UNFORESEEN


class Refusals:
    """What is wrong with what a user gave: raised at once, or kept in `found` where it `collects`."""

    def __init__(self, *, collects: bool = False) -> None:
        self.found: list[UserError] = []
        self._collects = collects

    @contextmanager
    def each(self, name: str = "") -> Iterator[None]:
        """Collect what one check inside its `with` refuses; `name` begins what is said of it."""
        try:
            yield
        except UserError as error:
            named = type(error)(f"{name}{error}")
            if not self._collects or isinstance(error, Unavailable):  # nothing is known of what is away
                raise named from None
            self.found.append(named)


def check(ok: bool, message: str) -> None:
    """Raise UserError where it is not so."""
    if not ok:
        raise UserError(message)


def check_numbers(values: object, section: str = "") -> None:
    """Raise UserError for the first field of a dataclass whose value lies outside the range of its annotation.

    One that is annotated with None too may be None.
    """
    cls: type = type(values)
    for name, allowed in ranges(cls).items():
        value = getattr(values, name)
        if value not in allowed and not (value is None and NoneType in get_args(get_type_hints(cls)[name])):
            raise UserError(f"{f'{section}.' if section else ''}{name}={short(value)}: expected {allowed}")


@cache
def ranges(cls: type) -> dict[str, Container[Any]]:
    """Return what the fields that are annotated with one must lie in (config/ranges.py)."""
    return {
        name: each
        for name, kind in get_type_hints(cls, include_extras=True).items()
        for each in getattr(kind, "__metadata__", ())
        if isinstance(each, Container)
    }


class RunError(RuntimeError):
    """The run itself failed (non-finite loss, data damaged under way): one line."""

    exit_code = 3


class Preempted(RuntimeError):
    """The run was asked to stop and has saved; the same command continues."""

    exit_code = 75


def escaped(text: object) -> str:
    """Return `text` on one line: what would break it, colour the terminal or cannot be printed is shown by its code."""
    return "".join(
        letter if letter.isprintable() or category(letter) == "Zs" else _code(letter) for letter in str(text)
    )


def short(value: object) -> str:
    """Return a value for an error line, cut where it is long."""
    try:
        text = str(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text):,} characters)"


def _code(letter: str) -> str:
    return letter.encode("unicode_escape").decode()


class Problem(Exception):
    """Something failed in a way that is tried again, or lived with; its words say all."""


def reason(error: Exception) -> str:
    """Describe an error of another library on one line."""
    if isinstance(error, Problem):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


_NOTE = "traceback: "


def note_traceback(error: BaseException, where: object) -> None:
    """Have the line that `error` ends with name this place, where its traceback is kept already."""
    error.add_note(f"{_NOTE}{where}")


def traceback_note(error: BaseException) -> str:
    """Return the place that note_traceback named, or ""."""
    notes: list[str] = getattr(error, "__notes__", [])
    return next((note.removeprefix(_NOTE) for note in notes if note.startswith(_NOTE)), "")
