"""Corpus files of every format -> documents, in constant memory.

A reader takes an open byte stream and yields documents as lists of lines; markup is left to the workers, which have
more processors than the one process that reads. What a file is shows in its first bytes (`recognize`), or is said.
"""

import codecs
import functools
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_prep.json_readers import read_json, read_jsonl, read_modu, read_namuwiki, read_object
from data_prep.reading import (
    BLOCK_BYTES,
    HEAD_BYTES,
    MAX_DOCUMENT_CHARACTERS,
    Document,
    Input,
    Malformed,
    ReaderOptions,
    Utf8Stream,
)
from data_prep.sources import Source, is_packed, open_source
from data_prep.table_readers import read_parquet, read_tfds
from data_prep.text_readers import read_lines, read_text
from data_prep.wiki_readers import read_wikiextractor, read_wikipedia, read_wikitext
from electra_flax.errors import UserError
from electra_flax.text import marked_encoding


@dataclass
class Corpus:
    """Sources and what reading them has met so far."""

    sources: Sequence[Source]
    options: ReaderOptions = field(default_factory=ReaderOptions)
    warn: Callable[[str], None] = lambda message: None
    bytes_read: int = 0
    malformed: dict[str, str] = field(default_factory=dict)
    """Modu files that are not what they should be, and why."""

    @property
    def total_bytes(self) -> int:
        return sum(source.size for source in self.sources)

    @property
    def text_bytes(self) -> int:
        """Return an estimate: text of compressed files is some 4 times as large."""
        return sum(source.size * (4 if source.is_packed else 1) for source in self.sources)

    def documents(self) -> Iterator[Document]:
        """Yield all documents, file by file. Raises UserError for what cannot be read, naming file and place."""
        for number, source in enumerate(self.sources):
            for _, text, kind in self._documents_of(source):
                if len(text) > MAX_DOCUMENT_CHARACTERS:
                    yield from (Document(number, part, kind) for part in _parts(text))
                elif text:
                    yield Document(number, text.removesuffix("\n"), kind)

    def _documents_of(self, source: Source) -> Iterator[Document]:
        if source.path.startswith("tfds:"):
            yield from read_tfds(source.path)
            return
        with open_source(source, self._count) as packed:
            name, head = self.options.format, packed.peek(HEAD_BYTES)[:HEAD_BYTES]
            if name == "parquet" or (name == "auto" and head.startswith(b"PAR1")):
                name, file = "parquet", packed
            else:
                stream = _as_utf8(packed, head, source.name, self.options)
                if name == "auto":
                    name = recognize(stream.head(), self.options.text_key, source.path)
                file = io.BufferedReader(stream, BLOCK_BYTES)
            try:
                yield from READERS[name](Input(source.name, file, self.options, self._leave_out))
            except Malformed as error:
                self._leave_out(source.name, f"not a Modu corpus file: {error}; skipped from there on")

    def _leave_out(self, path: str, problem: str) -> None:
        """Tell and note what a file holds that is no text, or end all (--strict)."""
        if self.options.strict:
            raise UserError(f"{path}: {problem.removesuffix('; skipped from there on')}")
        self.malformed[path] = problem
        self.warn(f"{path}: {problem} (--strict ends here)")

    def _count(self, num_bytes: int) -> None:
        self.bytes_read += num_bytes


def _as_utf8(file: Any, head: bytes, path: str, options: ReaderOptions) -> Utf8Stream:
    """Return what readers read: UTF-8, whatever the file has, which begins with `head`.

    Its mark or its XML declaration knows better than --encoding.
    """
    encoding, mark = marked_encoding(head)
    file.read(mark)
    if encoding is None:
        declared = re.match(rb"\s*<\?xml[^>]*\sencoding=[\"']([\w.:-]+)[\"']", head)
        encoding = declared[1].decode() if declared else options.encoding
        if not is_encoding(encoding):
            raise UserError(f"{path}: declares the unknown encoding {encoding}: convert it to UTF-8")
        if declared and "<?xml".encode(encoding) != b"<?xml":  # its own bytes say that it is not, such as UTF-16
            encoding = options.encoding
        # What calls itself EUC-KR holds the syllables of its superset.
        encoding = "cp949" if codecs.lookup(encoding).name == "euc_kr" else encoding
    return Utf8Stream(file, path, encoding)


# Python's codecs that are no encodings of files of text.
_NO_TEXT = (
    "idna", "punycode", "charmap", "unicode_escape", "unicode-escape", "raw_unicode_escape", "raw-unicode-escape",
)  # fmt: skip


def is_encoding(name: str) -> bool:
    """Return whether Python knows a text encoding of that name."""
    try:
        return isinstance("\n".encode(name), bytes) and codecs.lookup(name).name not in _NO_TEXT
    except (LookupError, UnicodeError, ValueError):  # ValueError: a NUL in the name
        return False


# What XML may have before its first element; atomic, so that a thousand comments are tried in one way only.
_BEFORE_XML = rb"(?>(?:\s*(?><\?.*?\?>|<!--.*?-->|<!DOCTYPE[^\[>]*(?:\[.*?\]\s*)?>))*)\s*"
_MEDIAWIKI = re.compile(_BEFORE_XML + rb"<mediawiki\b", re.DOTALL)
# Text may begin with a bracket too: an array is what goes on like one, or is called one.
_ARRAY = re.compile(rb'\[\s*(?:[{\]]|$|"(?:[^"\\\n]|\\.)*"\s*(?:,|\]\s*$))')


def recognize(head: bytes, text_key: str, path: str = "") -> str:
    """Return the format of a file that begins with `head`, a key of READERS; its name decides where bytes do not."""
    start = head.lstrip()
    name = os.path.splitext(path)[0] if is_packed(path) else path
    if _MEDIAWIKI.match(start):
        return "wikipedia"
    if start.startswith(b"<doc "):
        return "wikiextractor"
    if _ARRAY.match(start) or (start.startswith(b"[") and name.lower().endswith(".json")):
        return "namuwiki" if b'"namespace"' in start else "json"
    if start.startswith((b"[", b'"')) and name.lower().endswith((".jsonl", ".ndjson")):
        return "jsonl"
    if start.startswith(b"{"):
        key = json.dumps(text_key).encode()
        first_line = start.split(b"\n", 1)[0]
        is_modu = re.search(rb'"document"\s*:', start) and key + b":" not in re.sub(rb"\s+:", b":", first_line)
        if is_modu:
            return "modu"
        # A line that opens more than it closes is the first of an object over many lines.
        return "jsonl" if first_line.rstrip().endswith(b"}") or b"\n" not in start else "object"
    if re.match(rb" ?= [^=\n]+ =\s*\n", start):
        return "wikitext"
    return "text"


def _parts(text: str) -> Iterator[str]:
    """Yield a document that is too long to be held many times over, cut at lines where there are any."""
    start = 0
    while start < len(text):
        end = start + MAX_DOCUMENT_CHARACTERS
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        yield text[start:end].removesuffix("\n")
        start = end


READERS: dict[str, Callable[[Input], Iterator[Document]]] = {
    "text": read_text,
    "lines": read_lines,
    "file": functools.partial(read_text, blank_line_closes=False),
    "wikitext": read_wikitext,
    "wikiextractor": read_wikiextractor,
    "jsonl": read_jsonl,
    "object": read_object,
    "json": read_json,
    "wikipedia": read_wikipedia,
    "namuwiki": read_namuwiki,
    "modu": read_modu,
    "parquet": read_parquet,
}
