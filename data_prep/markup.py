"""Wiki markup -> lines of text. Wikipedia's is parsed by mwparserfromhell; Namuwiki's dialect has no such library."""

import html
import re
from collections.abc import Iterator
from typing import Any

from electra_flax.errors import UserError
from electra_flax.text import without_halves

_NOT_TEXT_TAGS = {"ref", "table", "math", "gallery", "timeline", "score", "syntaxhighlight", "source", "references"}
# Links that show no text: files and categories, in Korean and English, and the article in other languages.
_NOT_TEXT_LINKS = re.compile(
    r"(?i)\s*:?(?:파일|그림|분류|file|image|category|media|틀|template)\s*:|[a-z]{2,3}(?:-[a-z]+)*:"
)
# Templates that show their last argument: foreign words.
_TEXT_TEMPLATES = {"lang", "llang", "한자", "일본어", "nihongo", "unicode", "nowrap"}
_EMPTY_BRACKETS = re.compile(r"\s?\((?:[\s,;:·/]|또는)*\)")  # what templates leave behind
_LIST_MARKS = re.compile(r"^[\s*#:;]+")
# MediaWiki itself gives up at 40; a few hundred, and the parser's calls are more than Python allows.
_MOST_TEMPLATES_DEEP = 100


def wikipedia_lines(markup: str) -> list[str]:
    """Return paragraphs and list items; templates, tables, references, headings, files and categories are left out."""
    try:
        import mwparserfromhell as parser
    except ModuleNotFoundError:
        raise UserError("a Wikipedia dump needs mwparserfromhell: pip install 'electra-flax[corpora]'") from None
    code: Any = parser.parse(markup, skip_style_tags=True)
    text = "".join(_wikipedia_text(node, parser.nodes) for node in code.nodes)
    text = _EMPTY_BRACKETS.sub("", text.replace("'''", "").replace("''", ""))
    text = without_halves(text)  # &#xD800; is half a pair
    lines = (_LIST_MARKS.sub("", line).strip() for line in text.split("\n"))
    return [line for line in lines if line and not line.startswith(("{|", "|", "!", "__", "----"))]


def is_nested_too_deep(markup: str) -> bool:
    """Return whether templates are nested deeper than the parser can follow; those never closed do not count."""
    if markup.count("}}") <= _MOST_TEMPLATES_DEEP:  # most pages: counting is all that they cost
        return False
    inside: list[int] = []  # of each open pair: how deep it is below
    for braces in re.finditer(r"\{\{|\}\}", markup):
        if braces[0] == "{{":
            inside.append(0)
        elif inside:
            depth = inside.pop() + 1
            if depth > _MOST_TEMPLATES_DEEP:
                return True
            if inside:
                inside[-1] = max(inside[-1], depth)
    return False


def _wikipedia_text(node: Any, nodes: Any) -> str:
    if isinstance(node, nodes.Text):
        return str(node.value)
    if isinstance(node, nodes.Wikilink):
        if _NOT_TEXT_LINKS.match(str(node.title)):
            return ""
        return _inside(node.title if node.text is None else node.text, nodes)
    if isinstance(node, nodes.ExternalLink):
        return _inside(node.title, nodes) if node.title is not None else ""
    if isinstance(node, nodes.Tag):
        tag = str(node.tag).strip().lower()
        if tag == "br":
            return "\n"
        return "" if tag in _NOT_TEXT_TAGS or node.contents is None else _inside(node.contents, nodes)
    if isinstance(node, nodes.HTMLEntity):
        try:
            return str(node.normalize())
        except ValueError:
            return ""
    if isinstance(node, nodes.Template) and str(node.name).strip().lower() in _TEXT_TEMPLATES and node.params:
        return _inside(node.params[-1].value, nodes)
    return ""  # other templates, arguments, comments, headings


def _inside(code: Any, nodes: Any) -> str:
    return "".join(_wikipedia_text(node, nodes) for node in code.nodes)


# Tags that WikiExtractor leaves: named, since <Parasite> may be a title in the text.
_HTML_TAGS = re.compile(
    r"(?i)</?(?:templatestyles|onlyinclude|noinclude|includeonly|nowiki|ref|references|span|div|sub|sup|small|big|b|i|"
    r"u|s|p|em|strong|center|font|li|ul|ol|dl|dt|dd|table|tr|td|th|poem|gallery|section|code|del|ins|blockquote|"
    r"h[1-6]|hr|cite|tt|var|math|mapframe|ruby|rt|rp|rb|abbr)(?:\s[^<>]*)?/?>"
)
_HTML_BREAK = re.compile(r"(?i)<br\s*/?>")


def html_lines(text: str) -> list[str]:
    """Return lines of text with HTML's entities as characters and without its tags."""
    if "&" in text:
        text = html.unescape(text)
    if "<" in text:
        text = _HTML_TAGS.sub("", _HTML_BREAK.sub("\n", text))
    return [line for raw in text.replace("\u00a0", " ").split("\n") if (line := " ".join(raw.split(" ")).strip())]


