"""Wikipedia as others have it -> documents: its own dumps, WikiExtractor's output, wikitext of language models."""

import html
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from typing import Any

from data_prep import markup
from data_prep.reading import Document, Input, as_document, stripped_lines
from electra_flax.errors import UserError
from electra_flax.formats import counted

_HEADING = re.compile(r"((?:= ?)+)[^=].*=$")


def read_wikitext(given: Input) -> Iterator[Document]:
    """Yield the documents that ` = title =` begins; other headings are left out."""
    lines: list[str] = []
    for line in stripped_lines(given):
        if heading := _HEADING.match(line):
            if heading[1].count("=") == 1:
                yield as_document(lines)
                lines = []
        elif line:
            lines.append(line)
    yield as_document(lines)


# A title may hold quotes and a bracket, as the program writes it, but not one after the other.
_DOC_MARKS = re.compile(r"(<doc [^\n]*?\"\s*>|<doc [^\n>]*>|</doc>)")


def read_wikiextractor(given: Input) -> Iterator[Document]:
    """Yield `<doc id=... title=...>` to `</doc>`; the first line, which repeats the title, is left out."""
    lines: list[str] = []
    title, is_inside = "", False
    for raw in stripped_lines(given):
        for line in filter(None, map(str.strip, _DOC_MARKS.split(raw))):
            if line.startswith("<doc "):
                found = re.search(r'title="(.*)"\s*>$', line)
                title, lines, is_inside = html.unescape(found[1]) if found else "", [], True
            elif line == "</doc>":
                yield as_document(lines)
                lines, is_inside = [], False
            else:
                texts = markup.html_lines(line)
                lines += texts if lines or texts != [title] else []
    if is_inside:
        raise UserError(f"{given.path}: ends inside a <doc>: truncated; copy the file again")


def read_wikipedia(given: Input) -> Iterator[Document]:
    """Yield the pages of pages-articles XML that are of the main namespace and no redirects.

    A page whose templates are nested too deep to be parsed is left out, and counted.
    """
    too_deep: list[str] = []
    for title, text in _articles(given):
        if markup.is_nested_too_deep(text):
            too_deep.append(title)
        else:
            yield Document(0, text, "wikipedia")
    if too_deep:
        given.leave_out(
            given.path,
            f"{counted(len(too_deep), 'pages')} left out, whose templates are nested too deep, the first: "
            f"{too_deep[0][:80]}",
        )


def _articles(given: Input) -> Iterator[tuple[str, str]]:
    """Yield (title, markup)."""
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
                yield element.findtext(f"{namespace}title") or "?", text
            if parents:
                parents[-1].clear()
    except ElementTree.ParseError as error:
        line, column = error.position
        raise UserError(
            f"{given.path} line {line} column {column}: broken XML: {error.msg}; copy the file again"
        ) from None
