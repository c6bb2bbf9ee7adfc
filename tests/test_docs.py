"""What code and documents say of docs/semantics.md is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECTIONS = set(re.findall(r"^## (\d+)\. ", (ROOT / "docs/semantics.md").read_text(), re.MULTILINE))
NAMED = re.compile(r"semantics\.md(?:\))?,?[\s#]*sections? (\d+(?:(?:, | and )\d+)*)")


def test_every_section_that_is_named_exists():
    folders = ("electra_flax", "data_prep", "tpu", "tests", "configs", "docs", "benchmarks")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    named = 0
    for path in [*files, ROOT / "README.md"]:
        if path.suffix in (".py", ".md", ".yaml") and path.is_file():
            text = path.read_text(encoding="utf-8")
            assert "SEMANTICS" + ".md" not in text, path
            for match in NAMED.finditer(text):
                assert set(re.findall(r"\d+", match[1])) <= SECTIONS, f"{path}: {match[0]}"
                named += 1
            mentions = len(re.findall(r"semantics\.md,? section", re.sub(r"[\s#]+", " ", text)))
            assert mentions <= len(NAMED.findall(text)), f"{path}: a section without a number"
    assert named > 25


def test_links_between_documents_lead_somewhere():
    for path in (*ROOT.glob("docs/*.md"), ROOT / "README.md"):
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
