"""Every guide has a Korean edition that says the same, in the words of the glossary."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
# Pages of docs/ in one language: for those who change the code, and the glossary, which has both.
ALONE = {"design.md", "performance.md", "semantics.md", "glossary.md"}
GLOSSARY = "docs/glossary.md"
FIRST_LINES = 5  # which hold the link to the other language
NAME = re.compile(r"`([^`]+)`")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
LINK = re.compile(r"\]\(([^)\s#]+)")  # without the section, whose name is in the page's language
COMMENT = re.compile(r"(?:^|\s+)#.*")


class Section(NamedTuple):
    """What stands between one heading and the next one."""

    level: int
    code: list[list[str]]
    """Lines of each block, without comments."""
    tables: list[list[list[str]]]
    """Cells of each row."""
    text: str
    """All but the blocks of code, in one line."""


def _sections(text: str) -> Iterator[Section]:
    code: list[list[str]] = []
    tables: list[list[list[str]]] = []
    prose: list[str] = []
    level, in_code, in_table = 0, False, False
    for line in [*text.splitlines(), "# end"]:
        if line.strip().startswith("```"):
            in_code = not in_code
            code += [[]] if in_code else []
        elif in_code:
            code[-1].append(COMMENT.sub("", line))
        elif heading := re.match(r"(#+) ", line):
            if level:
                yield Section(level, code, tables, " ".join(prose))
            level, code, tables, prose = len(heading[1]), [], [], []
        else:
            prose.append(line.strip())
            if line.startswith("|"):
                tables += [] if in_table else [[]]
                tables[-1].append(re.split(r"(?<!\\)\|", line.strip())[1:-1])
        in_table = line.startswith("|")


def differences(english: str, korean: str) -> list[str]:
    """Return what one page of a pair has and the other one lacks, a line each."""
    sections, others = list(_sections(english)), list(_sections(korean))
    levels = [[section.level for section in page] for page in (sections, others)]
    found = [f"levels of headings: {levels[0]}, {levels[1]}"] if levels[0] != levels[1] else []
    for number, (ours, theirs) in enumerate(zip(sections, others, strict=False), 1):
        at = f"section {number}"
        if ours.code != theirs.code:
            found.append(f"{at}, code: {ours.code} {theirs.code}")
        names, others_names = (set(NAME.findall(section.text)) for section in (ours, theirs))
        found += [f"{at}, only one page names {name}" for name in sorted(names ^ others_names)]
        lost = set(NUMBER.findall(ours.text)) - set(NUMBER.findall(theirs.text))
        found += [f"{at}, the Korean page lacks the number {number}" for number in sorted(lost)]
        found += [f"{at}, {line}" for line in _different_tables(ours.tables, theirs.tables)]
    return found


def _different_tables(ours: list[list[list[str]]], theirs: list[list[list[str]]]) -> Iterator[str]:
    shapes = [[[len(row) for row in table] for table in tables] for tables in (ours, theirs)]
    if shapes[0] != shapes[1]:
        yield f"cells of each row of each table: {shapes[0]}, {shapes[1]}"
        return
    cells = [[cell for table in tables for row in table for cell in row] for tables in (ours, theirs)]
    for cell, other in zip(*cells, strict=True):
        if sorted(NUMBER.findall(cell)) != sorted(NUMBER.findall(other)):
            yield f"numbers of a cell: {cell} | {other}"


def different_links(english: Path, korean: Path) -> list[str]:
    """Return which links one page alone has, and which of the Korean page lead to English where there is Korean."""
    targets = [set(LINK.findall(path.read_text(encoding="utf-8"))) for path in (english, korean)]
    ours, theirs = ({link.replace(".ko.md", ".md") for link in links} for links in targets)
    found = [f"only one page links to {link}" for link in sorted(ours ^ theirs) if "glossary" not in link]
    for link in sorted(targets[1] - {english.name}):
        if link.endswith(".md") and (korean.parent / link.replace(".md", ".ko.md")).exists():
            found.append(f"{link} has a Korean edition")
    return found


def _pages() -> list[Path]:
    pages = [page for page in (ROOT / "docs").glob("*.md") if page.name not in ALONE]
    pages += [page for page in ROOT.glob("*.md") if page.with_suffix(".ko.md").exists()]
    return sorted(page for page in pages if not page.name.endswith(".ko.md"))


def test_the_pages_are_found():
    assert {"corpus.md", "fidelity.md", "plan.md", "training.md"} <= {page.name for page in _pages()}
    assert all((ROOT / "docs" / name).exists() for name in ALONE)
    for korean in (ROOT / "docs").glob("*.ko.md"):
        assert (korean.parent / korean.name.replace(".ko.md", ".md")) in _pages(), korean.name


@pytest.mark.parametrize("english", _pages(), ids=lambda page: page.stem)
def test_both_editions_say_the_same(english):
    korean = english.with_suffix(".ko.md")
    assert korean.exists(), f"{english.name} has no Korean edition"
    texts = [page.read_text(encoding="utf-8") for page in (english, korean)]
    for text, other in zip(texts, (korean.name, english.name), strict=True):
        assert f"]({other})" in " ".join(text.splitlines()[:FIRST_LINES]), f"no link to {other} at the top"
    assert "glossary.md)" in texts[1]
    found = differences(*texts) + different_links(english, korean)
    assert not found, "\n".join(found)


PAGE = """# A page
Run `make`, 2.5 times.
```bash
make  # builds
```
## A table
| a | b |
| --- | --- |
| 1 | 2 and 30 |
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [("## ", "### "), ("## A table", ""), ("make  #", "make all  #"), ("`make`", "make"), ("2.5", "2"),
     ("| 1 | 2", "| 2"), ("| 1 | 2", "| 1 | 3"), ("2 and 30", "2 and 30 or 31"), ("| 1 |", "|\n\n| 1 |")],
)  # fmt: skip
def test_a_difference_is_found(old, new):
    assert differences(PAGE, PAGE.replace("# builds", "# 빌드").replace("A page", "문서")) == []
    assert old in PAGE and differences(PAGE, PAGE.replace(old, new))


