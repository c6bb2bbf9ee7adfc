"""Corpus files of every format -> documents, in constant memory.

A reader takes an open byte stream and yields documents as lists of lines; markup is left to the workers, which have
more processors than the one process that reads. What a file is shows in its first bytes (`recognize`), or is said.
"""

from __future__ import annotations

import codecs
import functools
import html
import io
import itertools
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import ijson

from data_prep import markup
from data_prep.sources import Source, open_source
from electra_flax.errors import UserError
from electra_flax.text import Utf8Stream, marked_encoding, without_halves

Markup = Literal["none", "wikipedia", "namuwiki"]
# A document or a line beyond these is cut, so that no input grows without bound.
MAX_DOCUMENT_CHARACTERS = 1_000_000
_MAX_LINE_CHARACTERS = 1 << 20
_BLOCK_BYTES = 1 << 20
_MAX_JSON_LINE_BYTES = 256 << 20
_HEAD_BYTES = 1 << 16


class Document(NamedTuple):
    """Text of a corpus file; in one string, which goes to a worker at a tenth of the price of many."""

    source: int
    """Which of the corpus files it came from."""
    text: str
    """Stripped lines, none blank; where there is markup, as the file has it."""
    markup: Markup = "none"

    def lines(self) -> list[str]:
        """Lines of text without their line ends and without markup, none blank."""
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
        """An estimate: text of compressed files is some 4 times as large."""
        return sum(source.size * (4 if source.is_packed else 1) for source in self.sources)

    def documents(self) -> Iterator[Document]:
        """All documents, file by file. Raises UserError for what cannot be read, naming file and place."""
        for number, source in enumerate(self.sources):
            for document in self._documents_of(source):
                yield from _cut(document._replace(source=number, text=without_halves(document.text)))

    def _documents_of(self, source: Source) -> Iterator[Document]:
        if source.path.startswith("tfds:"):
            yield from _read_tfds(source.path)
            return
        with open_source(source, self._count) as packed:
            file = _as_utf8(packed, source.name, self.options)
            name = self.options.format
            if name == "auto":
                name = recognize(file.peek(_HEAD_BYTES)[:_HEAD_BYTES], self.options.text_key)
            try:
                yield from READERS[name](_Input(source.name, file, self.options, self._leave_out))
            except _Malformed as error:
                self._leave_out(source.name, f"not a Modu corpus file: {error}; skipped from there on")

    def _leave_out(self, path: str, problem: str) -> None:
        """What a file holds that is no text is told and noted, or ends all (--strict)."""
        if self.options.strict:
            raise UserError(f"{path}: {problem.removesuffix('; skipped from there on')}")
        self.malformed[path] = problem
        self.warn(f"{path}: {problem} (--strict ends here)")

    def _count(self, num_bytes: int) -> None:
        self.bytes_read += num_bytes


def _as_utf8(file: Any, path: str, options: ReaderOptions) -> Any:
    """What readers read: UTF-8, whatever the file has. Its mark or its XML declaration knows better than --encoding."""
    head = file.peek(_HEAD_BYTES)[:_HEAD_BYTES]
    if options.format == "parquet" or (options.format == "auto" and head.startswith(b"PAR1")):
        return file
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
    return io.BufferedReader(Utf8Stream(file, path, encoding), _BLOCK_BYTES)


def is_encoding(name: str) -> bool:
    """Whether Python knows a text encoding of that name."""
    try:
        return isinstance("\n".encode(name), bytes)
    except (LookupError, UnicodeError, ValueError):  # ValueError: a NUL in the name
        return False


class _Malformed(Exception):
    """A file that is skipped unless --strict."""


class _Input(NamedTuple):
    path: str
    file: io.BufferedReader
    options: ReaderOptions
    leave_out: Callable[[str, str], None]
    """Called with the path and what of the file is no text."""


def recognize(head: bytes, text_key: str) -> str:
    """The format of a file that begins with `head`: a key of READERS."""
    start = head.lstrip()
    if head.startswith(b"PAR1"):
        return "parquet"
    if re.match(rb"(?:<\?xml[^>]*>\s*)?<mediawiki\b", start):
        return "wikipedia"
    if start.startswith(b"<doc "):
        return "wikiextractor"
    if re.match(rb'\[\s*(?:[{\]]|$|"(?:[^"\\\n]|\\.)*"\s*(?:,|\]\s*$))', start):
        return "namuwiki" if b'"namespace"' in start else "json"
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


def _document(lines: list[str]) -> Document:
    return Document(0, "\n".join(lines))


