"""What readers make and are given: documents, options, a file; rows of text as documents."""

import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from data_prep import markup
from electra_flax.errors import UserError
from electra_flax.text import Utf8Stream

Markup = Literal["none", "wikipedia", "namuwiki"]
# A document or a line beyond these is cut, so that no input grows without bound.
MAX_DOCUMENT_CHARACTERS = 1_000_000
BLOCK_BYTES = 1 << 20


class Document(NamedTuple):
    """Text of a corpus file; in one string, which goes to a worker at a tenth of the price of many."""

    source: int
    """Which of the corpus files it came from."""
    text: str
    """Stripped lines, none blank; where there is markup, as the file has it."""
    markup: Markup = "none"

    def lines(self) -> list[str]:
        """Return lines of text without their line ends and without markup, none blank."""
        if self.markup == "none":
            return self.text.split("\n")
        to_lines = markup.wikipedia_lines if self.markup == "wikipedia" else markup.namuwiki_lines
        return to_lines(self.text)


@dataclass(frozen=True)
class ReaderOptions:
    """How to read what does not say it of itself."""

    format: str = "auto"
    encoding: str = "utf-8"
    text_key: str = "text"
    strict: bool = False


class Malformed(Exception):
    """A file that is skipped unless --strict."""


class Input(NamedTuple):
    """What a reader is given."""

    path: str
    file: io.BufferedReader
    options: ReaderOptions
    leave_out: Callable[[str, str], None]
    """Called with the path and what of the file is no text."""

    def texts(self) -> Iterator[str]:
        """Yield the whole file as text, block by block; nothing may have been read of it."""
        assert isinstance(self.file.raw, Utf8Stream)
        return self.file.raw.texts()


def as_document(lines: list[str]) -> Document:
    """Return stripped lines, none blank, as a document; whoever iterates over files knows which one it came from."""
    return Document(0, "\n".join(lines))


def split_lines(text: str) -> list[str]:
    """Return stripped lines, none blank."""
    return [line for raw in text.replace("\r", "").split("\n") if (line := raw.strip())]


def shown(value: Any) -> str:
    """Return the beginning of a value, for a message."""
    return json.dumps(value, ensure_ascii=False, default=str)[:60]


def text_of(row: Any, key: str, where: str) -> str:
    """Return the text of a row, which is one or holds it under `key`; "" for null there.

    Raises UserError in the name of `where` for what has none.
    """
    if isinstance(row, str):  # an array of texts
        return row
    if not isinstance(row, dict):
        raise UserError(
            f"{where}: expected text or an object with the key {key!r}, found {shown(row)}: take it out, or give "
            "--format text if the file is no JSON"
        )
    if key not in row:
        raise UserError(f"{where}: no key {key!r} there, only {', '.join(sorted(row))}: give --text-key NAME")
    text = row[key]
    if text is not None and not isinstance(text, str):
        raise UserError(f"{where}: {key!r} is not text but {shown(text)}: give --text-key NAME")
    return text or ""


def texts_as_documents(rows: Iterable[tuple[str, Any]], given: Input) -> Iterator[Document]:
    """Yield a document for every row, given with its place; refuses a file whose texts are all empty."""
    key, num_rows, num_texts = given.options.text_key, 0, 0
    for where, row in rows:
        lines = split_lines(text_of(row, key, where))
        num_rows, num_texts = num_rows + 1, num_texts + bool(lines)
        yield as_document(lines)
    if num_rows and not num_texts:
        where = "its only row" if num_rows == 1 else f"all {num_rows:,} rows"
        raise UserError(f"{given.path}: {key!r} is empty in {where}: give --text-key NAME")
