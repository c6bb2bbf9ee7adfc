"""Every door in and out: what comes back is what went in, and what is no ELECTRA is refused in one line."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from golden_tools import read_json
from run_tools import refusal
from test_golden import FORWARD_CASES, RecordedTraining, losses_with_given_draws
from weights_tools import SHARING, assert_equal, export, random_weights, write_original, write_vocabulary

from electra_flax import names
from electra_flax.architecture import flat, nested
from electra_flax.cli import main
from electra_flax.config import MeshConfig
from electra_flax.export import export_to_tf1
from electra_flax.initial_weights import Start, apply_start, check_start
from electra_flax.optimizer import AdamState
from electra_flax.sharding import make_mesh
from electra_flax.step import TrainState
from electra_flax.weights import find_weights

CHECKPOINTS = ("A_small_gen0.25", "B_koelectra_small_gen1.0")


# ------------------------------------------------------------------------------------------------------ the original


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_of_the_original_come_whole(golden, name):
    """Weights, moments and step against what TensorFlow itself read of them; forward pass against the original's."""
    weights = find_weights(f"tf1:{golden}/tf1_ckpt/{name}/model.ckpt-200.index")
    expected = np.load(golden / FORWARD_CASES[name])
    assert {names.to_tf1(each) for each in weights.shapes} | {"global_step"} == set(expected.files) | {"global_step"}
    for each in weights.shapes:
        np.testing.assert_array_equal(weights.read(each), expected[names.to_tf1(each)])
    assert weights.step == 200 and not weights.unused and not weights.remarks

    case = np.load(golden / f"forward/{name}.npz")
    total, (_, generator_BMV, discriminator_BT) = losses_with_given_draws(weights.config, weights.to_params(), case)
    np.testing.assert_allclose(generator_BMV, case["mlm_logits"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(discriminator_BT, case["disc_logits"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(total, case["total_loss"], rtol=1e-5)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_of_the_original_go_back_as_they_were(golden, tmp_path, name):
    place = golden / f"tf1_ckpt/{name}"
    rows = find_weights(f"tf1:{place}/model.ckpt-200").config.model.vocab_size
    vocabulary = write_vocabulary(tmp_path / "vocab.txt", rows).path
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false, "strip_accents": false}')
    arguments = ["--from", f"tf1:{place}/model.ckpt-200", "--vocab", str(vocabulary), "--out", str(tmp_path / "out")]
    assert main(["export", *arguments, "--to", "tf1"]) == 0
    before, after = (find_weights(f"tf1:{folder}/model.ckpt-200") for folder in (place, tmp_path / "out"))
    assert_equal(before, after)
    for each in before.shapes:
        for moment in "mv":
            np.testing.assert_array_equal(before.read_moment(each, moment), after.read_moment(each, moment))
    assert (before.step, before.config) == (after.step, after.config)
    theirs, ours = (read_json(folder / "hparams.json") for folder in (place, tmp_path / "out"))
    assert {key: ours[key] for key in theirs if key in ours} == {key: theirs[key] for key in theirs if key in ours}


def test_training_goes_on_where_the_original_stopped(golden, tmp_path):
    """Ten steps from its first weights, out as its checkpoint, in again, ten more: where it was after twenty."""
    recorded = RecordedTraining(golden)
    first = recorded.weights("init")
    write_original(tmp_path / "begin/model.ckpt-0", first, recorded.hparams)
    vocabulary = write_vocabulary(tmp_path / "begin/vocab.txt", recorded.config.model.vocab_size)
    config = dataclasses.replace(recorded.config, training=dataclasses.replace(recorded.config.training, batch_size=8))

    def resume(source):
        start = Start(source, resumes=True)
        check_start(start, config, vocabulary)
        # What resuming must replace is filled with what would be wrong.
        params = nested({name: np.full(shape, 9.0, np.float32) for name, shape in find_weights(source).shapes.items()})
        params = jax.device_put(params)
        fresh = TrainState(jax.numpy.zeros((), "int32"), params, recorded.optimizer.init(params))
        return jax.device_get(apply_start(start, config, vocabulary, make_mesh(MeshConfig()), fresh))

    state = resume(f"tf1:{tmp_path}/begin/model.ckpt-0")
    assert int(state.step) == 0
    params, opt_state = recorded.train(state.params, state.opt_state, range(10))

    adam = next(part for part in opt_state if isinstance(part, AdamState))
    parts = {"": flat(params), "m": flat(adam.m), "v": flat(adam.v)}
    reached = dataclasses.replace(
        find_weights(f"tf1:{tmp_path}/begin/model.ckpt-0"), step=10,
        read=lambda name: np.asarray(parts[""][name]), read_moment=lambda name, moment: np.asarray(parts[moment][name]),
    )  # fmt: skip
    prefix = export_to_tf1(reached, tmp_path / "half")
    state = resume(f"tf1:{prefix}")
    assert int(state.step) == 10
    recorded.assert_is_its_end(*recorded.train(state.params, state.opt_state, range(10, 20)))


# ------------------------------------------------------------------------------------------------------ round trips


@pytest.mark.parametrize("sharing", SHARING)
def test_nothing_is_lost_on_the_way_and_back(tmp_path, sharing):
    """Ours -> Hugging Face -> ours -> Hugging Face and ours -> TensorFlow 1 -> ours, bit by bit."""
    weights = random_weights(tmp_path, sharing)
    out = export(weights, tmp_path / "out")
    folders = sorted(path for path in out.iterdir() if path.is_dir())
    back = find_weights("hf:" + (str(out) if len(folders) == 2 else str(folders[0])))
    assert_equal(weights, back)
    again = export(dataclasses.replace(back, run=None), tmp_path / "again")
    for file in sorted(out.rglob("*")):
        if file.name in ("model.safetensors", "flax_model.msgpack", "config.json", "tokenizer.json", "vocab.txt"):
            assert file.read_bytes() == (again / file.relative_to(out)).read_bytes(), file

    prefix = export_to_tf1(weights, tmp_path / "original")
    original = find_weights(f"tf1:{prefix}")
    assert_equal(weights, original)
    for name in weights.shapes:
        for moment in "mv":
            np.testing.assert_array_equal(original.read_moment(name, moment), weights.read_moment(name, moment))
    assert (original.step, original.casing) == (7, weights.casing)
    assert original.config.model == dataclasses.replace(
        weights.config.model, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1
    )
