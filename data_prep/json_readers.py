"""JSON in every shape that corpora have -> documents: lines, arrays, objects, Namuwiki's dump, the Modu corpus."""

import io
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import ijson

from data_prep import markup
from data_prep.reading import (
    BLOCK_BYTES,
    Document,
    Input,
    Malformed,
    as_document,
    shown,
    split_lines,
    text_of,
    texts_as_documents,
)
from electra_flax.errors import UserError
from electra_flax.formats import counted
from electra_flax.text import without_halves

_MAX_JSON_LINE_BYTES = 256 << 20
_DECODER = json.JSONDecoder(parse_int=float)  # numbers are not read, and an int has a limit of digits


def read_jsonl(given: Input) -> Iterator[Document]:
    """Yield the documents of lines of one object each, its text under --text-key; WikiExtractor's --json too."""

    def rows() -> Iterator[tuple[str, Any]]:
        number = 0
        while raw := given.file.readline(_MAX_JSON_LINE_BYTES):
            number += 1
            if line := raw.strip():
                where = f"{given.path} line {number}"
                yield where, _parsed(line, where, "an object a line")

    yield from texts_as_documents(rows(), given)


def read_object(given: Input) -> Iterator[Document]:
    """Yield the document of one object over many lines, its text under --text-key."""
    data = given.file.read(_MAX_JSON_LINE_BYTES)
    row = _parsed(data, given.path, "one object, an array of objects, or an object a line")
    yield from texts_as_documents([(given.path, row)], given)


def _parsed(data: bytes, where: str, expected: str) -> Any:
    try:
        row = _DECODER.decode(data.decode(errors="replace"))  # a line that was cut ends anywhere
    except json.JSONDecodeError as error:
        line = f" line {error.lineno}" if b"\n" in data else ""
        raise UserError(f"{where}{line} column {error.colno}: broken JSON: {error.msg}; expected {expected}") from None
    except RecursionError:
        raise UserError(f"{where}: JSON nested too deeply: remove it") from None
    if b"\\u" not in data:
        return row
    if isinstance(row, dict):
        return {name: without_halves(value) if isinstance(value, str) else value for name, value in row.items()}
    return without_halves(row) if isinstance(row, str) else row


# One escape; `half` is a surrogate without its other half. Taken one after the other, because an escaped backslash
# before "ud800" leaves plain letters.
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u(?P<half>[dD][89a-fA-F][0-9a-fA-F]{2})|"
    rb"u[0-9a-fA-F]{4}|[^u])",
    re.DOTALL,
)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # found fast, and rare: 한 is \ud55c
# The same where the rest is to stay: an even number of backslashes before it are themselves escaped.
_PAIR_OR_HALF = re.compile(
    rb"(?<!\\)(?P<before>(?:\\\\)*)(?:\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|"
    rb"\\u(?P<half>[dD][89a-fA-F][0-9a-fA-F]{2}))"
)


def _whole_pairs(data: bytes) -> bytes:
    """Return JSON with U+FFFD for escapes of half a surrogate pair, which are no characters."""
    if not _SURROGATE.search(data):
        return data
    return _PAIR_OR_HALF.sub(lambda found: found["before"] + b"\\ufffd" if found["half"] else found[0], data)


# ijson keeps a path for each level, each longer than the one above: gigabytes for what nobody means.
_DEEP = re.compile(rb'(?:[\[{]\s*(?:"[^"]{0,100}"\s*:\s*)?){5000}')


