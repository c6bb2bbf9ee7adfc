"""Text -> a WordPiece vocabulary (SEMANTICS.md section 1; KoELECTRA's recipe: cased, accents kept)."""

from __future__ import annotations

import random
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, trainers

from electra_flax.config import UserError
from electra_flax.records import Vocabulary
from electra_flax.tokenizer import SPECIAL_TOKENS, Casing, build_tokenizer, save_tokenizer

_ROUND_TRIP = "한국어 문장을 그대로 되돌려 놓는지 확인합니다"
_MODEL_MAX_LENGTH = 512


def sample_lines(lines: Iterable[str], max_bytes: int) -> list[str]:
    """All lines while they fit, then an even sample: each is kept by a number that its place alone decides."""
    kept: list[tuple[float, int, str]] = []
    rng, limit, size = random.Random(0), 1.0, 0
    for line in lines:
        draw = rng.random()
        if draw >= limit:
            continue
        num_bytes = sys.getsizeof(line)
        kept.append((draw, num_bytes, line))
        size += num_bytes
        while size > max_bytes:
            limit /= 2
            kept = [entry for entry in kept if entry[0] < limit]
            size = sum(num_bytes for _, num_bytes, _ in kept)
    return [line for _, _, line in kept]


def train_vocabulary(
    lines: Sequence[str],
    out: Path,
    *,
    size: int,
    num_unused: int,
    limit_alphabet: int,
    min_frequency: int,
    casing: Casing,
    show_progress: bool,
) -> Vocabulary:
    """Trains, checks and writes `out/vocab.txt` of exactly `size` entries, and the tokenizer files beside it.

    [PAD] [UNK] [CLS] [SEP] [MASK] are 0-4; at least `num_unused` entries [unused0], ... end the file: slots for
    words of a domain. A corpus too small for `size` gives more of them.
    Raises UserError where the check fails.
    """
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    if size - num_unused <= len(special):
        raise UserError(f"--size {size} leaves no room beside --unused {num_unused}: raise --size")
    settings: dict[str, Any] = {
        "min_frequency": min_frequency,
        "limit_alphabet": limit_alphabet,
        "continuing_subword_prefix": "##",
        "show_progress": show_progress,
    }

    def train(first_tokens: list[str], vocab_size: int) -> list[str]:
        tokenizer: Tokenizer = build_tokenizer(special, casing)
        trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=first_tokens, **settings)
        tokenizer.train_from_iterator(lines, trainer)
        trained = tokenizer.get_vocab()
        return sorted(trained, key=trained.__getitem__)

    # The trainer numbers "##" characters in an order that changes from run to run, and breaks ties between pairs by
    # those numbers. A first pass without merges finds them; given in sorted order, they make the result repeatable.
    characters = train(special, 0)
    continuing = sorted(piece for piece in characters if piece.startswith("##"))
    pieces = train(special + continuing, size - num_unused)[: size - num_unused]
    if len(pieces) == len(special):
        raise UserError("the corpus is empty: no piece was learned; give --corpus files with text")
    tokens = pieces + [f"[unused{number}]" for number in range(size - len(pieces))]
    out.mkdir(parents=True, exist_ok=True)
    (out / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    vocabulary = Vocabulary.read(out / "vocab.txt")
    save_tokenizer(vocabulary, casing, out, _MODEL_MAX_LENGTH)
    check_vocabulary(vocabulary, casing)
    return vocabulary


def check_vocabulary(vocabulary: Vocabulary, casing: Casing) -> None:
    """Special tokens in place, and Hangul comes back composed. Raises UserError otherwise."""
    expected = list(SPECIAL_TOKENS.values())
    ids = vocabulary.special
    if tuple(ids) != (0, 1, 2, 3, 4):
        raise UserError(f"{vocabulary.path}: the first five entries must be {' '.join(expected)}")
    if len(set(vocabulary.tokens)) != len(vocabulary.tokens):
        raise UserError(f"{vocabulary.path}: an entry appears twice: every line must be different")
    text = "".join(vocabulary.tokens)
    num_jamo, num_syllables = (
        sum("\u1100" <= c <= "\u11ff" for c in text),
        sum("가" <= c <= "힣" for c in text),
    )
    if num_jamo > num_syllables:
        raise UserError(
            f"{vocabulary.path}: holds more decomposed Hangul ({num_jamo} Jamo) than syllables ({num_syllables}): "
            "the corpus is in NFD form; normalise it to NFC"
        )
    normalized = build_tokenizer(vocabulary.tokens, casing).normalizer.normalize_str(_ROUND_TRIP)
    if normalized != _ROUND_TRIP:
        raise UserError(
            "--strip-accents decomposes Hangul syllables to Jamo: every Korean word would become [UNK]; leave it off"
        )
    pieces = build_tokenizer(vocabulary.tokens, casing).encode(_ROUND_TRIP, add_special_tokens=False).tokens
    if "[UNK]" not in pieces:
        joined = "".join(piece.removeprefix("##") for piece in pieces)
        if joined != unicodedata.normalize("NFC", _ROUND_TRIP).replace(" ", ""):
            raise UserError(f"{vocabulary.path}: the Hangul round trip gave {joined!r}")
