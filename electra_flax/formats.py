"""How numbers and names look where people read them. Files for programs keep every digit and the whole path."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence

_SCALE = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_ROUNDS_UP = 0.9995  # of a factor: from there three digits would show 1,000 of the smaller unit
# Last parts of a path that say nothing about a model or a run.
_COMMON = frozenset({
    "checkpoints", "data", "discriminator", "export", "generator", "model", "models", "out", "output", "run", "seeds",
    "shards", "workdir",
})  # fmt: skip


def counted(number: int, things: str) -> str:
    """Return `1,200 files`, `1 file`; `things` is a plural that ends in s."""
    return f"{number:,} {things.removesuffix('s') if number == 1 else things}"


def scaled(number: float) -> str:
    """Return a large count in three digits: `1.78M`."""
    for factor, letter in _SCALE:
        if number >= _ROUNDS_UP * factor:
            count = number / factor
            return f"{f'{count:.3g}' if count < 999.5 else f'{count:,.0f}'}{letter}"
    return f"{number:.0f}"


def size(num_bytes: float) -> str:
    """Return bytes of files and memory as `60.6 kB`: in powers of 1,000."""
    shown = scaled(num_bytes)
    return f"{shown[:-1]} {shown[-1]}B" if shown[-1].isalpha() else f"{shown} B"


def device_memory(num_bytes: float) -> str:
    """Return bytes of a device's memory as its compiler states them: `15.48 GiB`."""
    return f"{num_bytes / 2**30:.2f} GiB"


def duration(seconds: float) -> str:
    """Return `7 s`, `4 min 12 s`, `3 h 20 min` or `9 days 4 h`: two units at most."""
    whole = round(seconds)
    for (unit, name), (smaller, below) in (((86_400, "days"), (3600, "h")), ((3600, "h"), (60, "min")),
                                           ((60, "min"), (1, "s"))):  # fmt: skip
        if whole >= unit:
            count, rest = divmod(whole, unit)
            first = counted(count, name) if name == "days" else f"{count} {name}"
            return f"{first} {rest // smaller} {below}" if rest >= smaller else first
    return f"{whole} s"


def number(value: float) -> str:
    """Return a measured number in four digits: `6.965`, `14,710`; in two where it is tiny: `9.8e-07`."""
    if not math.isfinite(value):
        return f"{value}"
    if abs(value) >= 999.95:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.2g}"


def shown(value: object) -> str:
    """Return a number as `number` does, anything else as its text."""
    return number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def rate(per_second: float, things: str) -> str:
    """Return `14,710 tokens/s`, `4.37 steps/s`."""
    return f"{per_second:,.0f} {things}/s" if per_second >= 100 else f"{per_second:.3g} {things}/s"


def labels(places: Sequence[str]) -> list[str]:
    """Return for each model or run the end of its path that tells it from the others: the name of its row in a table.

    Ends that say nothing (`export`, `run`) bring the folder before them; a place that is there twice has a number.
    """
    used = {parts: _telling(parts) for parts in map(_parts, places)}
    while True:
        ends = {parts: "/".join(parts[-count:]) for parts, count in used.items()}
        met = Counter(ends.values())
        alike = [parts for parts, end in ends.items() if met[end] > 1 and used[parts] < len(parts)]
        if not alike:
            break
        used |= {parts: used[parts] + 1 for parts in alike}
    found = [ends[_parts(place)] for place in places]
    times = Counter(found)
    return [f"{label} ({found[: i + 1].count(label)})" if times[label] > 1 else label for i, label in enumerate(found)]


def _parts(place: str) -> tuple[str, ...]:
    """Return the folders of a path, of gs:// or of a source such as hf:OWNER/NAME."""
    kind, colon, rest = place.partition(":")
    inner = rest if colon and kind in ("hf", "tf1", "orbax", "gs") else place
    parts = tuple(part for part in inner.split("/") if part not in ("", "."))
    return parts or (os.path.basename(os.path.abspath(inner)) or inner,)


def _telling(parts: Sequence[str]) -> int:
    count = 1
    while count < len(parts) and (parts[-count] in _COMMON or parts[-count].isdecimal()):
        count += 1
    return count
