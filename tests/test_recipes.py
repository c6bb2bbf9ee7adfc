"""Ways to train beside the plain one: words, spans, LAMB, a second phase on long sequences, weights of another run."""

import json
import shutil

import jax
import numpy as np
import optax
import pytest
from run_tools import make_shards, pretrain, records, refusal, start, state_at

from data_prep.cli import main as data_main
from electra_flax.commands.cli import main
from electra_flax.config.optimizer import OptimizerConfig
from electra_flax.training.optimizers import learning_rate, make_optimizer


@pytest.fixture(scope="module")
def root(tmp_path_factory, sample_corpus):
    root = tmp_path_factory.mktemp("recipes")
    make_shards(root, sample_corpus)
    for name, extra in (("long", ["--max-seq-length", "64"]), ("other", ["--max-seq-length", "32"])):
        source = ["--corpus", str(sample_corpus), "--validation-fraction", "0.1", "--workers", "1"]
        vocab = "vocab"
        if name == "other":
            vocab = "other_vocab"
            vocab_out = ["--out", str(root / vocab), "--size", "590", "--unused", "10"]
            assert data_main(["vocab", "--corpus", str(sample_corpus), *vocab_out]) == 0
        assert data_main(["shard", *source, "--vocab", str(root / vocab), "--out", str(root / name), *extra]) == 0
    return root


DIE = """
from electra_flax.training.checkpoint import Checkpoints
save = Checkpoints.save
def save_and_die(self, state, *given):
    save(self, state, *given)
    if int(state.step) == {step}:
        self.wait()
        os._exit(9)
Checkpoints.save = save_and_die
"""


# --------------------------------------------------------------------------------------------------------- units


