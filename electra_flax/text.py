"""What bytes that people hand over are as text: byte order marks, the likely encoding, broken characters."""

from __future__ import annotations

import codecs
import re

# The longer ones first: UTF-32's begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
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


def without_halves(text: str) -> str:
    """Return text with U+FFFD for halves of surrogate pairs: JSON and arguments hold them; they are no characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
