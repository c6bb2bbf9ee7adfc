"""Cleaning: named steps in a fixed order, of which a recipe switches on some. Every change is counted.

Recipes (KoELECTRA's notes on preprocessing, and its author on v3): `koelectra-v1` keeps Hangul, ASCII and common
punctuation; `koelectra-v3` keeps hanja and symbols and removes what a domain adds; `none` changes nothing.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from data_prep.sentences import SplitterName, splitter
from electra_flax.errors import UserError


class Step(NamedTuple):
    """One step of cleaning; `apply` is None for those that look at more than one text."""

    name: str
    level: Literal["paragraph", "split", "sentence", "corpus"]
    help: str
    apply: Callable[[str], str] | None = None
    """Text -> text; an empty result drops it."""


def _replacing(pattern: str, text: str, flags: int = 0) -> Callable[[str], str]:
    compiled = re.compile(pattern, flags)
    return lambda given: compiled.sub(text, given)


def _dropping(pattern: str) -> Callable[[str], str]:
    compiled = re.compile(pattern)
    return lambda given: "" if compiled.search(given) else given


_EMAIL = r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"
_PERSONAL = "|".join([
    r"(?<!\d)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\s?-\s?[1-8]\d{6}(?!\d)",  # resident registration
    r"(?<![\d-])(?:\+82[-\s.]?|0)(?:1[016789]|2|[3-6][1-5]|70|50\d)[-\s.)]?\d{3,4}[-\s.]\d{4}(?![\d-])",
    r"(?<!\d)01[016789]\d{7,8}(?!\d)",
    _EMAIL,
])  # fmt: skip
_NOT_WHITELISTED = r"""[^가-힣\x20-\x7e‘’“”…·%℃㎡]+"""

_SPACES = re.compile(r"[\t\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffd\ufff9-\ufffb\ue000-\uf8ff]+")

# The order is part of what a recipe is. Composed first: all patterns below are of composed syllables. What one step
# leaves (spaces where a mention was, an empty bracket) a later one tidies; what repeats is looked for in what is left.
STEPS = (
    Step("nfc", "paragraph", "compose Unicode to NFC (never NFKC): vocabularies lack decomposed Hangul",
         functools.partial(unicodedata.normalize, "NFC")),
    Step("control", "paragraph", "remove control characters; replace every kind of space by a plain one",
         lambda text: _SPACES.sub(" ", _CONTROL.sub("", text))),
    Step("zero-width", "paragraph", "remove zero-width characters, soft hyphens and byte order marks",
         _replacing("[\u00ad\u061c\u180e\u200b-\u200f\u2060-\u2064\ufe00-\ufe0f\ufeff]+", "")),
    Step("personal", "paragraph", "replace resident registration numbers, phone numbers and e-mails by ***",
         _replacing(_PERSONAL, "***")),
    Step("emails", "paragraph", "remove e-mail addresses", _replacing(_EMAIL, " ")),
    Step("hashtags", "paragraph", "remove #hashtags", _replacing(r"(?<!\S)#[^\s#]+", " ")),
    Step("mentions", "paragraph", "remove @mentions", _replacing(r"(?<!\S)@[\w.]+", " ")),
    Step("bracketed", "paragraph", "remove text in [] {} 【】 <>",
         _replacing(r"\[[^\[\]]*\]|\{[^{}]*\}|【[^【】]*】|<[^<>]*>", " ")),
    Step("bylines", "paragraph", "remove news bylines: (서울=뉴스1) 홍길동 기자 =",
         _replacing(r"\([가-힣]{1,10}\s?=\s?[가-힣A-Za-z0-9]{1,10}\)\s?|"
                    r"(?<![가-힣])[가-힣]{2,4}\s?(?:[가-힣]{2,4}\s)?(?:기자|특파원)(?:\s?=\s?|(?=\s*[.]?$))", " ")),
    Step("whitelist", "paragraph", "keep only Hangul, ASCII and common punctuation; removes hanja too",
         _replacing(_NOT_WHITELISTED, " ")),
    Step("sentences", "split", "split paragraphs into sentences (--splitter)"),
    Step("boilerplate", "sentence", "drop sentences of news boilerplate: 무단전재, (서울=뉴스1)",
         _dropping(r"무단\s?전재|무단\s?복제|재배포\s?(?:를\s?)?금지|저작권자|ⓒ|©|Copyright|\([가-힣]{1,10}\s?=\s?(?:뉴스1|뉴시스|연합뉴스)\)")),
    Step("repeats", "sentence", "shorten characters repeated more than twice: ㅋㅋㅋㅋ -> ㅋㅋ; digits stay",
         _replacing(r"([^\d\s.])\1{2,}", r"\1\1")),
    Step("spaces", "sentence", "reduce white space to one space", _replacing(r"\s+", " ")),
    Step("short", "sentence", "drop sentences shorter than --min-characters"),
    Step("dedup-paragraphs", "corpus", "drop repeated paragraphs, over the whole corpus"),
    Step("dedup-sentences", "corpus", "drop repeated sentences, over the whole corpus"),
    Step("near-duplicates", "corpus", "drop documents similar to an earlier one (MinHash, --near-similarity)"),
)  # fmt: skip
_V3 = frozenset({
    "nfc", "control", "zero-width", "bylines", "sentences", "boilerplate", "repeats", "spaces", "short",
    "dedup-sentences",
})  # fmt: skip
RECIPES: dict[str, frozenset[str]] = {
    "none": frozenset(),
    "koelectra-v1": _V3 - {"bylines"} | {"emails", "hashtags", "mentions", "bracketed", "whitelist"},
    "koelectra-v3": _V3,
}


@dataclass(frozen=True)
class CleaningOptions:
    """What is switched on, as the manifest records it."""

    recipe: str = "none"
    steps: tuple[str, ...] = ()
    """All that are on, in the order in which they run."""
    splitter: SplitterName = "rules"
    min_characters: int = 10
    near_similarity: float = 0.8

    @classmethod
    def of(
        cls, recipe: str, with_: Sequence[str], without: Sequence[str], splitter: SplitterName, min_characters: int,
        near_similarity: float,
    ) -> CleaningOptions:  # fmt: skip
        """Return a recipe with steps added and taken away. Raises UserError for a step both added and taken away."""
        if both := sorted(set(with_) & set(without)):
            raise UserError(f"--with and --without both name {', '.join(both)}: name it once")
        on = (RECIPES[recipe] | set(with_)) - set(without)
        steps = tuple(step.name for step in STEPS if step.name in on)
        return cls(recipe, steps, splitter, min_characters, near_similarity)


class Cleaner:
    """Paragraphs -> paragraphs of sentences; counts what it changes and drops, by step."""

    def __init__(self, options: CleaningOptions) -> None:
        self._options = options
        on = [step for step in STEPS if step.name in options.steps]
        self._of_paragraphs = [(step.name, step.apply) for step in on if step.level == "paragraph" and step.apply]
        self._of_sentences = [(step.name, step.apply or self._short)
                              for step in on if step.level == "sentence"]  # fmt: skip
        self._split = splitter(options.splitter) if "sentences" in options.steps else lambda text: [text]
        # Nothing on: texts stay as they are, not even stripped.
        self._idle = not any(step.level != "corpus" for step in on)
        self.counts: Counter[str] = Counter()

    def clean(self, paragraphs: list[str]) -> list[list[str]]:
        """Return paragraphs that keep at least one sentence."""
        if self._idle:
            return [[text] for text in paragraphs]
        cleaned = []
        for text in paragraphs:
            text = self._run(self._of_paragraphs, text)
            parts = self._split(text) if text else []
            self.counts["sentences"] += len(parts) - 1 if parts else 0
            sentences = [kept for part in parts if (kept := self._run(self._of_sentences, part))]
            if sentences:
                cleaned.append(sentences)
        return cleaned

    def _run(self, steps: list[tuple[str, Callable[[str], str]]], text: str) -> str:
        for name, apply in steps:
            after = apply(text).strip()
            if after != text:
                self.counts[name] += 1
                if not after:
                    return ""
                text = after
        return text

    def _short(self, text: str) -> str:
        return text if len(text) >= self._options.min_characters else ""
