"""The documentation site: whole in both languages, the same as GitHub shows, and closed to the world outside."""

import json
import os
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
MKDOCS = ROOT / ".venv-docs/bin/mkdocs"
REPOSITORY = "https://git.invalid/somebody/electra-flax"
NOTE = "이 문서는 영어로만 있습니다"
CONFIGS = {"": "mkdocs.yml", "ko": "mkdocs.ko.yml"}
PAGES = sorted({path.name.split(".")[0] for path in ROOT.glob("docs/*.md")} | {"index"})
ENGLISH_ONLY = sorted(
    name for name in PAGES
    if not (ROOT / f"docs/{name}.ko.md").exists() and name not in ("index", "glossary")
)  # fmt: skip
pytestmark = pytest.mark.skipif(not MKDOCS.exists(), reason="NOT CHECKED: no .venv-docs here (make docs makes it)")


def build(tree: Path, out: Path, *languages: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """As make docs does, without a network."""
    nowhere = {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "NO_MKDOCS_2_WARNING": "1"}
    for language in languages:
        command = [MKDOCS, "build", "--strict", "--config-file", tree / CONFIGS[language], "--site-dir", out / language]
        done = subprocess.run([*map(str, command)], env={**os.environ, **nowhere, **environment}, capture_output=True,
                              text=True, check=False)  # fmt: skip
        if done.returncode:
            break
    return done


class Parsed(HTMLParser):
    """What a page is made of; of its article, the text and the number of elements of each kind."""

    COUNTED = ("h1", "h2", "h3", "h4", "ol", "ul", "li", "table", "tr", "td", "th", "pre", "img", "strong", "em")

    def __init__(self, html: str, article: bool = True) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[tuple[str, str]] = []
        self.loaded: list[str] = []
        self.languages: list[str] = []
        self.alternates: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self.text = ""
        self._inside = not article
        self._is_permalink = False
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        self.languages += [given["lang"]] if "lang" in given else []
        self._inside |= tag == "article"
        self._is_permalink = given.get("class") == "headerlink"
        if tag == "a" and "href" in given:
            self.links.append(("a", given["href"]))
            if "hreflang" in given:
                self.alternates[given["hreflang"]] = given["href"]
        elif tag == "link" and given.get("rel") != "alternate":
            self.loaded.append(given["href"])
        elif "src" in given:
            self.loaded.append(given["src"])
        if self._inside and tag in self.COUNTED:
            self.counts[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        self._inside &= tag != "article"
        self._is_permalink &= tag != "a"

    def handle_data(self, data: str) -> None:
        if self._inside and not self._is_permalink:
            self.text += data


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT, out, "", "ko", REPO_URL=REPOSITORY)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Parsed]:
    return {path: Parsed(path.read_text(encoding="utf-8")) for path in site.rglob("*.html") if path.name != "404.html"}


def test_each_page_is_there_in_both_languages_and_leads_to_itself_in_the_other(site, pages):
    assert set(pages) == {site / folder / f"{name}.html" for folder in CONFIGS for name in PAGES}
    for path, page in pages.items():
        other = site / path.name if path.parent.name == "ko" else site / "ko" / path.name
        language, others = ("ko", "en") if path.parent.name == "ko" else ("en", "ko")
        assert page.languages[0] == language
        assert (path.parent / page.alternates[others]).resolve() == other
        assert (path.parent / page.alternates[language]).resolve() == path


def test_what_is_in_english_alone_says_so(site, pages):
    assert ENGLISH_ONLY == ["design", "performance", "semantics"]
    home = (site / "ko/index.html").read_text(encoding="utf-8")
    titles = re.findall(r'href="(\w+)\.html"[^>]*>\s*<span class="md-ellipsis">\s*(.*?)\s*<', home)
    assert {name for name, title in titles if title.endswith("(영어)")} == set(ENGLISH_ONLY)
    for name in PAGES:
        page = pages[site / f"ko/{name}.html"]
        assert (NOTE in page.text) == ("en" in page.languages[1:]) == (name in ENGLISH_ONLY), name


