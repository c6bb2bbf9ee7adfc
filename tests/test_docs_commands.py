"""Every command that README, guides and presets show is one: its own parser takes it, and the cheap ones are run.

A block of a page is a test. Who checks a command is told by its program (CHECKED_BY); a program that is not there, or a
file that nobody put into the sandbox (STAND_INS), fails the test. Korean pages have the commands of the English ones
(test_docs_pairs.py).
"""

import bz2
import re
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from docs_tools import (
    BLOCKS,
    OTHERS_FLAGS,
    OURS,
    ROOT,
    STARTS,
    check,
    check_ours,
    field_flags,
    pages,
    simple_commands,
    spans,
    unfolded,
)  # fmt: skip
from test_readers import CONTENTS

from data_prep import cli as data_cli
from electra_flax import shipped
from electra_flax.config.loading import fields_from, load_config
from electra_flax.config.schema import Config
from electra_flax.errors import UserError
from electra_flax.finetuning.task import Task, Training
from tpu.settings import Settings


def write_sample(place: Path) -> None:
    shutil.copytree(ROOT / "data_prep/sample", place, ignore=shutil.ignore_patterns("*.md"))


def write_shards(place: Path) -> None:
    arguments = ["--corpus", "sample", "--vocab", "tiny-ko", "--out", str(place), "--validation-fraction", "0.1"]
    assert data_cli.main(["shard", *arguments, "--max-seq-length", "64"]) == 0


# Files that the documents' readers have, by their names there, and how they are made.
STAND_INS = {
    "corpus": write_sample, "news": write_sample, "medical": write_sample,
    "kowiki.xml.bz2": lambda place: place.write_bytes(bz2.compress(CONTENTS["wikipedia"].encode())),
    "namuwiki.json": lambda place: place.write_text(CONTENTS["namuwiki"], encoding="utf-8"),
    "vocab": lambda place: shutil.copytree(shipped.FOLDER / "tiny-ko/discriminator", place),
    "models": lambda place: shutil.copytree(shipped.FOLDER / "tiny-ko", place),
    "shards": write_shards,
    "my.yaml": lambda place: shutil.copy(ROOT / "configs/koelectra_base_v3.yaml", place),
    "nbest.tsv": lambda place: place.write_text("1\t비가 온다.\t-2\n1\t비가 간다.\t-1\n", encoding="utf-8"),
    "same.yaml": lambda place: shutil.copy(ROOT / "configs/koelectra_base_v3.yaml", place),
    "configs": lambda place: place.symlink_to(ROOT / "configs"), "tpu": lambda place: place.symlink_to(ROOT / "tpu"),
    "my_tpu.yaml": lambda place: shutil.copy(ROOT / "tpu/tpu.yaml", place),
}  # fmt: skip


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    for name, make in STAND_INS.items():
        make(folder / name)
    return folder


@pytest.fixture(autouse=True)
def _in_sandbox(sandbox, monkeypatch):
    monkeypatch.chdir(sandbox)


def test_the_commands_are_found():
    shown = [line for lines in BLOCKS.values() for line in lines]
    assert len(BLOCKS) > 40 and len(shown) > 90
    assert sum(line.startswith(("electra-", ".venv/bin/electra-")) for line in shown) > 45
    assert {"README.md", "CONTRIBUTING.md", "install.md", "tpu.md"} <= {name.partition("-")[0] for name in BLOCKS}
    assert sum(map(len, spans().values())) > 25


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_of_commands(block):
    subprocess.run(["bash", "-n"], input="\n".join(BLOCKS[block]), text=True, check=True)
    for line in BLOCKS[block]:
        for words in simple_commands(line):
            check(words, line.partition("#")[2])


@pytest.mark.parametrize("page", spans())
def test_commands_that_a_text_names(page):
    for span in spans()[page]:
        (words,) = simple_commands(span)
        program, *arguments = words
        if program in OURS:
            check_ours(OURS[program], arguments, whole=False)
        elif span != "gcloud storage" and arguments != ["-m", "tpu.launch"]:  # only named
            check(words)


