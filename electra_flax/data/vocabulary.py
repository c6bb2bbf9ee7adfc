"""A WordPiece vocabulary and its special tokens."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from electra_flax import shipped
from electra_flax.errors import UserError
from electra_flax.files import read_text

MAX_WORD_CHARACTERS = 200  # a longer word is one [UNK]; the original's limit, where Hugging Face's slow class has 100


class SpecialTokens(NamedTuple):
    """Ids of the tokens that have a meaning of their own."""

    pad: int
    unk: int
    cls: int
    sep: int
    mask: int


class Vocabulary(NamedTuple):
    """A WordPiece vocabulary file: one token a line, the line number is the id (docs/semantics.md, section 1)."""

    path: Path
    tokens: list[str]
    sha256: str

    @classmethod
    def read(cls, path: Path) -> Vocabulary:
        """Read a vocab.txt; a byte order mark and CRs are no content.

        Raises UserError where there is no such file or it is not text.
        """
        if not path.exists():
            raise UserError(
                f"{path}: no such vocabulary; electra-data vocab --corpus SRC --out {path.parent} makes one"
                f"{shipped.offered()}"
            )
        text = read_text(path).removesuffix("\n")
        return cls.of(path, [line.strip() for line in text.split("\n")])

    @classmethod
    def of(cls, path: Path, tokens: list[str]) -> Vocabulary:
        """Return the vocabulary of `tokens`; the hash is of them, however a file ends its lines."""
        return cls(path, tokens, hashlib.sha256(("\n".join(tokens) + "\n").encode()).hexdigest())

    @property
    def content(self) -> bytes:
        """Return what a vocab.txt of these tokens holds."""
        return ("\n".join(self.tokens) + "\n").encode()

    @property
    def special(self) -> SpecialTokens:
        ids = {token: number for number, token in enumerate(self.tokens)}
        names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        if missing := [name for name in names if name not in ids]:
            raise UserError(f"{self.path}: not a WordPiece vocabulary for ELECTRA: lacks {', '.join(missing)}")
        return SpecialTokens(*(ids[name] for name in names))

    @property
    def continuations(self) -> tuple[int, ...]:
        """Return the entries that continue a word."""
        return tuple(number for number, token in enumerate(self.tokens) if token.startswith("##"))
