"""What readers make and are given: documents, options, a file as UTF-8; rows and lines of text as documents."""

import codecs
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from data_prep import markup
from electra_flax.errors import UserError
from electra_flax.text import encoding_advice, without_halves

Markup = Literal["none", "wikipedia", "namuwiki"]
# A document or a line beyond these is cut, so that no input grows without bound.
MAX_DOCUMENT_CHARACTERS = 1_000_000
BLOCK_BYTES = 1 << 20
HEAD_BYTES = 1 << 16
_MAX_LINE_CHARACTERS = 1 << 20


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


class Utf8Stream(io.RawIOBase):
    """A byte stream in any encoding as UTF-8: no byte order mark, LF alone ends lines, in constant memory.

    Reading raises UserError, with line and column, for a byte that is not in the encoding, and for a NUL.
    """

    def __init__(self, file: Any, where: object, encoding: str, block_bytes: int = 1 << 20) -> None:
        """Read `file`, which begins after a byte order mark that has decided `encoding`."""
        name = codecs.lookup(encoding).name
        if name in ("utf-16", "utf-32"):  # Python's decoders of these insist on a mark
            encoding = name + _byte_order(file.peek(HEAD_BYTES)[:HEAD_BYTES])
        self._file, self._where, self._encoding, self._block_bytes = file, where, encoding, block_bytes
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._lines = io.IncrementalNewlineDecoder(None, translate=True)
        self._is_utf8 = codecs.lookup(encoding).name == "utf-8"
        self._ready, self._at_end, self._given = memoryview(b""), False, 0
        self._ready_text = ""  # of _ready, as long as nothing of it was read
        self._line, self._column = 1, 0  # of what was decoded

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._given

    def head(self) -> bytes:
        """Return what comes next, at least a character where anything does; it stays unread."""
        while not self._ready and not self._at_end:
            text, own = self._next()
            self._ready, self._ready_text = memoryview(text.encode() if own is None else own), text
        return bytes(self._ready[:HEAD_BYTES])

    def texts(self) -> Iterator[str]:
        """Yield all of it as text, block by block; for readers of text, which would decode the bytes once more."""
        text, self._ready, self._ready_text = self._ready_text, memoryview(b""), ""
        yield text
        while not self._at_end:
            yield self._next(with_bytes=False)[0]

    def readinto(self, buffer: Any) -> int:
        self.head()
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        self._ready_text = ""
        self._given += count
        return count

    def _next(self, *, with_bytes: bool = True) -> tuple[str, bytes | None]:
        """Return a block, and its bytes where those of the file are what is given on."""
        before = self._pending()
        raw = self._file.read(self._block_bytes)
        self._at_end = not raw
        try:
            text = self._decoder.decode(raw, final=self._at_end)
        except UnicodeDecodeError as error:
            raise self._refusal(error) from None
        except UnicodeError as error:  # codecs that say no more, such as punycode
            raise UserError(f"{self._where} line {self._line}: not {self._encoding.upper()}: {error}") from None
        # Bytes are searched much faster than text, and one byte much faster than three.
        own = raw if self._is_utf8 else (text := without_halves(text)).encode()
        if b"\0" in own:
            self._advance(_with_lf(text[: text.index("\0")]))
            raise self._not_text()
        has_mark = (b"\xef" in own or before.startswith(b"\xef")) and "\ufeff" in text  # of files that were joined
        if has_mark:
            text = text.replace("\ufeff", "")
        # Also where the block before ended with a CR, which is one line end with an LF that comes now.
        if b"\r" in own or self._lines.getstate()[1]:
            text = self._lines.decode(text, final=self._at_end)
            self._advance(text)
            return text, None
        self._advance(text, own.count(b"\n"))
        if self._is_utf8 and with_bytes:
            own = before + own
            own = own[: len(own) - len(self._pending())]
        return text, None if has_mark else own

    def _refusal(self, error: UnicodeDecodeError) -> UserError:
        self._advance(_with_lf(error.object[: error.start].decode(self._encoding, "ignore")))
        if b"\0" in error.object:
            return self._not_text()
        rest = error.object[error.start :]
        rest = rest[:1] + rest[1:].split(b"\n", 1)[0]
        return UserError(
            f"{self._where} line {self._line}: byte 0x{rest[0]:02x} at column {self._column + 1} is not "
            f"{self._encoding.upper()}; "
            + encoding_advice(rest, self._encoding, "give --encoding cp949", "give --encoding NAME, or convert "
                              "the file, for example: iconv -f CP949 -t UTF-8")
        )  # fmt: skip

    def _pending(self) -> bytes:
        """Return the beginning of a character that the next block goes on with."""
        return self._decoder.getstate()[0] if self._is_utf8 else b""

    def _not_text(self) -> UserError:
        return UserError(
            f"{self._where} line {self._line}: a NUL byte: not a text file in {self._encoding}; UTF-16 without a byte "
            "order mark needs --encoding utf-16-le"
        )

    def _advance(self, text: str, lines: int | None = None) -> None:
        self._line += text.count("\n") if lines is None else lines
        last = text.rfind("\n")
        self._column = len(text) - last - 1 if last >= 0 else self._column + len(text)


def _byte_order(head: bytes) -> str:
    """Return the suffix of UTF-16's or UTF-32's name, by where the zero bytes of spaces, digits and line ends lie."""
    return "-be" if head[::2].count(0) > head[1::2].count(0) else "-le"


def _with_lf(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


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


def stripped_lines(given: Input) -> Iterator[str]:
    """Yield stripped lines."""
    rest = ""
    for text in given.texts():
        *lines, rest = (rest + text).split("\n")
        if len(rest) >= _MAX_LINE_CHARACTERS:
            space = rest.rfind(" ") + 1 or len(rest)
            lines.append(rest[:space])
            rest = rest[space:]
        yield from map(str.strip, lines)
    yield rest.strip()


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
