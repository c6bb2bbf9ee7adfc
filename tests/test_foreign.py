"""Our files in other people's hands: TensorFlow, tensorflow-datasets, transformers 5. Each has its own environment."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from test_train import exported, run, state_at  # noqa: F401  the run they need, made once more here
from weights_tools import write_vocabulary

from data_prep.cli import main as electra_data
from electra_flax.data.shards import DataFolder, ShardedExamples
from electra_flax.weights import names, parity
from electra_flax.weights.export import export_to_tf1
from electra_flax.weights.sources import find_weights

pytestmark = pytest.mark.slow
FOREIGN = Path(__file__).parent / "foreign"
ROOT = Path(__file__).parents[1]
TORCH, TENSORFLOW = "torch==2.13.0+cpu", ("tensorflow-cpu==2.21.0",)
# What data_prep imports.
DATA_PREP = ("backports.zstd", "google-crc32c", "ijson", "numba", "pydantic", "PyYAML", "rich", "tokenizers")


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
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2", "TF_USE_LEGACY_KERAS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_tensorflow_and_tfds_read_our_shards(run):  # noqa: F811
    python = environment(*TENSORFLOW, "tensorflow-datasets==4.9.10", "importlib-resources", *DATA_PREP)
    answer = ask(python, "read_with_tensorflow.py", run / "shards", 32)
    data = DataFolder.open(run / "shards")
    examples = ShardedExamples(data.splits["train"], 32, 600)
    ours = examples.read(range(len(examples))).astype(np.int64)
    expected = {"rows": len(ours), "crc": zlib.crc32(ours.tobytes())}
    assert answer["tf"] == expected and answer["tfds"] == expected
    assert answer["tfds_examples"] == {split: data.manifest.examples(split) for split in data.splits}


# What a head has that no pretrained ELECTRA has, by the beginning of its names.
OWN = {
    "Model": (), "ForPreTraining": ("discriminator_predictions",), "ForCausalLM": ("generator_",),
    "ForMaskedLM": ("generator_",), "ForSequenceClassification": ("classifier",),
    "ForMultipleChoice": ("sequence_summary", "classifier"), "ForTokenClassification": ("classifier",),
    "ForQuestionAnswering": ("qa_outputs",),
}  # fmt: skip
TRAINED = {"discriminator": ("ForPreTraining",), "generator": ("ForMaskedLM", "ForCausalLM")}


@pytest.mark.parametrize(
    "framework", ["flax", "torch", "torch of transformers 5", pytest.param("tensorflow", marks=pytest.mark.long)]
)
def test_every_head_loads_with_nothing_new_but_itself(run, exported, tmp_path, framework):  # noqa: F811
    """Eight heads on each of our models: the encoder is ours, and only what neither was trained for is missing."""
    python = {
        "flax": lambda: sys.executable,
        "torch": lambda: sys.executable if find_spec("torch") else pytest.skip("NOT CHECKED: no PyTorch"),
        "torch of transformers 5": lambda: environment("transformers==5.23.0", TORCH),
        "tensorflow": lambda: environment(*TENSORFLOW, "tf-keras==2.21.0", "transformers==4.57.6", TORCH),
    }[framework]()
    used_weights = find_weights(f"hf:{exported}")
    inputs = parity.make_inputs(exported / "discriminator", 32)
    ours = parity.our_outputs(used_weights, dict.fromkeys(TRAINED, inputs))
    # PyTorch wants 64 bits.
    np.savez(tmp_path / "inputs.npz", **{name: array.astype(np.int64) for name, array in inputs.items()})
    reports = ask(
        python, "load_heads.py", exported, tmp_path / "inputs.npz", tmp_path / "outputs.npz", framework.split()[0]
    )
    version = reports.pop("version")
    assert version.startswith("5." if framework.endswith("5") else "4.57")
    theirs, used = np.load(tmp_path / "outputs.npz"), inputs["attention_mask"] == 1
    heads = 7 if framework == "tensorflow" else 8  # it has no ElectraForCausalLM
    assert len(reports) == 2 * heads
    for name, report in reports.items():
        _, part, head = name.split("/")
        hidden = theirs[f"{name}/hidden"].reshape(*used.shape, -1)
        np.testing.assert_allclose(hidden[used], ours[part].hidden[-1], atol=1e-4, rtol=0, err_msg=name)
        assert all(key.startswith(OWN[head]) for key in report["missing"]), (name, report)
        if head in TRAINED[part]:
            assert not report["missing"] and not report["unexpected"], (name, report)
            logits = theirs[f"{name}/logits"].reshape(*used.shape, *ours[part].logits.shape[1:])
            np.testing.assert_allclose(logits[used], ours[part].logits, atol=1e-4, rtol=0, err_msg=name)
        else:
            assert bool(report["missing"]) == (head != "Model"), (name, report)
            own = ("discriminator_predictions",) if part == "discriminator" else ("generator_",)
            assert all(key.startswith(own) for key in report["unexpected"]), (name, report)


@pytest.mark.parametrize("name", ["A_small_gen0.25", "B_koelectra_small_gen1.0"])
def test_tensorflow_reads_what_we_read_and_what_we_write(golden, tmp_path, name):
    """Every tensor of a checkpoint of the original, moments and step too, before and after it went through us."""
    python = environment(*TENSORFLOW, "tf-keras==2.21.0", "transformers==4.57.6", TORCH)
    prefix = golden / f"tf1_ckpt/{name}/model.ckpt-200"
    weights = find_weights(f"tf1:{prefix}")
    vocabulary = write_vocabulary(tmp_path / "vocab.txt", weights.architecture.model.vocab_size)
    written = export_to_tf1(dataclasses.replace(weights, vocabulary=vocabulary), tmp_path / "out")
    for number, place in enumerate((prefix, written)):
        answer = ask(python, "read_tf1_checkpoint.py", place, tmp_path / f"{number}.npz")
    assert answer["latest"] == str(written)
    before, after = (np.load(tmp_path / f"{number}.npz") for number in (0, 1))
    assert set(before.files) == set(after.files) and len(before.files) == 3 * len(weights.shapes) + 1
    for key in before.files:
        assert before[key].dtype == after[key].dtype
        np.testing.assert_array_equal(before[key], after[key], err_msg=key)
    for ours in weights.shapes:
        np.testing.assert_array_equal(weights.read(ours), before[names.to_tf1(ours)])
        for moment in ("m", "v"):
            np.testing.assert_array_equal(
                weights.read_moment(ours, moment), before[names.tf1_slot(ours, f"adam_{moment}")]
            )
    assert weights.step == before["global_step"] == 200


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
    python = environment(*TENSORFLOW, "tensorflow-datasets==4.9.10", "importlib-resources", *DATA_PREP)
    answer = ask(python, "read_tfds_corpus.py", tmp_path)
    assert answer["train"] == [["첫 문서의 첫 줄.", "둘째 줄."], ["둘째 문서."]]
    assert answer["test"] == [["시험 문서."]]
    assert "no feature 'text', only title, body" in answer["feature"] or "only body, title" in answer["feature"]
    assert "cannot be opened" in answer["split"] and "cannot be opened" in answer["name"]
