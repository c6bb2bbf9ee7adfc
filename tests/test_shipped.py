"""Models that ship with the package: commands that take a model or a vocabulary take their names."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from run_tools import refusal

from data_prep.cli import main as data_main
from electra_flax import shipped
from electra_flax.commands.cli import main
from electra_flax.data.manifest import Manifest
from electra_flax.data.vocabulary import Vocabulary
from electra_flax.finetuning.run import find_encoder
from electra_flax.weights.sources import find_part, find_weights


@pytest.fixture
def model(copy, monkeypatch):
    """The folder of a model that ships as tiny-ko; the current folder has none of that name."""
    folder = copy.parent / "models/tiny-ko"
    shutil.copytree("export", folder)
    monkeypatch.setattr(shipped, "FOLDER", folder.parent)
    return folder


PRETRAIN = ["pretrain", "--config", "tiny.yaml", "--data", "shards", "--workdir", "new"]
SHARD = ["shard", "--corpus", "text.txt", "--out", "made", "--max-seq-length", "32", "--workers", "1"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["detect", "--model", "tiny-ko", "짧은 문장"],
        ["fill", "--model", "tiny-ko", "짧은 [MASK]"],
        ["show", "--model", "tiny-ko", "--data", "shards"],
        ["verify", "--model", "tiny-ko", "--against", "tiny-ko"],
        ["export", "--from", "tiny-ko", "--to", "tf1", "--out", "original"],
        [*PRETRAIN, "--init-from", "tiny-ko"],
        pytest.param([*PRETRAIN, "--init-from", "hf:tiny-ko"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_commands_take_a_model_by_its_name(model, caplog, arguments):
    with jax.numpy_rank_promotion("allow"):  # transformers' modules rely on it
        assert main(arguments) == 0
    if "--init-from" in arguments:
        assert {f"weights from {arguments[-1]}", "  not used: nothing"} <= set(caplog.messages)


def test_a_fine_tuning_takes_a_model_by_its_name(model):
    found, expected = find_encoder("tiny-ko"), find_encoder(str(model))
    assert found.folders == expected.folders == (model / "discriminator",)
    assert dataclasses.asdict(found.architecture) == dataclasses.asdict(expected.architecture)


def test_both_models_or_one_of_them(model):
    both = find_weights("hf:tiny-ko")
    assert both.folders == (model / "discriminator", model / "generator")
    assert find_part("tiny-ko", "generator").folders == (model / "generator",)
    name = "electra/embeddings/word_embeddings/embedding"
    np.testing.assert_array_equal(both.read(name), find_weights(f"hf:{model}").read(name))


def test_shards_are_made_with_its_vocabulary(model, capsys):
    assert data_main([*SHARD, "--vocab", "tiny-ko"]) == 0
    assert (
        Manifest.read(model.parents[1] / "copy/made").vocab_sha256
        == Vocabulary.read(model / "discriminator/vocab.txt").sha256
    )
    capsys.readouterr()
    assert data_main(["report", "--corpus", "text.txt", "--vocab", "vocab", "--compare", "tiny-ko", "--out", "r"]) == 0
    assert "tiny-ko" in capsys.readouterr().out


def test_a_folder_of_that_name_comes_first(model, capsys):
    shutil.copytree("export", "tiny-ko")
    assert find_part("tiny-ko", "discriminator").folders[0].parent.resolve() == (model.parents[1] / "copy/tiny-ko")
    shutil.rmtree("tiny-ko/discriminator")
    assert "discriminator" in refusal(capsys, ["detect", "--model", "tiny-ko", "짧은 문장"])
    shutil.rmtree("tiny-ko/generator")
    assert data_main([*SHARD, "--vocab", "tiny-ko"]) == 1
    assert "tiny-ko/vocab.txt: no such vocabulary" in capsys.readouterr().err


def test_an_unknown_name_is_answered_with_those_that_ship(model, capsys, monkeypatch):
    for arguments, expected in (
        (["detect", "--model", "tiny", "짧은"], "hf:tiny: no such folder, nor OWNER/NAME of a repository on the hub"),
        (["show", "--model", "tiny", "--data", "shards"], "hf:tiny: no such folder"),
        ([*PRETRAIN, "--init-from", "tiny"], "tiny: expected hf:DISC[,GEN], tf1:PREFIX or orbax:DIR"),
        ([*PRETRAIN, "--init-from", "hf:tiny"], "hf:tiny: no such folder"),
    ):
        said = refusal(capsys, arguments)
        assert expected in said and said.endswith("; models that ship with the package: tiny-ko")
    assert data_main([*SHARD, "--vocab", "tiny"]) == 1
    said = capsys.readouterr().err.strip()
    assert "tiny/vocab.txt: no such vocabulary" in said and said.endswith("ship with the package: tiny-ko")
    monkeypatch.setattr(shipped, "FOLDER", model / "nothing")
    assert "ship with" not in refusal(capsys, ["detect", "--model", "tiny", "짧은"])