def _cut(document: Document) -> Iterator[Document]:
    """The document, or its parts where it is too long to be held many times over."""
    text, start = document.text, 0
    while start < len(text):
        end = start + MAX_DOCUMENT_CHARACTERS
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        yield document._replace(text=text[start:end].removesuffix("\n"))
        start = end


# ---------------------------------------------------------------------------------------------------- plain text


def _lines(given: _Input) -> Iterator[str]:
    """Stripped lines."""
    rest, at_end = "", False
    decoder = codecs.getincrementaldecoder("utf-8")()
    while not at_end:
        raw = given.file.read(_BLOCK_BYTES)
        at_end = not raw
        *lines, rest = (rest + decoder.decode(raw, final=at_end)).split("\n")
        if at_end:
            lines.append(rest)
        elif len(rest) >= _MAX_LINE_CHARACTERS:
            space = rest.rfind(" ") + 1 or len(rest)
            lines.append(rest[:space])
            rest = rest[space:]
        yield from map(str.strip, lines)


def _read_text(given: _Input, blank_line_closes: bool = True) -> Iterator[Document]:
    """A blank line or the end of the file closes a document."""
    lines: list[str] = []
    length = 0
    for line in _lines(given):
        if line:
            lines.append(line)
            length += len(line)
        if lines and (blank_line_closes and not line or length >= MAX_DOCUMENT_CHARACTERS):
            yield _document(lines)
            lines, length = [], 0
    yield _document(lines)


def _read_lines(given: _Input) -> Iterator[Document]:
    """Every line is a document."""
    yield from (Document(0, line) for line in _lines(given) if line)


_HEADING = re.compile(r"((?:= ?)+)[^=].*=$")


def _read_wikitext(given: _Input) -> Iterator[Document]:
    """` = title =` begins a document; other headings are left out."""
    lines: list[str] = []
    for line in _lines(given):
        if heading := _HEADING.match(line):
            if heading[1].count("=") == 1:
                yield _document(lines)
                lines = []
        elif line:
            lines.append(line)
    yield _document(lines)


_DOC_MARKS = re.compile(r"(<doc [^\n]*?>(?=\s|$|</doc>)|</doc>)")


def _read_wikiextractor(given: _Input) -> Iterator[Document]:
    """`<doc id=... title=...>` to `</doc>`; the first line, which repeats the title, is left out."""
    lines: list[str] = []
    title, is_inside = "", False
    for raw in _lines(given):
        for line in filter(None, map(str.strip, _DOC_MARKS.split(raw))):
            if line.startswith("<doc "):
                found = re.search(r'title="(.*)"\s*>$', line)
                title, lines, is_inside = html.unescape(found[1]) if found else "", [], True
            elif line == "</doc>":
                yield _document(lines)
                lines, is_inside = [], False
            else:
                texts = markup.html_lines(line)
                lines += texts if lines or texts != [title] else []
    if is_inside:
        raise UserError(f"{given.path}: ends inside a <doc>: truncated; copy the file again")


# ------------------------------------------------------------------------------------------- JSON, XML, Parquet


def _split(text: str) -> list[str]:
    return [line for raw in text.replace("\r", "").split("\n") if (line := raw.strip())]


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)[:60]


def _text_of(row: Any, key: str, where: str) -> str:
    if isinstance(row, str):  # an array of texts
        return row
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object with the key {key!r}, found {_shown(row)}")
    if key not in row:
        raise UserError(f"{where}: no key {key!r} there, only {', '.join(sorted(row))}: give --text-key NAME")
    text = row[key]
    if text is not None and not isinstance(text, str):
        raise UserError(f"{where}: {key!r} is not text but {_shown(text)}: give --text-key NAME")
    return text or ""


def _texts(rows: Iterable[tuple[str, Any]], given: _Input) -> Iterator[Document]:
    """A document for every row, given with its place; refuses a file whose texts are all empty."""
    key, num_rows, num_texts = given.options.text_key, 0, 0
    for where, row in rows:
        lines = _split(_text_of(row, key, where))
        num_rows, num_texts = num_rows + 1, num_texts + bool(lines)
        yield _document(lines)
    if num_rows and not num_texts:
        raise UserError(f"{given.path}: {key!r} is empty in all {num_rows:,} rows: give --text-key NAME")


def _read_jsonl(given: _Input) -> Iterator[Document]:
    """An object a line, its text under --text-key; WikiExtractor's --json too."""

    def rows() -> Iterator[tuple[str, Any]]:
        number = 0
        while raw := given.file.readline(_MAX_JSON_LINE_BYTES):
            number += 1
            if line := raw.strip():
                where = f"{given.path} line {number}"
                yield where, _parsed(line, where, "an object a line")

    yield from _texts(rows(), given)


