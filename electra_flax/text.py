"""Bytes -> text, the one way for every file that people hand over: byte order marks, encodings, broken characters."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from typing import Any

from electra_flax.errors import UserError

# The longer ones first: UTF-32's begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


_HEAD_BYTES = 1 << 16
# Where CP949 has what Korean hardly uses, single vowels but ㅜ ㅠ ㅡ, letters of old, Greek, Roman numbers, EUC-JP has
# the kana of every sentence; its kanji are syllables there.
_SYLLABLES = re.compile("[가-힣]")
_HARDLY_KOREAN = re.compile("[\u314f-\u315b\u315d-\u315f\u3162-\u318e\u0370-\u03ff\u2160-\u217f]")


def marked_encoding(head: bytes) -> tuple[str | None, int]:
    """Return (encoding, bytes of the mark) by the byte order mark that `head` begins with; (None, 0) without one."""
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding, len(mark)
    return None, 0


def decode(data: bytes, where: object, encoding: str = "utf-8") -> str:
    """Return a whole file's text; a byte order mark wins over `encoding` and is no content.

    Raises UserError naming `where`, the line and the likely encoding.
    """
    marked, skip = marked_encoding(data)
    encoding = marked or encoding
    try:
        return data[skip:].decode(encoding)
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        rest = error.object[error.start :].split(b"\n", 1)[0]
        raise UserError(
            f"{where} line {line}: byte 0x{error.object[error.start]:02x} is not {encoding.upper()}; "
            f"{encoding_advice(rest, encoding)}"
        ) from None


def encoding_advice(
    raw: bytes,
    encoding: str,
    cp949: str = "convert it, for example: iconv -f CP949 -t UTF-8",
    other: str = "save it as UTF-8, for example: iconv -f ENCODING -t UTF-8",
) -> str:
    """Return what to do about a line's bytes that are not in `encoding`; CP949 is recognized by its Hangul."""
    if codecs.lookup(encoding).name == "utf-8":
        try:
            text = codecs.getincrementaldecoder("cp949")().decode(raw)  # the end may be half a letter
        except UnicodeDecodeError:
            return other
        # Bytes of other encodings may be CP949 too, but then of signs and hanja that hardly anybody writes.
        if len(_SYLLABLES.findall(text)) >= max(1, 2 * len(_HARDLY_KOREAN.findall(text))):
            return f"it reads as Korean in CP949 (EUC-KR): {cp949}"
    return other


class Utf8Stream(io.RawIOBase):
    """A byte stream in any encoding as UTF-8: no byte order mark, LF alone ends lines, in constant memory.

    Reading raises UserError, with line and column, for a byte that is not in the encoding, and for a NUL.
    """

    def __init__(self, file: Any, where: object, encoding: str, block_bytes: int = 1 << 20) -> None:
        """Read `file`, which begins after a byte order mark that has decided `encoding`."""
        name = codecs.lookup(encoding).name
        if name in ("utf-16", "utf-32"):  # Python's decoders of these insist on a mark
            encoding = name + _byte_order(file.peek(_HEAD_BYTES)[:_HEAD_BYTES])
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
        return bytes(self._ready[:_HEAD_BYTES])

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


def without_halves(text: str) -> str:
    """Return text with U+FFFD for halves of surrogate pairs: JSON and arguments hold them; they are no characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