@pytest.mark.slow
@pytest.mark.parametrize("unit", [pytest.param("word", marks=pytest.mark.long), "span"])
def test_a_run_that_hides_words_goes_on_bit_by_bit(root, unit, capsys):
    recipe = ["--masking.unit", unit, "--generator.dropout", "0", "--checkpoint.every_steps", "2"]
    assert main(pretrain(root, unit, *recipe)) == 0
    process = start(pretrain(root, f"{unit}-killed", *recipe), DIE.format(step=4))
    error = process.communicate()[1]
    assert process.returncode == 9, error
    assert main(pretrain(root, f"{unit}-killed", *recipe)) == 0
    for ours, theirs in zip(*(jax.tree.leaves(state_at(root, f"{unit}{end}")) for end in ("", "-killed")), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert records(root, unit, "validation") == records(root, f"{unit}-killed", "validation")
    assert f"masking.unit: {unit} -> token" in refusal(capsys, pretrain(root, unit, *recipe[2:]))


# ---------------------------------------------------------------------------------------------------------- LAMB


def test_lamb_is_algorithm_2_of_the_paper():
    """In numpy, in double precision; biases and LayerNorms are neither decayed nor scaled by their norm."""
    config = OptimizerConfig(learning_rate=0.01, warmup_steps=2, algorithm="lamb", max_grad_norm=1e9)
    rng = np.random.default_rng(0)
    names = {"dense/kernel": True, "dense/bias": False, "LayerNorm/scale": False}
    shapes = {"dense/kernel": (4, 3), "dense/bias": (3,), "LayerNorm/scale": (3,)}
    ours = {"dense": {}, "LayerNorm": {}}
    expected, m, v = {}, {}, {}
    for name, shape in shapes.items():
        expected[name] = rng.normal(size=shape)
        module, leaf = name.split("/")
        ours[module][leaf] = np.float32(expected[name])
        m[name] = v[name] = np.zeros(shape)
    optimizer = make_optimizer(config, 10)
    state = optimizer.init(ours)
    for step in range(6):
        gradients = {name: rng.normal(size=shape) for name, shape in shapes.items()}
        tree = {"dense": {}, "LayerNorm": {}}
        for name, gradient in gradients.items():
            module, leaf = name.split("/")
            tree[module][leaf] = np.float32(gradient)
        updates, state = optimizer.update(tree, state, ours)
        ours = optax.apply_updates(ours, updates)
        for name, gradient in gradients.items():
            m[name] = 0.9 * m[name] + 0.1 * gradient
            v[name] = 0.999 * v[name] + 0.001 * gradient**2
            r = m[name] / (1 - 0.9 ** (step + 1)) / (np.sqrt(v[name] / (1 - 0.999 ** (step + 1))) + 1e-6)
            if names[name]:
                r += 0.01 * expected[name]
                r *= np.linalg.norm(expected[name]) / np.linalg.norm(r)
            expected[name] -= float(learning_rate(step, config, 10)) * r
    for name, value in expected.items():
        module, leaf = name.split("/")
        np.testing.assert_allclose(ours[module][leaf], value, rtol=2e-5, atol=1e-6)


@pytest.mark.slow
def test_a_run_with_lamb_learns_and_cannot_become_adamw(root, capsys):
    lamb = ["--optimizer.algorithm", "lamb", "--optimizer.learning_rate", "0.01"]
    assert main(pretrain(root, "lamb", *lamb)) == 0
    losses = records(root, "lamb", "train")
    assert losses[6]["loss"] < losses[1]["loss"]
    capsys.readouterr()
    assert main(pretrain(root, "lamb", "--optimizer.learning_rate", "0.01")) == 1
    assert "optimizer.algorithm: lamb -> adamw" in capsys.readouterr().err.strip().splitlines()[-1]


# --------------------------------------------------------------------------------------------------- long phase


LONG = ("--long_phase.steps", "3", "--long_phase.batch_size", "8", "--long_phase.max_seq_length", "64")


def two_phases(root, workdir, *extra):
    data = ["--long-data", str(root / "long"), "--training.num_steps", "7", "--checkpoint.every_steps", "2"]
    return pretrain(root, workdir, *LONG, *data, *extra)


@pytest.fixture(scope="module")
def phases(root):
    """A finished run."""
    assert main(two_phases(root, "phases")) == 0
    return root / "phases"


@pytest.mark.slow
def test_a_long_phase_goes_on_with_the_same_state(root, phases, capsys):
    train = records(root, "phases", "train")
    assert sorted(train) == [1, 2, 3, 4, 5, 6, 7]
    events = [json.loads(line) for line in (phases / "events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "start"] == [0, 4]
    # The schedule is one: it reaches 0 after the last of all steps, whatever the phase.
    assert train[5]["learning_rate"] == pytest.approx(1e-3 * 3 / 7)
    # Short sequences teach nothing about the later positions; long ones do.
    fresh = state_at(root, "phases", 4).params["electra"]["embeddings"]["position_embeddings"]["embedding"]
    after = state_at(root, "phases", 7).params["electra"]["embeddings"]["position_embeddings"]["embedding"]
    decay_alone = fresh[32:] * np.prod([1 - 1e-5 * (7 - step) / 7 for step in (4, 5, 6)])
    assert np.abs(after[32:] - decay_alone).max() > 1e-4
    capsys.readouterr()
    assert main(["evaluate", "--workdir", str(phases)]) == 0
    last = json.loads(capsys.readouterr().out)
    assert last["loss"] == pytest.approx(records(root, "phases", "validation")[7]["loss"], rel=1e-6)
    assert main(["evaluate", "--workdir", str(phases), "--step", "4"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["loss"] == pytest.approx(records(root, "phases", "validation")[4]["loss"], rel=1e-6)
    assert first["examples"] > last["examples"]


@pytest.mark.slow
@pytest.mark.parametrize("dies_at", [pytest.param(4, marks=pytest.mark.long), 6])
def test_a_run_of_two_phases_resumes_in_either(root, phases, dies_at):
    name = f"phases{dies_at}"
    process = start(two_phases(root, name), DIE.format(step=dies_at))
    error = process.communicate()[1]
    assert process.returncode == 9, error
    assert main(two_phases(root, name)) == 0
    straight, resumed = state_at(root, "phases", 7), state_at(root, name, 7)
    for ours, theirs in zip(jax.tree.leaves(straight), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert records(root, name, "train") == records(root, "phases", "train")
    events = [json.loads(line) for line in (root / name / "events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "start"] == ([0, 4, 6] if dies_at == 6 else [0, 4])


def test_what_a_long_phase_refuses(root, capsys):
    for arguments, expected in (
        (pretrain(root, "x", "--long-data", str(root / "long")), "long_phase.steps=0: expected no --long-data"),
        (pretrain(root, "x", *LONG), "long_phase.steps=3: expected --long-data too"),
        (pretrain(root, "x", "--long_phase.steps", "3"), "long_phase.batch_size=0 must be greater than 0"),
        (
            two_phases(root, "x", "--long_phase.steps", "7"),
            "--long_phase.steps=7 must be less than --training.num_steps=7",
        ),
        (two_phases(root, "x", "--long_phase.max_seq_length", "128"), "long phase: data.max_seq_length=128 must be"),
        (
            two_phases(root, "x", "--long_phase.batch_size", "9"),
            "long phase: training.batch_size=9 must be a multiple of 8",
        ),
        (two_phases(root, "x", "--long-data", str(root / "shards")), "long phase: data.max_seq_length=64, but the"),
    ):
        error = refusal(capsys, arguments)
        assert expected in error, error


@pytest.mark.slow
def test_another_long_phase_is_another_run(root, phases, capsys):
    assert "long_phase.steps: 3 -> 2" in refusal(capsys, two_phases(root, "phases", "--long_phase.steps", "2"))


# ------------------------------------------------------------------------------------------- weights of another run


@pytest.fixture(scope="module")
def source(whole, root):
    """The weights of a finished run, as --init-from names them."""
    shutil.copytree(whole / "run", root / "source")
    return f"orbax:{root / 'source'}"


@pytest.mark.slow
def test_weights_of_another_run_with_everything_else_fresh(root, source, caplog):
    caplog.set_level("INFO")
    begin = ["--init-from", source]
    frozen = ["--optimizer.learning_rate", "1e-30", "--optimizer.weight_decay", "0"]
    assert main(pretrain(root, "begun", *begin, *frozen, "--training.num_steps", "3")) == 0
    assert f"weights from {source}" in caplog.text
    learned, begun = state_at(root, "source"), state_at(root, "begun")
    for ours, theirs in zip(jax.tree.leaves(learned.params), jax.tree.leaves(begun.params), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert int(begun.step) == 3
    events = [json.loads(line) for line in (root / "begun/events.jsonl").read_text().splitlines()]
    assert events[0]["init_from"] == source
    assert main(pretrain(root, "begun", *begin, *frozen, "--training.num_steps", "4")) == 0
    assert "continuing from step 3; --init-from or --resume-from was applied when the run began" in caplog.text


def test_weights_that_do_not_fit_are_refused(root, source, capsys):
    for arguments, expected in (
        (pretrain(root, "y", "--init-from", "x"), "x: expected hf:DISC"),
        (pretrain(root, "y", "--init-from", f"orbax:{root}"), "not the workdir of a run"),
        (
            pretrain(root, "y", "--init-from", source, "--model.vocab_size", "590", data="other"),
            "trained with another vocabulary: 10 of its 600 tokens",
        ),
        (
            pretrain(root, "y", "--init-from", source, "--model.intermediate_size", "96"),
            "tensors have other shapes, the first electra/encoder",
        ),
    ):
        capsys.readouterr()
        assert main(arguments) == 1, expected
        error = capsys.readouterr().err.strip().splitlines()
        assert expected in error[-1], error