def _read_object(given: _Input) -> Iterator[Document]:
    """One object over many lines: a document, its text under --text-key."""
    data = given.file.read(_MAX_JSON_LINE_BYTES)
    row = _parsed(data, given.path, "one object, an array of objects, or an object a line")
    yield from _texts([(given.path, row)], given)


def _parsed(data: bytes, where: str, expected: str) -> Any:
    try:
        return json.loads(data, parse_int=float)  # numbers are not read, and an int has a limit of digits
    except json.JSONDecodeError as error:
        line = f" line {error.lineno}" if b"\n" in data else ""
        raise UserError(f"{where}{line} column {error.colno}: broken JSON: {error.msg}; expected {expected}") from None
    except RecursionError:
        raise UserError(f"{where}: JSON nested too deep to be read: remove it") from None


_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u(?P<half>[dD][89a-fA-F][0-9a-fA-F]{2})|"
    rb"u[0-9a-fA-F]{4}|[^u])",
    re.DOTALL,
)


# ijson keeps a path for each level, each longer than the one above: gigabytes for what nobody means.
_DEEP = re.compile(rb'(?:[\[{]\s*(?:"[^"]{0,100}"\s*:\s*)?){5000}')


class _WithoutHalves:
    """JSON whose escapes of half a surrogate pair, of which ijson makes question marks, are U+FFFD."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file, self._rest = file, b""

    def read(self, size: int = _BLOCK_BYTES) -> bytes:
        more = self._file.read(size)
        data = self._rest + more
        cut = self._last_escape(data) if more else len(data)
        data, self._rest = data[:cut], data[cut:]
        if data.count(b"[") + data.count(b"{") >= 5000 and _DEEP.search(data):
            raise ValueError("nested more than 5,000 levels deep")
        if b"\\ud" in data or b"\\uD" in data:
            data = _ESCAPE.sub(lambda found: b"\\ufffd" if found["half"] else found[0], data)
        return data or (self.read(size) if self._rest else b"")  # nothing means the end to ijson

    @staticmethod
    def _last_escape(data: bytes) -> int:
        """Where an escape begins that may go on in the next block, or the end."""
        if data.rfind(b"\\", max(0, len(data) - 12)) < 0:
            return len(data)
        end = 0
        for found in _ESCAPE.finditer(data):
            if found["half"] and found.end() > len(data) - 6:
                return found.start()
            end = found.end()
        cut = data.find(b"\\", max(end, len(data) - 12))
        return len(data) if cut < 0 else cut


def _items(given: _Input, prefix: str) -> Iterator[Any]:
    """The members of an array, one at a time. Raises UserError at the byte where the JSON breaks."""
    try:
        # Without use_float an integer of more than 4,300 digits ends Python itself.
        yield from ijson.items(_WithoutHalves(given.file), prefix, use_float=True)
    except (ijson.JSONError, UnicodeDecodeError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        reason = " ".join(str(error).split("\n")[0].split())
        if "overflow" in reason:
            raise UserError(
                f"{given.path}: before byte {given.file.tell():,}: a number beyond 64 bits: put it in quotes, or give "
                "the rows as JSON lines"
            ) from None
        raise UserError(
            f"{given.path}: broken JSON before byte {given.file.tell():,}: {reason}; copy the file again"
        ) from None


def _read_json(given: _Input) -> Iterator[Document]:
    """One array of objects, their text under --text-key."""
    numbered = enumerate(_items(given, "item"), start=1)
    yield from _texts(((f"{given.path} object {number}", row) for number, row in numbered), given)


def _read_namuwiki(given: _Input) -> Iterator[Document]:
    """A dump of Namuwiki: one array of {namespace, title, text}; articles (namespace 0) that are no redirects."""
    for number, row in enumerate(_items(given, "item"), start=1):
        if not isinstance(row, dict):
            raise UserError(f"{given.path} object {number}: expected an article, found {_shown(row)}")
        text = _text_of(row, "text", f"{given.path} object {number}")
        if str(row.get("namespace")) == "0" and text and not markup.is_namuwiki_redirect(text):
            yield Document(0, text, "namuwiki")


def _read_modu(given: _Input) -> Iterator[Document]:
    """The Modu corpus of NIKL: news, written and web (paragraph), spoken and messenger (utterance), entities.

    A document that is none is left out, and so is a form that is no text; both are counted.
    """
    found, problems, forms = False, list[str](), 0
    try:
        for item in _items(given, "document.item"):
            found = True
            try:
                lines, empty = _modu_lines(item)
            except _Malformed as error:
                problems.append(str(error))
                continue
            forms += empty
            yield _document(lines)
    except UserError as error:
        raise _Malformed(str(error).removeprefix(f"{given.path}: ")) from None
    if not found:
        raise _Malformed('no "document" array with members')
    left = [f"{len(problems)} documents left out, the first: {problems[0]}"] if problems else []
    left += [f"{forms} forms left out, which are no text"] if forms else []
    if left:
        given.leave_out(given.path, "; ".join(left))


def _modu_lines(document: Any) -> tuple[list[str], int]:
    """Lines of text, and how many forms are none: null or a number."""
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
        return [line for form in forms for line in _split(form)], len(parts) - len(texts)
    except (KeyError, TypeError, AttributeError) as error:
        name = document.get("id", "?") if isinstance(document, dict) else "?"
        raise _Malformed(f"document {name}: {type(error).__name__} {error}") from None


def _read_wikipedia(given: _Input) -> Iterator[Document]:
    """pages-articles XML: pages of the main namespace that are no redirects."""
    parents: list[Any] = []
    try:
        parser = ElementTree.XMLParser(encoding="utf-8")  # whatever it declares: it was decoded
        for event, element in ElementTree.iterparse(given.file, events=("start", "end"), parser=parser):
            if event == "start":
                parents.append(element)
                continue
            parents.pop()
            if element.tag.rpartition("}")[2] != "page":
                continue
            namespace = element.tag.removesuffix("page")
            text = element.findtext(f"{namespace}revision/{namespace}text")
            is_article = element.findtext(f"{namespace}ns") == "0" and element.find(f"{namespace}redirect") is None
            if is_article and text:
                yield Document(0, text, "wikipedia")
            parents[-1].clear()
    except ElementTree.ParseError as error:
        line, column = error.position
        raise UserError(
            f"{given.path} line {line} column {column}: broken XML: {error.msg}; copy the file again"
        ) from None


def _read_parquet(given: _Input) -> Iterator[Document]:
    """A column of text, row group by row group."""
    try:
        from pyarrow import ArrowException, parquet
    except ModuleNotFoundError:
        raise UserError(f"{given.path}: Parquet needs pyarrow: pip install 'electra-flax[corpora]'") from None
    key = given.options.text_key

    def rows() -> Iterator[tuple[str, Any]]:
        table = parquet.ParquetFile(given.file, buffer_size=1 << 20, pre_buffer=False)
        if key not in table.schema_arrow.names:
            names = ", ".join(table.schema_arrow.names)
            raise UserError(f"{given.path}: no column {key!r} there, only {names}: give --text-key NAME")
        batches = table.iter_batches(batch_size=256, columns=[key])
        texts = (text for batch in batches for text in batch.column(0).to_pylist())
        for number, text in enumerate(texts, start=1):
            yield f"{given.path} row {number}", {key: text}

    try:
        yield from _texts(rows(), given)
    except ArrowException as error:
        raise UserError(f"{given.path}: not a readable Parquet file: {error}; copy the file again") from None


def _read_tfds(path: str) -> Iterator[Document]:
    """tfds:NAME[:split][:feature], as tensorflow-datasets names them; a folder of a prepared data set works too."""
    name, split, feature = [*path.removeprefix("tfds:").split(":"), "", ""][:3]
    try:
        import tensorflow_datasets as tfds
    except ModuleNotFoundError:
        raise UserError(f"{path}: needs tensorflow-datasets: pip install 'electra-flax[tfds]'") from None
    try:
        builder = tfds.builder_from_directory(name) if "/" in name and name[0] in "./" else tfds.builder(name)
        builder.download_and_prepare()
        data = builder.as_dataset(split=split or "train", shuffle_files=False)
    except Exception as error:  # a registry, the network and a disk are behind these calls
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{path}: cannot be opened: {reason}; expected tfds:NAME[:split][:feature]") from None
    feature = feature or "text"
    if feature not in builder.info.features:
        raise UserError(f"{path}: no feature {feature!r}, only {', '.join(builder.info.features)}")
    for row in tfds.as_numpy(data):
        yield _document(_split(row[feature].decode()))


READERS: dict[str, Callable[[_Input], Iterator[Document]]] = {
    "text": _read_text,
    "lines": _read_lines,
    "file": functools.partial(_read_text, blank_line_closes=False),
    "wikitext": _read_wikitext,
    "wikiextractor": _read_wikiextractor,
    "jsonl": _read_jsonl,
    "object": _read_object,
    "json": _read_json,
    "wikipedia": _read_wikipedia,
    "namuwiki": _read_namuwiki,
    "modu": _read_modu,
    "parquet": _read_parquet,
}