@pytest.mark.parametrize(
    ("text", "found"),
    [("[a](b.ko.md)", []), ("[a](b.md)", ["b.md has a Korean edition"]),
     ("", ["only one page links to b.md"]), ("[a](b.ko.md) [c](d.png)", ["only one page links to d.png"])],
)  # fmt: skip
def test_a_wrong_link_is_found(tmp_path, text, found):
    pages = {"a.md": "[한국어](a.ko.md) [b](b.md)", "a.ko.md": f"[English](a.md) {text}", "b.ko.md": ""}
    for name, page in pages.items():
        (tmp_path / name).write_text(page, encoding="utf-8")
    assert different_links(tmp_path / "a.md", tmp_path / "a.ko.md") == found


def _glossary() -> list[list[str]]:
    """Return rows of the glossary: Korean, English, meaning, what is not said."""
    tables = [table for section in _sections((ROOT / GLOSSARY).read_text(encoding="utf-8")) for table in section.tables]
    return [[cell.strip() for cell in row] for table in tables for row in table[2:]]


def not_said(text: str, rows: list[list[str]]) -> list[str]:
    """Return words of a Korean text for which the glossary has another; code and English in brackets are free."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    text = re.sub(r"`[^`]*`|\]\([^)]*\)|\([A-Za-z -]+\)", " ", text)
    found = []
    for korean, english, _, others in rows:
        words = [word for word in english.split(", ") if word not in korean]
        patterns = [rf"(?<![\w./-]){re.escape(word)}s?(?![A-Za-z_/-])" for word in words]
        patterns += [rf"(?<!\w){re.escape(word)}" for word in others.split(", ") if word]
        found += [f"{match[0]}: {korean}" for pattern in patterns for match in re.finditer(pattern, text)]
    return found


def test_korean_pages_keep_to_the_glossary():
    rows = _glossary()
    assert len(rows) > 50 and all(len(row) == 4 and all(row[:3]) for row in rows)
    terms = [term for row in rows for term in row[0].split(", ")]
    assert len(set(terms)) == len(terms)
    pages = [*(ROOT / "docs").glob("*.ko.md"), *ROOT.glob("*.ko.md")]
    texts = {page.name: page.read_text(encoding="utf-8") for page in pages}
    found = [f"{name}: {word}" for name, text in texts.items() for word in not_said(text, rows)]
    assert not found, "\n".join(found)
    assert [term for term in terms if not any(term in text for text in texts.values())] == []


@pytest.mark.parametrize(
    ("text", "found"),
    [("스텝(step)마다 `step`을 봅니다", []), ("step마다", ["step: 스텝"]), ("두 steps", ["steps: 스텝"]),
     ("Weights & Biases, misstep", []), ("라벨을 봅니다", ["라벨: 레이블"]), ("```\nstep\n```", [])],
)  # fmt: skip
def test_a_word_that_is_not_said_is_found(text, found):
    assert not_said(text, _glossary()) == found
