"""Numbers and the ranges they must lie in: of the fields of a dataclass, and of a command's flags.

A field is declared with its range: `seed: Annotated[int, Range(0, 2**32 - 1)] = 0`; `check_numbers` (errors.py) in
__post_init__ holds every way in (files, overrides, a checkpoint's configuration) to it; a flag is declared the same
(runtime/flags.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

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


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:g}"


BelowOne = Annotated[float, Range(0, 1, "[)")]
# Within what the counters and random keys of a device can hold.
Size = Annotated[int, Range(1, 2**20)]
Batch = Annotated[int, Range(1, 2**24)]
Steps = Annotated[int, Range(1, MOST_INT32)]
StepsOrZero = Annotated[int, Range(0, MOST_INT32)]
Seed = Annotated[int, Range(0, MOST_UINT32)]
Minutes = Annotated[float, Range(0, 10**6, "(]")]
Weight = Annotated[float, Range(0, 10**6)]
Axis = Annotated[int, Range(1, 2**16, also=-1)]
