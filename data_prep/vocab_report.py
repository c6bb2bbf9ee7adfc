"""How vocabularies split a text: side by side, as a table, JSON and a picture."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from data_prep.vocab import ROUND_TRIP, count_hangul, round_trip
from electra_flax.data.tokenizer import Casing, build_tokenizer
from electra_flax.data.vocabulary import Vocabulary
from electra_flax.errors import escaped

_BATCH_LINES = 10_000
MOST_UNKNOWN = 0.01
"""Share of [UNK] beyond which a vocabulary hardly suits a text."""
_SHOWN_CHARACTERS = 30


@dataclass
class Usage:
    """What a vocabulary makes of a text."""

    name: str
    size: int
    words: int
    """Of text split at white space and punctuation."""
    pieces: int
    unknown: int
    """Words that are [UNK]."""
    characters: int
    whole_words: int
    """Words that are one piece."""
    pieces_used: int
    """Entries that occur at all."""
    characters_lacking: int
    """Characters of the text that no entry has."""
    unknown_characters: dict[str, int]
    """The most frequent of them."""
    round_trip: str
    """What a Korean sentence comes back as: itself, something else, or with [UNK]."""
    lengths: dict[int, int]
    """Words by their number of pieces."""

    @property
    def unk_rate(self) -> float:
        """Return the share of the pieces, as the manifest of shards has it."""
        return self.unknown / max(self.pieces, 1)

    @property
    def pieces_per_word(self) -> float:
        return self.pieces / max(self.words, 1)

    @property
    def characters_per_piece(self) -> float:
        return self.characters / max(self.pieces, 1)


def measure(name: str, vocabulary: Vocabulary, casing: Casing, lines: Sequence[str]) -> Usage:
    """Split the lines with a vocabulary."""
    tokenizer = build_tokenizer(vocabulary.tokens, casing)
    characters_known = set("".join(vocabulary.tokens))
    pieces_used, lengths, missing = Counter[str](), Counter[int](), Counter[str]()
    unknown = characters = 0
    for start in range(0, len(lines), _BATCH_LINES):
        batch = list(lines[start : start + _BATCH_LINES])
        for line, encoding in zip(batch, tokenizer.encode_batch(batch, add_special_tokens=False), strict=True):
            pieces_used.update(encoding.tokens)
            lengths.update(Counter(encoding.word_ids).values())
            for token, (first, last) in zip(encoding.tokens, encoding.offsets, strict=True):
                characters += last - first
                if token == "[UNK]":
                    unknown += 1
                    missing.update(c for c in line[first:last] if c not in characters_known)
    words, pieces = lengths.total(), pieces_used.total()
    back = round_trip(tokenizer)
    comes_back = "with [UNK]" if "[UNK]" in back else "yes" if back == ROUND_TRIP.replace(" ", "") else "no"
    return Usage(
        escaped(name), len(vocabulary.tokens), words, pieces, unknown, characters, lengths[1] - unknown,
        len(pieces_used), missing.total(), dict(missing.most_common(_SHOWN_CHARACTERS)), comes_back,
        dict(sorted(lengths.items())),
    )  # fmt: skip


def why_unknown(vocabulary: Vocabulary, casing: Casing, lines: Sequence[str]) -> str:
    """Return the likely cause of many [UNK]s in a text, and the fix."""
    jamo, syllables = count_hangul("".join(lines))
    if jamo > syllables:
        return "the text is decomposed Hangul (NFD): add --with nfc"
    tokens = vocabulary.tokens
    for lower, strip in ((False, False), (True, False), (True, True)):
        other = Casing(lower, strip)
        if other != casing and _unk_rate(tokens, other, lines) < _unk_rate(tokens, casing, lines) / 2:
            return (
                f"the vocabulary suits do_lower_case {str(lower).lower()}, strip_accents {str(strip).lower()}: correct "
                f"{vocabulary.path.with_name('tokenizer_config.json')}"
            )
    return (
        "the vocabulary does not suit the text, or is too small: learn one from this corpus (electra-data vocab), or "
        "remove foreign characters (--clean koelectra-v1)"
    )


def _unk_rate(tokens: list[str], casing: Casing, lines: Sequence[str]) -> float:
    encodings = build_tokenizer(tokens, casing).encode_batch(list(lines[:_BATCH_LINES]), add_special_tokens=False)
    pieces = [token for encoding in encodings for token in encoding.tokens]
    return pieces.count("[UNK]") / max(len(pieces), 1)


def show(usages: Sequence[Usage], console: Console) -> None:
    """Print the table, and the characters that are missing."""
    table = Table("", *(escaped(usage.name) for usage in usages), title="Vocabularies on this text")
    rows: list[tuple[str, Any]] = [
        ("entries", lambda u: f"{u.size:,}"),
        ("entries used", lambda u: f"{u.pieces_used:,}"),
        ("characters covered", lambda u: f"{1 - u.characters_lacking / max(u.characters, 1):.2%}"),
        ("words in one piece", lambda u: f"{u.whole_words / max(u.words, 1):.1%}"),
        ("pieces per word", lambda u: f"{u.pieces_per_word:.2f}"),
        ("characters per piece", lambda u: f"{u.characters_per_piece:.2f}"),
        ("[UNK] of all pieces", lambda u: f"{u.unk_rate:.2%}"),
        ("[UNK] of all words", lambda u: f"{u.unknown / max(u.words, 1):.2%}"),
        ("Hangul round trip", lambda u: u.round_trip),
    ]
    for title, value in rows:
        table.add_row(title, *(value(usage) for usage in usages))
    console.print(table)
    for usage in usages:
        if usage.unknown_characters:
            shown = "  ".join(f"{character} {count:,}" for character, count in usage.unknown_characters.items())
            console.print(f"{usage.name}: missing characters and their counts: {shown}", soft_wrap=True)


def files(usages: Sequence[Usage]) -> dict[str, str | bytes]:
    """Return report.json and report.png."""
    values = [
        {**asdict(usage), "unk_rate": usage.unk_rate, "pieces_per_word": usage.pieces_per_word,
         "characters_per_piece": usage.characters_per_piece}
        for usage in usages
    ]  # fmt: skip
    from matplotlib.figure import Figure  # slow to import

    from electra_flax.pictures import to_png

    figure = Figure(figsize=(10, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, usage in enumerate(usages):
        shares = [usage.lengths.get(length, 0) / max(usage.words, 1) for length in range(1, 9)]
        left.plot(range(1, 9), shares, "o-", label=usage.name[:_SHOWN_CHARACTERS])
        right.bar(number, usage.unk_rate * 100)
    left.set_xlabel("pieces in a word")
    left.set_ylabel("share of words")
    left.legend()
    right.set_xticks(range(len(usages)), [usage.name[:_SHOWN_CHARACTERS] for usage in usages])
    right.set_ylabel("[UNK], % of pieces")
    return {"report.json": json.dumps(values, indent=1, ensure_ascii=False) + "\n", "report.png": to_png(figure)}