class WithoutHalves:
    """JSON with `_whole_pairs`, of whose halves ijson makes question marks, read block by block."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file, self._rest = file, b""

    def read(self, size: int = BLOCK_BYTES) -> bytes:
        more = self._file.read(size)
        data = self._rest + more
        cut = self._last_escape(data) if more else len(data)
        data, self._rest = data[:cut], data[cut:]
        if data.count(b"[") + data.count(b"{") >= 5000 and _DEEP.search(data):
            raise ValueError("nested more than 5,000 levels deep")
        data = _whole_pairs(data)
        return data or (self.read(size) if self._rest else b"")  # nothing means the end to ijson

    @staticmethod
    def _last_escape(data: bytes) -> int:
        """Return where an escape begins that may go on in the next block, or the end."""
        # A pair of escapes is 12 bytes long: only an escape among the last ones may be cut.
        if data.rfind(b"\\", max(0, len(data) - 12)) < 0:
            return len(data)
        end = data.rfind(b" ", 0, len(data) - 12) + 1  # no escape goes on over a space
        for found in _ESCAPE.finditer(data, end):
            if found["half"] and found.end() > len(data) - 6:
                return found.start()
            end = found.end()
        cut = data.find(b"\\", max(end, len(data) - 12))
        return len(data) if cut < 0 else cut


def _items(given: Input, prefix: str) -> Iterator[Any]:
    """Yield the members of an array, one at a time. Raises UserError at the byte where the JSON breaks."""
    try:
        # Without use_float an integer of more than 4,300 digits ends Python itself.
        yield from ijson.items(WithoutHalves(given.file), prefix, use_float=True)
    except (ijson.JSONError, UnicodeDecodeError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        said = error.args[0] if error.args else ""
        # Bytes where the place that it shows begins or ends within a letter.
        text = said.decode(errors="replace") if isinstance(said, bytes) else str(error)
        reason = " ".join(text.split("\n")[0].split())
        if "overflow" in reason:
            raise UserError(
                f"{given.path}: before byte {given.file.tell():,}: a number beyond 64 bits: put it in quotes, or give "
                "the rows as JSON lines"
            ) from None
        raise UserError(
            f"{given.path}: broken JSON before byte {given.file.tell():,}: {reason}; copy the file again"
        ) from None


def read_json(given: Input) -> Iterator[Document]:
    """Yield the documents of one array of objects, their text under --text-key."""
    numbered = enumerate(_items(given, "item"), start=1)
    yield from texts_as_documents(((f"{given.path} object {number}", row) for number, row in numbered), given)


def read_namuwiki(given: Input) -> Iterator[Document]:
    """Yield the articles (namespace 0) of a dump of Namuwiki: one array of {namespace, title, text}; no redirects."""
    for number, row in enumerate(_items(given, "item"), start=1):
        if not isinstance(row, dict):
            raise UserError(f"{given.path} object {number}: expected an article, found {shown(row)}")
        text = text_of(row, "text", f"{given.path} object {number}")
        if str(row.get("namespace")) == "0" and text and not markup.is_namuwiki_redirect(text):
            yield Document(0, text, "namuwiki")


def read_modu(given: Input) -> Iterator[Document]:
    """Yield the Modu corpus of NIKL: news, written and web (paragraph), spoken and messenger (utterance), entities.

    A document that is none is left out, and so is a form that is no text; both are counted.
    """
    found, problems, forms = False, list[str](), 0
    try:
        for item in _items(given, "document.item"):
            found = True
            try:
                lines, empty = _modu_lines(item)
            except Malformed as error:
                problems.append(str(error))
                continue
            forms += empty
            yield as_document(lines)
    except UserError as error:
        raise Malformed(str(error).removeprefix(f"{given.path}: ")) from None
    if not found:
        raise Malformed('no "document" array with members')
    left = [f"{counted(len(problems), 'documents')} left out, the first: {problems[0]}"] if problems else []
    left += [f"{counted(forms, 'forms')} left out as no text"] if forms else []
    if left:
        given.leave_out(given.path, "; ".join(left))


def _modu_lines(document: Any) -> tuple[list[str], int]:
    """Return lines of text, and how many forms are none: null or a number."""
    try:
        kinds = ("utterance", "paragraph", "sentence")
        kind = next((kind for kind in kinds if document.get(kind) is not None), "sentence")
        parts = [(part.get("speaker_id"), part["form"]) for part in document[kind]]
        texts = [(speaker, form) for speaker, form in parts if isinstance(form, str)]
        if kind == "utterance":
            turns = itertools.groupby(texts, key=lambda part: part[0])
            forms = [" ".join(form for _, form in turn if form) for _, turn in turns]
        else:
            forms = [form for _, form in texts]
        return [line for form in forms for line in split_lines(form)], len(parts) - len(texts)
    except (KeyError, TypeError, AttributeError) as error:
        name = document.get("id", "?") if isinstance(document, dict) else "?"
        raise Malformed(f"document {name}: {type(error).__name__} {error}") from None