def test_links_lead_somewhere(site, pages):
    """To pages and their sections; those to the repository, to files that it has."""
    to_files = 0
    for path, page in pages.items():
        for _, link in page.links:
            if link.startswith(REPOSITORY):
                place = link.removeprefix(REPOSITORY).removeprefix("/blob/HEAD").strip("/")
                assert (ROOT / place).exists(), f"{path}: {link}"
                to_files += "/blob/" in link
            elif not urlsplit(link).scheme:
                target, _, section = link.partition("#")
                found = (path.parent / unquote(target)).resolve() if target not in ("", ".") else path
                assert found.is_file(), f"{path}: {link}"
                ids = pages[found].ids if found in pages else set()
                assert not section or unquote(section) in ids, f"{path}: {link}"
    assert to_files >= 2 * len(list(ROOT.glob("configs/*.yaml"))) - 4, "README's presets, in both languages"


def test_nothing_is_loaded_from_elsewhere(site, pages):
    for path, page in pages.items():
        assert page.loaded
        for link in page.loaded:
            assert not urlsplit(link).scheme and not link.startswith("//"), f"{path}: {link}"
            assert (path.parent / link.partition("?")[0]).is_file(), f"{path}: {link}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//|@import", style.read_text(encoding="utf-8")), style


def test_without_a_repository_links_to_its_files_are_text(tmp_path):
    assert build(ROOT, tmp_path, "", REPO_URL="").returncode == 0
    page = Parsed((tmp_path / "index.html").read_text(encoding="utf-8"))
    assert "koelectra_base_v3" in page.text and not [link for _, link in page.links if ".yaml" in link]


@pytest.mark.parametrize("folder", CONFIGS)
def test_a_page_says_what_github_shows(site, pages, folder):
    """The same text and as many elements of each kind, though Python-Markdown reads lists otherwise."""
    for name in PAGES:
        path = ROOT / ("README.md" if name == "index" else f"docs/{name}.md")
        if folder and path.with_suffix(".ko.md").exists():
            path = path.with_suffix(".ko.md")
        text = re.sub(r"^\[(?:English|한국어)\].*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        github = Parsed(MarkdownIt("commonmark").enable("table").render(text), article=False)
        ours = pages[site / folder / f"{name}.html"]
        assert "".join(ours.text.replace(NOTE, "").split()) == "".join(github.text.split()), name
        assert ours.counts == github.counts, name


def test_a_search_finds_a_word_whatever_particle_follows_it(site):
    config, index = ({}, {})
    for folder in CONFIGS:
        found = json.loads((site / folder / "search/search_index.json").read_text(encoding="utf-8"))
        config[folder], index[folder] = found["config"], " ".join(doc["text"] for doc in found["docs"])
    assert "말뭉치를" in index["ko"] and "말뭉치를" not in index[""], "of its language alone"
    (stop_words,) = site.glob("ko/assets/javascripts/lunr/min/lunr.ko.min.js")
    words = set(re.search(r'generateStopWordFilter\("([^"]*)"', stop_words.read_text(encoding="utf-8"))[1].split())
    assert (config["ko"]["lang"], config["ko"]["pipeline"]) == (["ko"], ["stopWordFilter"])
    separator = config["ko"]["separator"]
    particles = re.search(r"\(\?:([가-힣|]+)\)", separator)[1].split("|")
    assert set(particles) <= words and len(particles) > 10
    for particle in particles:
        assert re.split(separator, f"(말뭉치{particle} 경로.") == ["", "말뭉치", particle, "경로", ""]
    assert separator.startswith(config[""]["separator"] + "|")


@pytest.mark.parametrize(
    ("file", "added", "said"),
    [("docs/tpu.ko.md", "[a](trianing.ko.md)", "trianing"), ("docs/tpu.ko.md", "[a](plan.ko.md#없는-절)", "없는-절"),
     ("README.ko.md", "[a](docs/install.ko.md#nothing)", "nothing"), ("docs/new.md", "# New", "new.md")],
)  # fmt: skip
def test_a_mistake_ends_the_build(tmp_path, file, added, said):
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "docs", tree / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    for path in [*ROOT.glob("README*.md"), *ROOT.glob("mkdocs*.yml")]:
        shutil.copy(path, tree)
    with (tree / file).open("a", encoding="utf-8") as page:
        page.write(f"\n{added}\n")
    done = build(tree, tmp_path / "out", "ko")
    assert done.returncode != 0 and said in done.stderr, done.stderr
