"""Our files in other people's hands: TensorFlow, tensorflow-datasets, transformers 5. Each has its own environment."""

import hashlib
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from test_train import exported, run, state_at  # noqa: F401  the run they need, made once more here

from data_prep.cli import main as electra_data
from electra_flax import parity
from electra_flax.config_io import load_config
from electra_flax.records import DataFolder, ShardedExamples

pytestmark = pytest.mark.slow
FOREIGN = Path(__file__).parent / "foreign"
ROOT = Path(__file__).parents[1]
# What data_prep imports.
DATA_PREP = ("backports.zstd", "google-crc32c", "ijson", "numba", "rich", "tokenizers", "tqdm")


def environment(*requirements: str) -> Path:
    """The Python of a virtual environment with these packages, kept for the next run; skips where there is none."""
    digest = hashlib.sha256(" ".join((sys.version, *requirements)).encode()).hexdigest()[:12]
    python = ROOT / f".venv-foreign-{digest}/bin/python"
    marker = python.parents[1] / ".installed"
    if not marker.exists():
        subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
        install = subprocess.run(
            [python, "-m", "pip", "install", "--quiet", *requirements], capture_output=True, text=True
        )
        if install.returncode:
            pytest.skip(f"NOT CHECKED: cannot install {' '.join(requirements)}: {install.stderr[-200:]}")
        marker.touch()
    return python


def ask(python: Path, script: str, *arguments: object) -> dict:
    command = [python, FOREIGN / script, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_tensorflow_and_tfds_read_our_shards(run):  # noqa: F811
    python = environment("tensorflow-cpu==2.21.0", "tensorflow-datasets==4.9.10", "importlib-resources", *DATA_PREP)
    answer = ask(python, "read_with_tensorflow.py", run / "shards", 32)
    data = DataFolder.open(run / "shards")
    examples = ShardedExamples(data.splits["train"], 32, 600)
    ours = examples.read(range(len(examples))).astype(np.int64)
    expected = {"rows": len(ours), "crc": zlib.crc32(ours.tobytes())}
    assert answer["tf"] == expected and answer["tfds"] == expected
    assert answer["tfds_examples"] == {split: data.manifest.examples(split) for split in data.splits}


def test_transformers_5_loads_our_exports(run, exported, tmp_path):  # noqa: F811
    python = environment("transformers==5.23.0", "torch==2.13.0+cpu")
    inputs = {
        "input_ids": np.array([[2, 9, 80, 300, 7, 3], [2, 11, 3, 0, 0, 0]]),
        "attention_mask": np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]),
        "token_type_ids": np.zeros((2, 6), int),
    }
    np.savez(tmp_path / "inputs.npz", **inputs)
    report = ask(python, "load_with_transformers_5.py", exported, tmp_path / "inputs.npz", tmp_path / "outputs.npz")
    assert report.pop("version").startswith("5.")
    theirs = np.load(tmp_path / "outputs.npz")
    used = inputs["attention_mask"] == 1
    params = state_at(run, "straight", 6).params
    for part in ("discriminator", "generator"):
        assert not any(report[part].values()), report
        ours = parity.our_logits(load_config(run / "tiny.yaml"), params, part, inputs)
        np.testing.assert_allclose(theirs[part].reshape(ours.shape)[used], ours[used], atol=1e-4, rtol=0)


def test_beam_makes_the_same_examples(sample_corpus, tmp_path):
    vocab = tmp_path / "vocab"
    assert electra_data(["vocab", "--corpus", str(sample_corpus), "--out", str(vocab), "--size", "900"]) == 0
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    text = next(sample_corpus.glob("*.txt")).read_text(encoding="utf-8")
    (corpus / "a.txt").write_text(text, encoding="utf-8")
    (corpus / "b.txt").write_text(text[5_000:15_000], encoding="utf-8")
    answer = ask(environment("apache-beam==2.77.0", *DATA_PREP), "shard_with_beam.py", corpus, vocab, tmp_path)
    assert answer["same_examples"] and all(answer["same_counts"].values())
    assert answer["examples"]["train"] > 150 and answer["examples"]["validation"] > 10
    assert answer["dropped"]["dedup-sentences"] + answer["dropped"]["dedup-paragraphs"] > 20


def test_a_tfds_data_set_is_a_corpus(tmp_path):
    python = environment("tensorflow-cpu==2.21.0", "tensorflow-datasets==4.9.10", "importlib-resources", *DATA_PREP)
    answer = ask(python, "read_tfds_corpus.py", tmp_path)
    assert answer["train"] == [["첫 문서의 첫 줄.", "둘째 줄."], ["둘째 문서."]]
    assert answer["test"] == [["시험 문서."]]
    assert "no feature 'text', only title, body" in answer["feature"] or "only body, title" in answer["feature"]
    assert "cannot be opened" in answer["split"] and "cannot be opened" in answer["name"]
