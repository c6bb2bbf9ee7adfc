"""Numbers and the ranges they must lie in: of the fields of a dataclass, and of a command's flags.

A field is declared with its range: `seed: Annotated[int, Range(0, 2**32 - 1)] = 0`; `check_numbers` in __post_init__
holds every way in (files, overrides, a checkpoint's configuration) to it; a flag is declared the same
(runtime/flags.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeVar, get_type_hints

from electra_flax.errors import UserError

Number = TypeVar("Number", int, float)

MOST_INT32 = 2**31 - 1  # what a counter on a device can hold
MOST_UINT32 = 2**32 - 1  # what a random key can be made of


@dataclass(frozen=True, repr=False)
class Range:
    """Numbers from `least` to `most`; `ends` are those of an interval: "(" and ")" leave the end itself out."""

    least: float
    most: float
    ends: Literal["[]", "(]", "[)", "()"] = "[]"
    also: int | None = None
    """One number outside that has a meaning of its own."""

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, int | float):
            return False
        return value == self.also or (  # NaN lies in none
            (self.least <= value if self.ends[0] == "[" else self.least < value)
            and (value <= self.most if self.ends[1] == "]" else value < self.most)
        )

    def __str__(self) -> str:
        least, most = _shown(self.least), _shown(self.most)
        if self.ends == "[]":
            text = f"{least} to {most}"
        else:
            text = (
                f"{'at least' if self.ends[0] == '[' else 'more than'} {least} and "
                f"{'at most' if self.ends[1] == ']' else 'less than'} {most}"
            )
        return text if self.also is None else f"{self.also}, or {text}"

    __repr__ = __str__  # so that --help shows it


def check_numbers(values: object, section: str = "") -> None:
    """Raise UserError for the first field of a dataclass whose value lies outside the Range of its annotation."""
    cls: type = type(values)
    for name, allowed in ranges(cls).items():
        value = getattr(values, name)
        if value not in allowed:
            raise UserError(f"{f'{section}.' if section else ''}{name}={short(value)}: expected {allowed}")


@cache
def ranges(cls: type) -> dict[str, Range]:
    """Return the ranges of the fields that have one."""
    return {
        name: each
        for name, kind in get_type_hints(cls, include_extras=True).items()
        for each in getattr(kind, "__metadata__", ())
        if isinstance(each, Range)
    }


def in_range(kind: type[Number], allowed: Range) -> Callable[[str], Number]:
    """Return a `type` for argparse: a number within a Range.

    What is none is an error of usage that says what is expected.
    """

    def parse(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or value not in allowed:
            raise argparse.ArgumentTypeError(
                f"{short(text)}: expected a {'whole ' if kind is int else ''}number, {allowed}"
            )
        return value

    return parse


def check(ok: bool, message: str) -> None:
    """Raise UserError where it is not so."""
    if not ok:
        raise UserError(message)


def short(value: object) -> str:
    """Return a value for an error line, cut where it is long."""
    try:
        text = str(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text):,} characters)"


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:g}"
