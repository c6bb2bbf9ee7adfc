"""What the documentation site does beyond MkDocs: README as home, one language a site, Markdown as GitHub reads it.

The files are those that GitHub shows: README.md, docs/NAME.md, and beside them NAME.ko.md. A page has the same address
in both languages, below the folder ko/ in Korean.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LANGUAGES = {"en": "English", "ko": "한국어"}
SUFFIX = {"en": ".md", "ko": ".ko.md"}
BOTH = {"glossary.md"}
"""Of one file in both languages."""
FALLBACK = '<div class="admonition note"><p class="admonition-title">이 문서는 영어로만 있습니다</p></div>'
"""Above an English page of the Korean site."""

_EDITIONS = re.compile(rf"^\[(?:{'|'.join(LANGUAGES.values())})\]\(.*\n", re.M)
"""A page's line of links to its other language and to the glossary, which the site has in its header and navigation."""
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")
_FENCE = re.compile(r" *```")
_ITEM = re.compile(r"(?:\d+\.|-) +")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Keep the pages of this language, under names without it; English ones where there is no other."""
    english = sorted(ROOT.glob("docs/*.md"))
    for file in [file for file in files if file.is_documentation_page()]:
        files.remove(file)
    for path in [ROOT / "README.md", *(path for path in english if not path.name.endswith(SUFFIX["ko"]))]:
        translated = path.with_suffix(SUFFIX[_language(config)])
        source = translated if translated.exists() else path
        files.append(File.generated(config, _page_of(path), abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return the page's text as Python-Markdown and the site need it."""
    source = Path(str(page.file.abs_src_path))
    markdown = _outside_code(markdown, lambda text: _with_links(text, source, str(config.repo_url or "")))
    return _indented(markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Say of an English page of the Korean site that it is one."""
    return f'{FALLBACK}<div lang="en">{html}</div>' if _is_fallback(page, config) else html


def on_page_context(context: dict[str, Any], page: Page, config: MkDocsConfig, nav: Any) -> dict[str, Any]:
    """Let the choice of languages lead to this page in the other one."""
    here, url = _language(config), page.url
    to = {"en": {"en": url, "ko": f"ko/{url}"}, "ko": {"en": f"../{url}", "ko": url}}[here]
    config.extra["alternate"] = [{"name": name, "lang": code, "link": to[code]} for code, name in LANGUAGES.items()]
    return context


def _language(config: MkDocsConfig) -> str:
    return str(config.theme["language"])


def _page_of(path: Path) -> str:
    """Return the page's name in the site."""
    name = path.name.replace(SUFFIX["ko"], SUFFIX["en"])
    return "index.md" if name == "README.md" else name


def _is_fallback(page: Page, config: MkDocsConfig) -> bool:
    source = str(page.file.abs_src_path)
    return _language(config) != "en" and not source.endswith(SUFFIX["ko"]) and page.file.src_uri not in BOTH


def _outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """Return the text with `change` made in all but blocks of code."""
    parts = re.split(r"(^ *```.*?^ *```$)", markdown, flags=re.M | re.S)
    return "".join(part if number % 2 else change(part) for number, part in enumerate(parts))


def _with_links(text: str, source: Path, repository: str) -> str:
    """Return the text with links as the site has them."""

    def site_link(match: re.Match[str]) -> str:
        mark, shown, target, section = match[1], match[2], match[3], match[4] or ""
        if ":" in target:
            return match[0]
        place = (source.parent / target).resolve().relative_to(ROOT)
        if place.parent == Path("docs") or place.name in ("README.md", "README.ko.md") and len(place.parts) == 1:
            return f"{mark}[{shown}]({_page_of(place)}{section})"
        return f"[{shown}]({repository.rstrip('/')}/blob/HEAD/{place}{section})" if repository else shown

    return _LINK.sub(site_link, _EDITIONS.sub("", text))


def _indented(markdown: str) -> str:
    """Return the text with lists as Python-Markdown reads them.

    What belongs to an item stands four columns in, and a blank line before the next one where an item holds one.
    """
    lines: list[str] = []
    width, in_code, was_blank = 0, False, False  # width of the mark of the item that the line is in
    for line in markdown.splitlines():
        if width and line.startswith(" " * width):
            line = " " * 4 + line[width:]
        elif line.strip() and not in_code:
            found = _ITEM.match(line)
            lines += [""] if found and width and was_blank else []
            width, was_blank = len(found[0]) if found else 0, False
        was_blank |= not line.strip()
        in_code ^= bool(_FENCE.match(line))
        lines.append(line)
    return "\n".join(lines)