def test_flags_that_a_guide_names_are_there():
    """Those of commands or fields of a configuration; logs and what the original computes name others' too."""
    commands = [command for program in OURS.values() for command in program.parser().commands.values()]
    known = {flag for command in commands for flag in command.flags} | set(OTHERS_FLAGS)
    known |= field_flags(Config) | field_flags(Training) | field_flags(Settings)
    named = set()
    for path in pages():
        if path.with_suffix(".ko.md").exists():
            spans = re.findall(r"(?<!`)`(--[^`]+)`", path.read_text(encoding="utf-8"))
            named |= {flag for span in spans for flag in re.findall(r"(?<![\w-])--[\w.-]+", span)}
    assert len(named) > 50 and not named - known
    assert set(OTHERS_FLAGS) <= named


def test_other_blocks_are_checked_too():
    """Python by test_api.py, YAML here; a block without a language shows no commands."""
    for path in pages():
        text = path.read_text(encoding="utf-8")
        languages = re.findall(r"^ *```(\w*)\n(.*?)^ *```", text, re.M | re.S)
        assert {language for language, _ in languages} <= {"bash", "yaml", "python", ""}, path
        assert path.name == "api.md" or "python" not in dict(languages), path
        for language, block in languages:
            assert language == "bash" or not any(STARTS.match(line) for line in unfolded(block)), path
            if language == "yaml":
                values = yaml.safe_load(block)
                if values.keys() <= {field.name for field in fields(Config)}:
                    given = [
                        f"--{section}.{name}={value}" for section in values for name, value in values[section].items()
                    ]
                    load_config("demo", given)
                else:
                    fields_from(Task, values, (), path.name, "")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("electra-flax pretrian --config demo --data shards --workdir run", "no such command"),
        ("electra-flax pretrain --config dmo --data shards --workdir run", "did you mean demo"),
        ("electra-flax pretrain --config demo --data shards --workdir run --training.num_step 3", "unknown field"),
        ("electra-flax pretrain --config demo --data shards --workdir run --training.num_steps many", "num_steps"),
        ("electra-flax pretrain --config demo --data shards --workdir run --init-from hg:models", "hg:models"),
        ("electra-flax finetune --task nscm --model models --data nsmc --out tuned", "nscm"),
        ("electra-flax finetune --task nsmc --model models --data nsmc --out tuned --preset papers", "papers"),
        ("electra-flax finetune --task nsmc --model models --data nsmc --out tuned --epoch 3", "epoch"),
        ("electra-flax plan --config demo --topology v3-9", "v3-9"),
        ("electra-flax detect --modle models a", "did you mean --model"),
        ("electra-data shard --corpus corpus/ --vocab vocab --out shards --max-seq-lenght 64", "--max-seq-length"),
        ("electra-data vocab --corpus texts/ --out vocab2 --size 500", "texts/: no such"),
        ("make demonstrate", "No rule to make target"), ("make tpu-train TPU=my_tpu.yaml ARGS=--dryrun", "dryrun"),
        ("make tpu-train TPU=yours.yaml", "yours.yaml"),
        ("pip install 'electra-flax[tpus]'", "tpus"), ("pip instal electra-flax", "instal"),
        ("pip install --usr a", "no such option"),
        ("gcloud storage bucket create gs://a", "no such command"),
        ("gcloud storage cp --recursively a b", "recursively"),
        ("python -m tpu.lunch fields", "lunch"), ("cp tpu.yaml mine.yaml", "tpu.yaml"), ("conda install jax", "conda"),
        ("electra-flax configs 'a", "closing quotation"),
    ],
)  # fmt: skip
def test_a_mistake_is_found(line, said, capfd):
    with pytest.raises((AssertionError, UserError, SystemExit, OSError, ValueError, ImportError)) as found:
        for words in simple_commands(line):
            check(words)
    assert said in f"{found.value} {found.value!r} {capfd.readouterr().err}"
