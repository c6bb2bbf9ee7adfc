"""Text -> token ids, many times as fast as the tokenizer and exactly equal to it.

BERT's rules look at one character at a time. What they make of each is asked from the tokenizer when it is first met;
words of characters that become one character, or stand alone, are matched by compiled code. Words with any other, such
as one that is deleted, go through the tokenizer.
"""

import functools
import os

import numpy as np
from tokenizers import Tokenizer

from data_prep import wordpiece
from data_prep.wordpiece import ALONE, LETTER, OTHER, SPACE, UNSEEN
from electra_flax.data.tokenizer import Casing, build_tokenizer

_NUM_CODES = 0x110000
_PROBE = "a"  # a letter that every rule leaves alone


class Encoder:
    """A vocabulary's tokenizer, for whole documents."""

    def __init__(self, tokens: list[str], casing: Casing) -> None:
        # Parallelism comes from processes; threads in each would only fight for the same cores.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self._tokenizer = build_tokenizer(tokens, casing)
        self._unknown = tokens.index("[UNK]")
        self._trie = wordpiece.Trie.build(tokens)
        self._kinds = np.full(_NUM_CODES, UNSEEN, np.uint8)
        self._folded = np.arange(_NUM_CODES, dtype=np.uint32)
        # Such words repeat, and each call of the tokenizer has its price.
        self._encode_word = functools.lru_cache(1 << 16)(functools.partial(_encode, self._tokenizer))

    def encode(self, lines: list[str]) -> list[list[int]]:
        """Return ids of each line, without [CLS] and [SEP]; special tokens in the text are ordinary text."""
        text = "\n".join(lines)
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        for code in np.unique(codes[self._kinds[codes] == UNSEEN]).tolist():
            self._classify(code)
        spans = wordpiece.other_words(codes, self._kinds)
        words = [self._encode_word(text[start:end]) for start, end in spans.tolist()]
        word_ids = np.array([id_ for word in words for id_ in word], np.int32)
        word_ends = np.cumsum([len(word) for word in words], dtype=np.int64)
        ids, ends = wordpiece.encode(
            codes, self._kinds, self._folded, *self._trie, self._unknown, spans, word_ids, word_ends
        )
        ids = ids.tolist()
        starts = [0, *ends.tolist()]
        return [ids[start:end] for start, end in zip(starts, starts[1:], strict=False)]

    def _classify(self, code: int) -> None:
        # Between two letters: what rules do at the ends of a text, such as stripping, is not the character's doing.
        text = self._tokenizer.normalizer.normalize_str(_PROBE + chr(code) + _PROBE)
        match [part for part, _ in self._tokenizer.pre_tokenizer.pre_tokenize_str(text)]:
            case [word] if len(word) == 3:
                kind, seen_as = LETTER, word[1]
            case [_, word, _] if len(word) == 1:
                kind, seen_as = ALONE, word
            case [_, _]:
                kind, seen_as = SPACE, " "
            case _:
                kind, seen_as = OTHER, chr(code)
        self._kinds[code], self._folded[code] = kind, ord(seen_as)


def _encode(tokenizer: Tokenizer, word: str) -> list[int]:
    ids: list[int] = tokenizer.encode(word, add_special_tokens=False).ids
    return ids
