"""Our files in other people's hands: TensorFlow, tensorflow-datasets, transformers 5. Each has its own environment."""

import hashlib
import json
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from test_train import exported, run, state_at  # noqa: F401  the run they need, made once more here

from electra_flax import parity
from electra_flax.config_io import load_config
from electra_flax.records import DataFolder, ShardedExamples

pytestmark = pytest.mark.slow
FOREIGN = Path(__file__).parent / "foreign"
ROOT = Path(__file__).parents[1]


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
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_tensorflow_and_tfds_read_our_shards(run):  # noqa: F811
    python = environment("tensorflow-cpu==2.21.0", "tensorflow-datasets==4.9.10")
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