_REDIRECT = re.compile(r"(?i)^#(?:redirect|넘겨주기)\s")
# Namuwiki's syntax, in the order in which it is undone; macros and footnotes come between the two.
_NAMU_LINKS: list[tuple[re.Pattern[str], str]] = [
    (re.compile(r"(?s)\{\{\{#!(?:syntax|html|folding|wiki)[^\n]*\n"), ""),
    (re.compile(r"\{\{\{(?:[+-]\d|#[\w,#]+)?\s?"), ""),
    (re.compile(r"\}\}\}"), ""),
    (re.compile(r"\[\[(?:파일|분류|file|category):[^\]]*\]\]", re.IGNORECASE), ""),
    (re.compile(r"\[\[[^\[\]|]*\|([^\[\]]*)\]\]"), r"\1"),
    (re.compile(r"\[\[([^\[\]|]*?)(?:#s-[\d.]+)?\]\]"), r"\1"),
]
_NAMU_MARKS: list[tuple[re.Pattern[str], str]] = [
    (re.compile(r"(?i)\[(?:br)\]"), "\n"),
    (re.compile(r"(?i)\[(?:목차|각주|tableofcontents|footnote|clearfix|pagecount|date|datetime)\]"), ""),
    (re.compile(r"(?<![\d-])--(?=[^\s-])([^\n]*?[^\s-])--(?![\d-])"), r"\1"),  # struck out, not 2019--2020
    (re.compile(r"'''|''|__|~~|\^\^|,,"), ""),
]
_NAMU_MACRO = re.compile(r"(?i)\[([a-z]+)\(")
_RUBY_ARGUMENTS = re.compile(r"(?i),\s*(?:ruby|color)\s*=")
_MOST_MACRO_CHARACTERS = 5000  # one that is never closed must not take the rest of the article with it
_NAMU_SKIPPED_LINES = re.compile(r"^\s*(?:=+\s?#?.*#?\s?=+\s*$|\|\||##|-{4,}|#!)")
_NAMU_LINE_MARKS = re.compile(r"^\s*(?:>+|\*+|(?:[1aAiI]\.)(?:#\d+)?)?\s*")


def is_namuwiki_redirect(markup: str) -> bool:
    return bool(_REDIRECT.match(markup.lstrip()))


def namuwiki_lines(markup: str) -> list[str]:
    """Return paragraphs, quotations and list items; tables, headings, footnotes, macros and files are left out."""
    for pattern, text in _NAMU_LINKS:
        markup = pattern.sub(text, markup)
    # Macros first: [youtube(...)] within a footnote holds brackets that need not be pairs.
    markup = _without_footnotes(_without_macros(markup))
    for pattern, text in _NAMU_MARKS:
        markup = pattern.sub(text, markup)
    lines = (line for line in _without_cells(markup.split("\n")) if not _NAMU_SKIPPED_LINES.match(line))
    return [text for line in lines if (text := _NAMU_LINE_MARKS.sub("", line, count=1).strip())]


def _without_macros(text: str) -> str:
    """Drop macros with arguments, whatever brackets these hold; of [ruby(text, ruby=reading)] the text stays."""
    closings = _closings(text)
    parts, position, nearest = list[str](), 0, 0
    for found in _NAMU_MACRO.finditer(text):
        if found.start() < position:  # within the one before
            continue
        end = closings.get(found.start(), 0)
        if text[end - 1 : end + 1] != ")]":  # brackets that are no pairs, as in [math([0, 1))]
            if nearest < found.end():  # else what was found before is still the next: no text is searched twice
                nearest = text.find(")]", found.end()) + 1 or len(text)
            end = nearest if nearest < min(len(text), found.end() + _MOST_MACRO_CHARACTERS) else 0
        if end:
            inside = text[found.end() : end - 1]
            kept = _RUBY_ARGUMENTS.split(inside, maxsplit=1)[0] if found[1].lower() == "ruby" else ""
            parts += [text[position : found.start()], kept]
            position = end + 1
    return "".join([*parts, text[position:]])


def _without_footnotes(text: str) -> str:
    """Drop [* ...] and [*name ...], with what brackets they hold."""
    closings = _closings(text)
    parts, position = list[str](), 0
    start = text.find("[*")
    while start >= 0:
        if start in closings:
            parts.append(text[position:start])
            position = closings[start] + 1
        start = text.find("[*", max(start + 1, position))
    return "".join([*parts, text[position:]])


def _closings(text: str) -> dict[int, int]:
    """Return {place of an opening bracket: place of the one that closes it}."""
    # All pairs in one pass: footnotes nest, which no regular expression follows, and a search for each opening would be
    # quadratic in articles of thousands.
    found: dict[int, int] = {}
    opened: list[int] = []
    for bracket in re.finditer(r"[\[\]]", text):
        if bracket[0] == "[":
            opened.append(bracket.start())
        elif opened:
            found[opened.pop()] = bracket.start()
    return found


def _without_cells(lines: list[str]) -> Iterator[str]:
    """Yield lines outside of tables: a row goes on to a line that ends with ||, or a blank one shows it never does."""
    is_cell = False
    for line in lines:
        stripped = line.strip()
        begins = stripped.startswith("||")
        if not begins and not (is_cell and stripped):
            yield line
        is_cell = (begins or is_cell) and bool(stripped) and not (stripped.endswith("||") and len(stripped) > 2)
