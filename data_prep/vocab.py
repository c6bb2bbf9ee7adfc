"""Text -> a WordPiece vocabulary (docs/semantics.md, section 1; KoELECTRA's recipe: cased, accents kept).

Whatever learns the pieces, the result is a WordPiece vocabulary that works on text split at white space and
punctuation alone: pieces that continue a word begin with ##, also where MeCab or SentencePiece found them.
"""

import io
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer, pre_tokenizers, trainers

from electra_flax.data.tokenizer import SPECIAL_TOKENS, Casing, build_tokenizer
from electra_flax.data.vocabulary import Vocabulary
from electra_flax.errors import UserError

Algorithm = Literal["wordpiece", "unigram", "bpe"]
ROUND_TRIP = "한국어 문장을 그대로 되돌려 놓는지 확인합니다"
_SPECIAL = list(SPECIAL_TOKENS.values())
# Marks a morpheme that continues a word while pieces are learned. A private character: normalization removes them all.
_CONTINUES = "\ue000"
_META = "\u2581"  # SentencePiece's mark of a word's beginning


@dataclass(frozen=True)
class VocabularyOptions:
    """What to learn."""

    size: int
    """Entries, [unused] slots included."""
    num_unused: int
    casing: Casing
    algorithm: Algorithm = "wordpiece"
    pretokenizer: Literal["none", "mecab"] = "none"
    limit_alphabet: int | None = None
    """Most characters kept; None: 6000, and less for a vocabulary that they would fill."""
    min_frequency: int = 2

    @property
    def max_characters(self) -> int:
        # Most characters take two entries, one that begins a word and one that continues it.
        return self.limit_alphabet or min(6000, self.size // 3)


def sample_lines(lines: Iterable[str], max_bytes: int) -> list[str]:
    """Return all lines while they fit, then an even sample: each is kept by a number that its place alone decides."""
    kept: list[tuple[float, int, str]] = []
    rng, limit, size = random.Random(0), 1.0, 0
    for line in lines:
        draw = rng.random()
        if draw >= limit:
            continue
        num_bytes = sys.getsizeof(line)
        kept.append((draw, num_bytes, line))
        size += num_bytes
        while size > max_bytes:  # half of the lines so far go, and so will half of those to come
            limit /= 2
            kept = [entry for entry in kept if entry[0] < limit]
            size = sum(num_bytes for _, num_bytes, _ in kept)
    return [line for _, _, line in kept]


def train_vocabulary(lines: Sequence[str], out: Path, options: VocabularyOptions, show_progress: bool) -> Vocabulary:
    """Train and check what `out/vocab.txt` shall hold: exactly `size` entries.

    [PAD] [UNK] [CLS] [SEP] [MASK] are 0-4; at least `num_unused` entries [unused0], ... end the file: slots for
    words of a domain. A corpus too small for `size` gives more of them.
    Raises UserError where the check fails.
    """
    if options.size - options.num_unused <= len(_SPECIAL):
        raise UserError(f"--size {options.size} leaves no room beside --unused {options.num_unused}: raise --size")
    pieces = learn_pieces(lines, options, options.size - options.num_unused - len(_SPECIAL), show_progress)
    if not pieces:
        raise UserError("the corpus is empty: no piece was learned; give --corpus files with text")
    tokens = _SPECIAL + pieces
    tokens += [f"[unused{number}]" for number in range(options.size - len(tokens))]
    return _checked(Vocabulary.of(out / "vocab.txt", tokens), options.casing)


def extend_vocabulary(
    base: Vocabulary, lines: Sequence[str], out: Path, options: VocabularyOptions, show_progress: bool
) -> tuple[Vocabulary, list[str]]:
    """Return the base with its [unused] slots filled with pieces of a domain, other ids as they were; and those pieces.

    The pieces are learned from the domain's text and chosen by how many pieces each would have saved there.
    Raises UserError where there is no slot.
    """
    slots = [number for number, token in enumerate(base.tokens) if token.startswith("[unused")]
    if not slots:
        raise UserError(f"{base.path}: has no [unused] entries to fill")
    known = set(base.tokens)
    learned = learn_pieces(lines, options, len(base.tokens), show_progress)
    candidates = [piece for piece in learned if piece not in known and len(piece.removeprefix("##")) > 1]
    old = build_tokenizer(base.tokens, options.casing).model
    new = build_tokenizer(_SPECIAL + sorted(known | set(candidates)), options.casing)
    used = Counter(token for line in lines for token in new.encode(line, add_special_tokens=False).tokens)

    def saved(piece: str) -> int:
        text = piece.removeprefix("##")
        # What continues a word is split as the base would go on after a first piece; any first piece will do.
        first = "" if text == piece else "[CLS]"
        pieces = [token.value for token in old.tokenize(first + text)]
        return used[piece] * (len(text) if pieces == ["[UNK]"] else len(pieces) - bool(first) - 1)

    frequent = [piece for piece in candidates if used[piece] >= options.min_frequency]
    chosen = sorted(frequent, key=lambda piece: (-saved(piece), piece))[: len(slots)]
    tokens = list(base.tokens)
    for slot, piece in zip(slots, chosen, strict=False):
        tokens[slot] = piece
    return _checked(Vocabulary.of(out / "vocab.txt", tokens), options.casing), chosen


def learn_pieces(lines: Sequence[str], options: VocabularyOptions, count: int, show_progress: bool) -> list[str]:
    """Return at most `count` pieces, characters first, then in the order in which they were learned."""
    if options.algorithm == "wordpiece" and options.pretokenizer == "none":
        tokenizer = build_tokenizer(_SPECIAL, options.casing)
        return _learn_wordpiece(tokenizer, lines, options, count, show_progress)
    words = _segmenter(options)
    if options.algorithm == "wordpiece":
        tokenizer = build_tokenizer(_SPECIAL, options.casing)
        tokenizer.normalizer, tokenizer.pre_tokenizer = None, pre_tokenizers.WhitespaceSplit()
        segmented = [" ".join(words(line)) for line in lines]
        # Pieces learned both with and without the mark fall together: learn more than needed.
        marked = _learn_wordpiece(tokenizer, segmented, options, count + count // 2, show_progress)
        plain = (piece.replace(_CONTINUES, "##", 1) if piece.startswith(_CONTINUES) else piece for piece in marked)
        return list(dict.fromkeys(piece for piece in plain if piece.removeprefix("##")))[:count]
    return _learn_sentencepiece([" ".join(words(line)) for line in lines], options, count)


def _learn_wordpiece(
    tokenizer: Tokenizer, lines: Sequence[str], options: VocabularyOptions, count: int, show_progress: bool
) -> list[str]:
    # The trainer cuts equally rare characters in an order that changes from run to run; it is told which to keep.
    characters = _most_frequent_characters(lines, options, tokenizer.normalizer is not None)

    def train(first_tokens: list[str], vocab_size: int) -> list[str]:
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size, min_frequency=options.min_frequency, special_tokens=first_tokens,
            initial_alphabet=characters, limit_alphabet=len(characters), continuing_subword_prefix="##",
            show_progress=show_progress,
        )  # fmt: skip
        tokenizer.train_from_iterator(lines, trainer)
        trained = tokenizer.get_vocab()
        return sorted(trained, key=trained.__getitem__)

    # The trainer numbers "##" characters in an order that changes from run to run, and breaks ties between pairs by
    # those numbers. A first pass without merges finds them; given in sorted order, they make the result repeatable.
    continuing = sorted(piece for piece in train(_SPECIAL, 0) if piece.startswith("##"))
    return train(_SPECIAL + continuing, count + len(_SPECIAL))[len(_SPECIAL) :][:count]


def _segmenter(options: VocabularyOptions) -> Callable[[str], list[str]]:
    """Return line -> the words that WordPiece will see at run time, cut into morphemes where MeCab is asked for."""
    tokenizer = build_tokenizer(_SPECIAL, options.casing)
    normalize, split = tokenizer.normalizer.normalize_str, tokenizer.pre_tokenizer.pre_tokenize_str
    if options.pretokenizer == "none":
        return lambda line: [word for word, _ in split(normalize(line))]
    try:
        from mecab import MeCab
    except ModuleNotFoundError:
        raise UserError("--pretokenizer mecab needs python-mecab-ko: pip install 'electra-flax[mecab]'") from None
    mecab = MeCab()

    def segment(line: str) -> list[str]:
        line = normalize(line)
        cuts = {morpheme.span.start for morpheme in mecab.parse(line)}
        parts = []
        for word, (start, end) in split(line):
            inside = [start, *sorted(cut for cut in range(start + 1, end) if cut in cuts), end]
            parts += [
                ("" if first == start else _CONTINUES) + word[first - start : last - start]
                for first, last in zip(inside, inside[1:], strict=False)
            ]
        return parts

    return segment


def _learn_sentencepiece(lines: list[str], options: VocabularyOptions, count: int) -> list[str]:
    """Return unigram or BPE pieces as WordPiece's: the mark of a word's beginning goes, its absence becomes ##."""
    import sentencepiece

    kept = _most_frequent_characters(lines, options, False)
    allowed = set(kept) - {_CONTINUES}
    continuing = {character for line in lines for word in line.split(" ") for character in word[1:]}
    characters = sorted(allowed) + sorted("##" + character for character in allowed & continuing)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, model_type=options.algorithm,
            vocab_size=count + len(allowed), hard_vocab_limit=False, character_coverage=1.0,
            normalization_rule_name="identity", max_sentence_length=1 << 20, num_threads=4,
            bos_id=-1, eos_id=-1, pad_id=-1, minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[-1]
        raise UserError(
            f"--algorithm {options.algorithm}: SentencePiece cannot learn from this corpus: {reason}"
        ) from None
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    found = [processor.id_to_piece(number) for number in range(1, processor.get_piece_size())]
    converted = (_as_wordpiece(piece) for piece in found)
    pieces = (piece for piece in converted if piece.removeprefix("##") and set(piece.removeprefix("##")) <= allowed)
    return list(dict.fromkeys([*characters, *pieces]))[:count]


def _as_wordpiece(piece: str) -> str:
    text = piece.removeprefix(_META)
    return text if text != piece and _CONTINUES not in text else "##" + text.replace(_CONTINUES, "")


def _most_frequent_characters(lines: Iterable[str], options: VocabularyOptions, normalize: bool) -> list[str]:
    """Return at most `max_characters`, by frequency and then by code point.

    With the mark of continued words where it is.
    """
    raw = Counter[str]()
    for line in lines:
        raw.update(line)
    counts = Counter[str]()
    normalizer = build_tokenizer(_SPECIAL, options.casing).normalizer
    for character, count in raw.items():
        for letter in normalizer.normalize_str(character).split() if normalize else [character]:
            counts.update(dict.fromkeys(letter, count))
    del counts[" "]
    limit = options.max_characters + (_CONTINUES in counts)
    return sorted(counts, key=lambda character: (character != _CONTINUES, -counts[character], character))[:limit]


def _checked(vocabulary: Vocabulary, casing: Casing) -> Vocabulary:
    """Return it. Raises UserError where special tokens are not in place, or Hangul does not come back composed."""
    if tuple(vocabulary.special) != (0, 1, 2, 3, 4):
        raise UserError(f"{vocabulary.path}: the first five entries must be {' '.join(_SPECIAL)}")
    if len(set(vocabulary.tokens)) != len(vocabulary.tokens):
        raise UserError(f"{vocabulary.path}: an entry appears twice: every line must be different")
    tokenizer = build_tokenizer(vocabulary.tokens, casing)
    # Before its Jamo are counted, which would be blamed on the corpus.
    if tokenizer.normalizer.normalize_str(ROUND_TRIP) != ROUND_TRIP:
        raise UserError(
            "--strip-accents decomposes Hangul syllables to Jamo: every Korean word would become [UNK]; leave it off"
        )
    num_jamo, num_syllables = count_hangul("".join(vocabulary.tokens))
    if num_jamo > num_syllables:
        raise UserError(
            f"{vocabulary.path}: holds more decomposed Hangul ({num_jamo} Jamo) than syllables ({num_syllables}): "
            "the corpus is in NFD form; normalise it to NFC"
        )
    back = round_trip(tokenizer)
    if "[UNK]" not in back and back != ROUND_TRIP.replace(" ", ""):
        raise UserError(f"{vocabulary.path}: the Hangul round trip gave {back!r}")
    return vocabulary


def round_trip(tokenizer: Tokenizer) -> str:
    """Return as what the sentence comes back, without its spaces."""
    pieces = tokenizer.encode(ROUND_TRIP, add_special_tokens=False).tokens
    return "".join(piece.removeprefix("##") for piece in pieces)


def count_hangul(text: str) -> tuple[int, int]:
    """Return the numbers of Jamo, of which decomposed text is made, and of syllables."""
    return sum("\u1100" <= c <= "\u11ff" for c in text), sum("가" <= c <= "힣" for c in text)
