"""What documents name is there: sections of docs/semantics.md, files, the checks that a change must pass."""

import html
import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import yaml

from electra_flax import __version__

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


def sections_of(path):
    """What GitHub calls the sections of a page."""
    headings = re.findall(r"^#+ (.*)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_between_documents_lead_somewhere():
    to_sections = 0
    for path in (*ROOT.glob("docs/*.md"), *ROOT.glob("*.md"), *ROOT.glob("tests/*/*.md")):
        for target, section in re.findall(r"\]\(([^)#:\s]*)(?:#([^)]*))?\)", path.read_text(encoding="utf-8")):
            found = path.parent / target if target else path
            assert found.exists(), f"{path.name}: {target}"
            assert not section or section in sections_of(found), f"{path.name}: {target}#{section}"
            to_sections += bool(section)
    assert to_sections >= 4


def test_the_picture_of_the_demo_has_room_for_hangul():
    """A wide letter takes two cells; Rich, which draws the picture, counts one and squeezes it."""
    shown = re.findall(r'textLength="([\d.]+)"[^>]*>([^<]*)', (ROOT / "docs/demo.svg").read_text(encoding="utf-8"))
    wide = 0
    for length, text in shown:
        letters = html.unescape(text).rstrip("\n")
        cells = sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in letters)
        assert float(length) == pytest.approx(12.2 * max(1, cells), abs=0.1), letters
        wide += cells > len(letters)
    assert wide > 20


def test_what_contributors_are_sent_to_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w./-]+)`", text)) | set(re.findall(r"[\w./-]+/[\w.-]+", text))
    paths = {name for name in named if "/" in name or Path(name).suffix}
    assert len(paths) > 25 and not [path for path in paths if not (ROOT / path).exists()]
    rooms = {room.name for room in (ROOT / "electra_flax").iterdir() if (room / "__init__.py").exists()}
    assert rooms <= named
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {target for line in re.findall(r"^    make ([a-z -]+?)  ", text, re.M) for target in line.split()} <= targets


def _workflow(found):
    (job,) = found["jobs"].values()
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert (ROOT / ".ci/run").stat().st_mode & 0o100


def _release(found):
    assert found[True] == {"push": {"tags": ["v*"]}}  # `on` is true in YAML
    jobs = found["jobs"]
    assert {name: job.get("needs") for name, job in jobs.items()} == {
        "build": None, "try": "build", "release": "try", "publish": "try",
    }  # fmt: skip
    assert jobs["try"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    assert ".ci/try-installed" in jobs["try"]["steps"][-1]["run"]
    assert (ROOT / ".ci/try-installed").stat().st_mode & 0o100
    assert jobs["publish"]["if"] == "vars.PUBLISH == 'true'"
    check = next(step["run"] for step in jobs["build"]["steps"] if "run" in step)
    for tag, code in ((f"v{__version__}", 0), (__version__, 1), ("v999.0", 1)):
        command = ["bash", "-e", "-c", check.replace("python -c", f"{sys.executable} -c")]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "GITHUB_REF_NAME": tag}, capture_output=True)
        assert done.returncode == code, (tag, done)


def _docs(found):
    jobs = found["jobs"]
    assert {name: job.get("needs") for name, job in jobs.items()} == {"build": None, "publish": "build"}
    build = [step["run"] for step in jobs["build"]["steps"] if "run" in step]
    assert build == ["make docs"] and jobs["publish"]["if"] == "vars.PAGES == 'true' && github.ref == 'refs/heads/main'"


def _bug(found):
    fields = {field["id"]: field for field in found["body"]}
    required = {name for name, field in fields.items() if field.get("validations", {}).get("required")}
    assert {"command", "output"} <= required and fields["doctor"]["attributes"]["label"] == "electra-flax doctor --json"


def _hooks(found):
    assert [repo["repo"] for repo in found["repos"]] == ["local"]
    assert [hook["entry"].split()[-2:] for hook in found["repos"][0]["hooks"]] == [["lint", "types"]]


@pytest.mark.parametrize(
    ("path", "check"),
    [(".github/workflows/ci.yml", _workflow), (".github/workflows/release.yml", _release),
     (".github/workflows/docs.yml", _docs), (".github/ISSUE_TEMPLATE/bug.yml", _bug),
     (".pre-commit-config.yaml", _hooks)],
)  # fmt: skip
def test_files_for_github_say_what_they_must(path, check):
    check(yaml.safe_load((ROOT / path).read_text(encoding="utf-8")))
