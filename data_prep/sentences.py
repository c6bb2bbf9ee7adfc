"""Paragraph -> sentences: a pure function of the paragraph, so neither workers nor the order of texts matter.

The rules are for Korean and leave other languages' punctuated text alone but for the split after `.`, `?` and `!`.
"""

import functools
import re
from collections.abc import Callable
from typing import Any, Literal

from electra_flax.errors import UserError

SplitterName = Literal["rules", "kiwi"]

# What may end a sentence: end marks and the quotes and brackets that close after them, then white space, unless the
# quotation goes on with "he said" (라고, 하며); or, where the space was forgotten, a Korean ending with its mark
# right before another Hangul word.
_END = re.compile(
    r"""(?: [.!?…。？！]+ (?=\s)
          | [.!?…。？！]+ ["'”’)\]」』】》〉]+ (?=\s) (?!\s+(?:이?라[고며는]|하[고며]|[고며])\s)
          | (?<=[다요죠까네자])[.!?]+ (?=[가-힣]{2}) )""",
    re.VERBOSE,
)
# A full stop that ends no sentence: a number or single letters before it ("1.", "가.", "B.C."), or an abbreviation.
_NOT_AN_END = re.compile(
    r"(?:^|[\s(])(?:\d{1,3}|(?:[A-Za-z]\.)*[A-Za-z가-힣]|Mr|Mrs|Ms|Dr|Prof|St|No|vs|cf|etc|pp|Vol)\.$"
)
_OPENING, _CLOSING = "([{“‘「『【《〈", ")]}”’」』】》〉"


def split_by_rules(paragraph: str) -> list[str]:
    """Return sentences in order; joined with spaces they are the paragraph but for white space at the cuts.

    Nothing is cut inside quotation marks or brackets.
    """
    sentences, start = [], 0
    depth, read = 0, 0
    for match in _END.finditer(paragraph):
        end = match.end()
        for character in paragraph[read:end]:
            depth += (character in _OPENING) - (character in _CLOSING)
        read = end
        depth = max(depth, 0)  # "1)" closes what nobody opened; below 0 it would hide the next opening
        sentence = paragraph[start:end]
        if depth and end - start < 400:  # a quotation of a sensible length; an unclosed one must not hold all
            continue
        if _NOT_AN_END.search(sentence):
            continue
        sentences.append(sentence.strip())
        start, depth = end, 0
    rest = paragraph[start:].strip()
    return [*sentences, rest] if rest else sentences


@functools.cache
def _kiwi() -> Any:
    try:
        from kiwipiepy import Kiwi
    except ModuleNotFoundError:
        raise UserError("--splitter kiwi needs kiwipiepy: pip install 'electra-flax[kiwi]'") from None
    return Kiwi(num_workers=1)  # processes share the cores already


def _split_by_kiwi(paragraph: str) -> list[str]:
    return [text for sentence in _kiwi().split_into_sents(paragraph) if (text := sentence.text.strip())]


def splitter(name: SplitterName) -> Callable[[str], list[str]]:
    """Return the function behind a name. Raises UserError where its library is not installed."""
    if name == "rules":
        return split_by_rules
    _kiwi()  # now: what is missing shows before the corpus is read
    return _split_by_kiwi
