"""What ships is found by its name from anywhere; what setup.cfg says of packages and extras is so."""

import configparser
import json
import math
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import pytest
from run_tools import refusal
from setuptools import find_packages

import electra_flax
from data_prep.cli import main as data_main
from electra_flax import shipped
from electra_flax.commands.cli import main
from electra_flax.commands.configs import num_parameters
from electra_flax.config.loading import load_config
from electra_flax.model.electra import expected_shapes
from electra_flax.weights import names

ROOT = Path(__file__).parents[1]
CONFIGS = {path.stem: path for path in (ROOT / "configs").glob("*.yaml")}
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def words(section: str, name: str) -> list[str]:
    return [line.strip() for line in SETUP[section][name].strip().splitlines() if not line.startswith("#")]


def test_every_package_is_named():
    found = find_packages(str(ROOT), include=["electra_flax*", "data_prep*"])
    assert words("options", "packages") == sorted([*found, "electra_flax.configs"])


@pytest.mark.parametrize("extra", ["cuda12", "cuda13", "tpu"])
def test_an_extra_is_one_that_jax_has(extra):
    (requirement,) = words("options.extras_require", extra)
    (jax,) = (line for line in words("options", "install_requires") if line.startswith("jax "))
    assert requirement == jax.replace("jax ", f"jax[{extra}] ")
    assert extra in (metadata("jax").get_all("Provides-Extra") or [])


def test_another_python_is_one_line(tmp_path):
    program = "import sys; sys.version_info, sys.version = (3, 10, 13), '3.10.13 (main)'; import electra_flax.errors"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == f"electra-flax: error: Python 3.10.13, expected 3.11 or newer: {sys.executable}\n"
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nprintf 3.10.13\n")
    old.chmod(0o755)
    for python, said in ((old, "3.10.13"), (tmp_path / "none", "not there")):
        # The suite itself is run by make, and a make inside a make says which folder it enters.
        command = ["make", "--no-print-directory", "install", f"PYTHON={python}", f"VENV={tmp_path}/venv"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode and done.stdout == "" and done.stderr.count("\n") == 1
        assert f" *** PYTHON={python}: {said}, expected Python 3.11 or newer" in done.stderr


def test_the_version_stands_in_one_place(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"electra-flax {electra_flax.__version__}\n"
    assert SETUP["metadata"]["version"] == "attr: electra_flax.__version__"


def test_a_preset_is_found_by_its_name(tmp_path):
    assert shipped.presets() == CONFIGS
    for name, path in CONFIGS.items():
        assert load_config(name) == load_config(path)
    (tmp_path / "tiny").write_text(CONFIGS["demo"].read_text())
    assert load_config("tiny") == load_config("demo"), "a file of that name comes first"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("koelectra_smal_v3", "did you mean koelectra_small_v3? electra-flax configs lists the presets"),
        ("configs/electra_base.yaml", "did you mean electra_base? electra-flax configs lists the presets"),
        ("zz", "electra-flax configs lists the presets"),
        (".", "electra-flax configs lists the presets"),
    ],
)
def test_commands_name_the_nearest_preset(given, expected, capsys):
    for command in (["pretrain", "--data", "d", "--workdir", "w"], ["doctor"], ["plan", "--topology", "v3-8"]):
        said = refusal(capsys, [*command, "--config", given])
        assert said == f"electra-flax: error: --config {given}: no such file or preset: {expected}"


def test_the_list_of_presets(capsys):
    assert main(["configs", "--json"]) == 0
    found = {preset["name"]: preset for preset in json.loads(capsys.readouterr().out)}
    assert list(found) == sorted(CONFIGS)
    assert found["koelectra_small_v3"] == {
        "name": "koelectra_small_v3", "file": str(CONFIGS["koelectra_small_v3"]),
        "title": "KoELECTRA-small-v3: Korean, MeCab-informed WordPiece of 35,000 entries, 34 GB of text.",
        "discriminator_parameters": 14_122_241, "generator_parameters": 14_124_344, "batch_size": 512,
        "num_steps": 800_000, "max_seq_length": 512,
    }  # fmt: skip
    assert main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 2 * len(CONFIGS) and str(ROOT / "configs") in lines[-1]
    for name, line, title in zip(sorted(CONFIGS), lines[1:-1:2], lines[2:-1:2], strict=True):
        assert line.split() == [name, *(f"{number:,}" for number in list(found[name].values())[3:])]
        assert title == f"  {found[name]['title']}"


@pytest.mark.parametrize("preset", ["demo", "tiny", "electra_small"])  # own layers, one transformer, a small generator
def test_parameters_are_those_of_all_layers(preset):
    architecture = load_config(preset).architecture
    shapes = expected_shapes(architecture)
    of = {"discriminator": names.discriminator_names, "generator": names.generator_names}
    assert num_parameters(architecture) == {
        part: sum(math.prod(shapes[name]) for name in of[part](shapes).values()) for part in architecture.parts
    }


def test_the_sample_is_found_by_its_name(tmp_path, capsys):
    shard = ["shard", "--vocab", "tiny-ko", "--max-seq-length", "64", "--workers", "1", "--corpus"]
    assert data_main([*shard, "sample", "--out", "named"]) == 0
    assert data_main([*shard, str(ROOT / "data_prep/sample/korean.txt"), "--out", "given"]) == 0
    (named, given) = (next((tmp_path / name).glob("*.tfrecord-*")).read_bytes() for name in ("named", "given"))
    assert named == given and "warning" not in capsys.readouterr().err
    (tmp_path / "sample").mkdir()
    assert data_main([*shard, "sample", "--out", "own"]) == 1
    assert "--corpus sample: no corpus files there" in capsys.readouterr().err, "a folder of that name comes first"
