"""Lists of candidates, as a speech recogniser or a translator gives them, ranked by how likely a model finds each.

A line of a file is a list's name, a candidate and, where there is one, the score that it came with (higher is better),
separated by tabs. What is printed has the same form, so that another model can rank it again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from electra_flax.errors import UserError, short
from electra_flax.files import read_text
from electra_flax.reports.scoring import Scored

_FORM = "a list's name, a candidate and, if there is one, its score, separated by tabs"


@dataclass(frozen=True)
class Candidate:
    """One of a list."""

    name: str
    """Of its list."""
    text: str
    score: float
    """That it came with; 0 where it came with none."""


@dataclass(frozen=True)
class Ranked:
    """A candidate in its list, the best one first."""

    rank: int
    text: str
    total: float
    """`score` + weight x `log_likelihood`."""
    score: float
    log_likelihood: float
    per_token: float


def read_lists(path: Path) -> tuple[list[Candidate], bool]:
    """Return the candidates of a file and whether they have scores; lines that are blank are passed over.

    Raises UserError naming the line that has another form, another number of columns than the first, or a score that
    is no finite number.
    """
    found: list[Candidate] = []
    columns = 0
    for number, line in enumerate(read_text(path).split("\n"), start=1):  # texts hold other separators
        line = line.rstrip("\r")
        if not line.strip():
            continue
        cells = line.split("\t")
        where = f"{path} line {number}"
        if len(cells) not in (2, 3):
            raise UserError(f"{where}: {len(cells)} columns, expected 2 or 3: {_FORM}")
        columns = columns or len(cells)
        if len(cells) != columns:
            raise UserError(
                f"{where}: {len(cells)} columns, the lines before have {columns}: give all a score, or none"
            )
        if not cells[1].strip():
            raise UserError(f"{where}: an empty candidate, which has no words to score: leave the line out")
        found.append(Candidate(cells[0].strip(), cells[1], _number(cells[2], where) if columns == 3 else 0.0))
    if not found:
        raise UserError(f"{path}: no candidates: expected a line for each, {_FORM}")
    return found, columns == 3


def _number(cell: str, where: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f'{where}: the score is "{short(cell)}", expected a finite number, the higher the better')
    return value


def rank(candidates: Sequence[Candidate], scored: Mapping[str, Scored], weight: float) -> dict[str, list[Ranked]]:
    """Return each list by its name, in the order of the file: its candidates, the one with the highest total first.

    `scored` has each text's. Of equals, the one that stands first in the file comes first.
    """

    def total(candidate: Candidate) -> float:
        return candidate.score + weight * scored[candidate.text].log_likelihood

    lists: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        lists.setdefault(candidate.name, []).append(candidate)
    return {
        name: [
            Ranked(
                place, each.text, total(each), each.score, scored[each.text].log_likelihood, scored[each.text].per_token
            )
            for place, each in enumerate(sorted(those, key=total, reverse=True), start=1)
        ]
        for name, those in lists.items()
    }
