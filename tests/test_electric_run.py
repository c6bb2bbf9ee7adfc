"""A run of Electric as its user has it: killed and continued, evaluated, exported, carried to the original and back."""

import json

import numpy as np
import pytest
from run_tools import DIE_ONCE_SAVED, TINY, assert_undisturbed, make_shards, pretrain, records, refusal, start
from weights_tools import assert_equal

from electra_flax.commands.cli import main
from electra_flax.weights.sources import find_weights

KILLED_ONCE_SAVED = DIE_ONCE_SAVED.replace("os._exit(9)", "os.kill(os.getpid(), 9)")


@pytest.fixture(scope="module")
def root(tmp_path_factory, sample_corpus):
    root = tmp_path_factory.mktemp("electric")
    make_shards(root, sample_corpus)
    (root / "tiny.yaml").write_text(TINY + "objective: {kind: electric}\n")
    return root


@pytest.fixture(scope="module")
def straight(root):
    """A run that nothing interrupts."""
    assert main(pretrain(root, "straight")) == 0
    return root / "straight"


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(root, straight):
    for before, expected_code in ((KILLED_ONCE_SAVED, -9), ("", 0)):
        process = start(pretrain(root, "killed"), before)
        error = process.communicate()[1]
        assert process.returncode == expected_code, error
    assert_undisturbed(root, "killed")


@pytest.mark.slow
def test_what_is_measured_and_shown(root, straight, capsys):
    names = {"cloze_loss", "generator_loss", "discriminator_loss", "discriminator_auc"}
    held_out, train = (records(root, "straight", split) for split in ("validation", "train"))
    assert names <= held_out[6].keys() and names <= train[6].keys()
    expected = held_out[6]["cloze_loss"] + 50 * held_out[6]["discriminator_loss"]
    assert held_out[6]["loss"] == pytest.approx(expected, rel=1e-6)
    assert held_out[6]["cloze_loss"] < held_out[0]["cloze_loss"] and held_out[6]["loss"] < held_out[0]["loss"]
    capsys.readouterr()
    assert main(["evaluate", "--workdir", str(straight)]) == 0
    assert json.loads(capsys.readouterr().out.partition("\n}")[0] + "}")["cloze_loss"] == held_out[6]["cloze_loss"]
    main(["doctor", "--workdir", str(straight)])
    assert "random guessing" not in capsys.readouterr().out, "the first losses are those of guessing"
    page = root / "report.html"
    assert main(["report", "--workdir", str(straight), "--out", str(page)]) == 0
    assert "each of two towers" in page.read_text()


@pytest.mark.slow
def test_exports_say_what_the_logit_is(root, straight, capsys):
    out = root / "out"
    assert main(["export", "--workdir", str(straight), "--out", str(out)]) == 0
    assert [path.name for path in out.iterdir() if path.is_dir()] == ["discriminator"]
    assert json.loads((out / "discriminator/config.json").read_text())["electra_flax_logit"] == "energy"
    card = (out / "discriminator/README.md").read_text()
    assert "**energy**" in card and "each of the generator's two towers" in card
    assert main(["verify", "--model", str(out / "discriminator")]) == 0
    capsys.readouterr()
    for model in (out, straight):
        assert main(["score", "--model", str(model), "--json", "오늘 날씨"]) == 0
        assert "negative_energy" in capsys.readouterr().out
    for command in (
        ["detect", "--model", str(out), "글"],
        ["show", "--model", str(out), "--data", str(root / "shards")],
    ):
        assert "an Electric model, whose logits are energies" in refusal(capsys, command)
    given = pretrain(root, "start", "--init-from", f"hf:{out}/discriminator")
    assert "has no two towers (cloze_lm_head/bias is missing)" in refusal(capsys, given)


@pytest.mark.slow
def test_the_original_takes_it_and_gives_it_back(root, straight):
    tf1 = root / "tf1"
    assert main(["export", "--workdir", str(straight), "--out", str(tf1), "--to", "tf1"]) == 0
    hparams = json.loads((tf1 / "hparams.json").read_text())
    assert (hparams["electric_objective"], hparams["electra_objective"]) == (True, False)
    ours, theirs = find_weights(f"orbax:{straight}"), find_weights(f"tf1:{tf1}/model.ckpt-6")
    assert_equal(ours, theirs)
    assert ours.architecture.logit == theirs.architecture.logit == "energy"
    for moment in "mv":
        np.testing.assert_array_equal(*(each.read_moment("cloze_lm_head/bias", moment) for each in (ours, theirs)))
    more = ("--resume-from", f"tf1:{tf1}/model.ckpt-6", "--training.num_steps", "8")
    assert main(pretrain(root, "goes on", *more)) == 0
    assert records(root, "goes on", "validation")[6]["loss"] == records(root, "straight", "validation")[6]["loss"]
