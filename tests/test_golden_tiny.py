"""Masking, forward pass, gradients and ten steps of the original under nine option sets; its values are here."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_tools import (
    RECORDED,
    Draws,
    GivenTraining,
    Updated,
    assert_tree,
    below,
    golden_config,
    golden_params,
    read_json,
)

from electra_flax.model.electra import expected_shapes
from electra_flax.training import masking
from electra_flax.trees import flat
from electra_flax.weights import names

OPTIONS = (
    "electra", "tied_generator", "untied_embeddings", "uniform_generator", "masked_lm", "disallow_correct",
    "two_tower", "electric", "electric_large",
)  # fmt: skip
# Where the original takes the norm of a gradient's rows before those of one token are summed.
OTHER_NORM = ("untied_embeddings", "uniform_generator")
STEPS = range(10)


class Case(NamedTuple):
    """An option set: what was recorded, and a compiled step that the tests share."""

    recorded: dict[str, np.ndarray]
    training: GivenTraining
    params: dict
    draws: Draws
    updated: Updated
    """After a step on the forward pass's batch."""


@pytest.fixture(scope="module", params=OPTIONS)
def case(request) -> Case:
    hparams = read_json(RECORDED / f"tiny/{request.param}.json")
    config = golden_config(
        hparams,
        batch_size=hparams["train_batch_size"],
        num_steps=hparams["num_train_steps"],
        warmup_steps=hparams["num_warmup_steps"],
    )
    recorded = dict(np.load(RECORDED / f"tiny/{request.param}.npz"))
    other = request.param in OTHER_NORM
    training = GivenTraining(config, np.stack([recorded[f"step{t}/clip_norm"] for t in STEPS]) if other else None)
    params = golden_params(config, below("initial", recorded))
    draws = Draws.replay(config, below("forward", recorded))
    return Case(recorded, training, params, draws, training.update(params, training.optimizer.init(params), draws))


def test_masking_sampling_and_corruption(case):
    forward, config = below("forward", case.recorded), case.training.config
    masked, objective = case.draws.masked, config.objective
    np.testing.assert_array_equal(masked.positions_BM, forward["masked_lm_positions"])
    np.testing.assert_array_equal(masked.weights_BM, forward["masked_lm_weights"])
    np.testing.assert_array_equal(masked.targets_BM, forward["masked_lm_ids"])
    np.testing.assert_array_equal(masked.masked_ids_BT, forward["masked_input_ids"])
    sampled_BM = masking.sample_with_uniform(
        jnp.asarray(forward["u_sample"]),
        case.updated.outcome.generator_BMV,
        masked.targets_BM,
        objective.temperature,
        objective.disallow_correct,
    )
    np.testing.assert_array_equal(sampled_BM, forward["sampled_ids"])
    np.testing.assert_array_equal(case.draws.corrupted.corrupted_ids_BT, forward["corrupted_ids"])
    labels_BT = case.updated.outcome.labels_BT  # None: nothing learns them
    np.testing.assert_array_equal(
        case.draws.corrupted.is_replaced_BT if labels_BT is None else labels_BT, forward["labels"]
    )


def test_forward_pass(case):
    forward, outcome = below("forward", case.recorded), case.updated.outcome
    np.testing.assert_allclose(outcome.generator_BMV, forward["generator_logits"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(outcome.means["generator_loss"], forward["mlm_loss"], rtol=1e-5)
    np.testing.assert_allclose(case.updated.total, forward["total_loss"], rtol=1e-5)
    assert ("disc_loss" in forward) == (case.training.config.objective.kind != "masked_tokens")
    assert ("cloze_loss" in forward) == case.training.config.has_two_towers
    if "cloze_loss" in forward:
        np.testing.assert_allclose(outcome.cloze_BTV, forward["cloze_logits"], atol=1e-5, rtol=0)
        np.testing.assert_allclose(outcome.means["cloze_loss"], forward["cloze_loss"], rtol=1e-5)
    if "disc_loss" in forward:
        probabilities_BT = jax.nn.sigmoid(outcome.discriminator_BT)
        np.testing.assert_allclose(probabilities_BT, forward["disc_probs"], atol=1e-5, rtol=0)
        np.testing.assert_allclose(outcome.means["discriminator_loss"], forward["disc_loss"], rtol=1e-5)


def test_gradients(case):
    theirs = below("gradient", case.recorded)
    for name, ours in flat(case.updated.grads).items():
        expected = theirs[names.to_tf1(name)]
        if name.endswith("key/bias"):  # softmax takes it away: nothing but roundings
            assert max(np.abs(ours).max(), np.abs(expected).max()) < 1e-6
            continue
        largest = np.abs(expected).max()
        np.testing.assert_allclose(ours, expected, atol=1e-5 * largest, rtol=0, err_msg=name)
        assert largest > 0, name


def test_ten_steps(case):
    training, params = case.training, case.params
    opt_state = training.optimizer.init(params)
    for number in STEPS:
        given = below(f"step{number}", case.recorded)
        updated = training.update(params, opt_state, Draws.replay(training.config, given))
        params, opt_state = updated.params, updated.opt_state
        training.assert_step(number, updated, given["loss"], given["true_norm"], given["learning_rate"])
    assert_tree(params, below("final", case.recorded), atol=1e-5)


def test_names_and_shapes_both_ways(case):
    theirs = {name: array.shape for name, array in below("initial", case.recorded).items()}
    ours = expected_shapes(case.training.config.architecture)
    assert {names.to_tf1(name): shape for name, shape in ours.items()} == theirs
    assert {names.from_tf1(name): shape for name, shape in theirs.items()} == ours
