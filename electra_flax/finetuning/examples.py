"""What a task's examples are, whatever layout they were read from, and the count of those that were left out."""

from collections import Counter
from typing import NamedTuple

_SHOWN = 5  # places in a message


class TextExample(NamedTuple):
    """Of a classification or a regression."""

    id: str
    text: str
    pair: str
    """"" where there is one text."""
    label: str
    """As it is in the file; "" where nobody knows it."""


class TaggedExample(NamedTuple):
    """A sentence and its tags."""

    id: str
    text: str
    units: list[tuple[int, int]]
    """The characters [start, end) of each word, or each single character, that has a tag."""
    tags: list[str]
    """Of each unit, "B-TYPE", "I-TYPE" or "O"; empty where nobody knows them."""


class QuestionExample(NamedTuple):
    """A question about a context."""

    id: str
    question: str
    context: str
    answers: list[tuple[str, int]]
    """Each with the character at which it begins; none for a question that has no answer here."""


Example = TextExample | TaggedExample | QuestionExample


class Skipped(Counter[str]):
    """{why: rows that were left out}, and the places of the first ones."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def add(self, reason: str, place: str) -> None:
        self[reason] += 1
        if len(self.places) < _SHOWN:
            self.places.append(place.rpartition("/")[2])
