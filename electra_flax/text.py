"""Bytes -> text, the one way for every file that people hand over: byte order marks, encodings, broken characters."""

from __future__ import annotations

import codecs
import re

from electra_flax.errors import UserError

# The longer ones first: UTF-32's begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def marked_encoding(head: bytes) -> tuple[str | None, int]:
    """(encoding, bytes of the mark) by the byte order mark that `head` begins with; (None, 0) without one."""
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding, len(mark)
    return None, 0


def decode(data: bytes, where: object, encoding: str = "utf-8") -> str:
    """A whole file's text; a byte order mark wins over `encoding` and is no content.

    Raises UserError naming `where`, the line and the likely encoding.
    """
    marked, skip = marked_encoding(data)
    encoding = marked or encoding
    try:
        return data[skip:].decode(encoding)
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        line = before.count(b"\n") + 1
        raise UserError(
            f"{where} line {line}: byte 0x{error.object[error.start]:02x} is not {encoding.upper()}; "
            f"{encoding_advice(error.object, encoding)}"
        ) from None


def encoding_advice(raw: bytes, encoding: str) -> str:
    """What to do about bytes that are not in `encoding`; CP949 is recognized by the Hangul that it gives."""
    if encoding.lower().replace("-", "") == "utf8":
        text = raw.decode("cp949", "ignore")
        if 4 * len(re.findall("[가-힣]", text)) > sum(octet > 0x7F for octet in raw):  # two bytes a syllable
            return "it reads as Korean in CP949 (EUC-KR): convert it, for example: iconv -f CP949 -t UTF-8"
    return "save it as UTF-8, for example: iconv -f ENCODING -t UTF-8"


def without_halves(text: str) -> str:
    """JSON and arguments can hold half a surrogate pair, which is no character: U+FFFD takes its place."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
