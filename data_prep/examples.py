"""Sentences of token ids -> examples of one or two segments (docs/semantics.md, section 2).

`original` makes the random calls of the original code in its order and, like it, throws away what is cut off.
`carry` chooses segments by the same rules and begins the next example with what was cut off: no token is lost.
"""

import random
from collections.abc import Iterator
from typing import Literal, NamedTuple

from electra_flax.data.example import encode_example
from electra_flax.data.vocabulary import SpecialTokens

BuilderName = Literal["carry", "original"]
Ids = list[int]

_ONE_SEGMENT = 0.1  # share of examples with a single segment
_SHORT = 0.05  # share of examples with a random shorter target
_NO_LIMIT = 100_000


class Example(NamedTuple):
    """Token ids with [CLS] and [SEP], unpadded; the first `num_first` are of the first segment."""

    token_ids: Ids
    num_first: int

    def encode(self, max_seq_length: int) -> bytes:
        return encode_example(self.token_ids, self.num_first, max_seq_length)


class ExampleBuilder:
    """Collects sentences and cuts them into examples; one builder serves one stream of documents."""

    def __init__(self, name: BuilderName, max_seq_length: int, special: SpecialTokens, rng: random.Random) -> None:
        self.num_discarded = 0
        self._carry = name == "carry"
        self._max_length = max_seq_length
        self._special = special
        self._rng = rng
        self._target = max_seq_length
        self._sentences: list[Ids] = []
        self._length = 0

    def begin(self, rng: random.Random) -> None:
        """Forget what went before: the next document's examples depend on it and `rng` alone."""
        self.num_discarded = 0
        self._rng = rng
        self._draw_target()

    def add_document(self, sentences: list[Ids]) -> Iterator[Example]:
        """Yield the examples that a document gives; none holds text of two documents."""
        for sentence in sentences:
            self._sentences.append(sentence)
            self._length += len(sentence)
            while self._length >= self._target:
                yield self._flush()
        while self._length:
            yield self._flush()
        self._sentences = []

    def _flush(self) -> Example:
        first, second = self._choose_segments()
        keep_first = self._max_length - 2
        keep_second = max(0, self._max_length - len(first[:keep_first]) - 3)
        rest = [part for part in (first[keep_first:], second[keep_second:]) if part]
        self._sentences = rest if self._carry else []
        self._length = sum(map(len, self._sentences))
        if not self._carry:
            self.num_discarded += sum(map(len, rest))
        self._draw_target()  # now, for the next example: the original's order
        return self._pack(first[:keep_first], second[:keep_second])

    def _draw_target(self) -> None:
        short = self._rng.random() < _SHORT
        self._target = self._rng.randint(5, self._max_length) if short else self._max_length

    def _choose_segments(self) -> tuple[Ids, Ids]:
        if self._rng.random() < _ONE_SEGMENT:
            first_target = _NO_LIMIT
        else:
            first_target = (self._target - 3) // 2
        first: Ids = []
        second: Ids = []
        for sentence in self._sentences:
            # A short later sentence may join the first segment after the second was begun: the original's way.
            # The order of these conditions decides how many random numbers are drawn.
            if (
                not first
                or len(first) + len(sentence) < first_target
                or (not second and len(first) < first_target and self._rng.random() < 0.5)
            ):
                first += sentence
            else:
                second += sentence
        return first, second

    def _pack(self, first: Ids, second: Ids) -> Example:
        special = self._special
        ids = [special.cls, *first, special.sep]
        num_first = len(ids)
        if second:
            ids += [*second, special.sep]
        return Example(ids, num_first)
