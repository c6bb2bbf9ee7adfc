"""Our forward pass, losses and optimizer against values that the original code computed (float32, CPU)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_tools import (
    RECORDED,
    SPECIAL,
    Draws,
    GivenTraining,
    assert_tree,
    below,
    golden_config,
    golden_params,
    losses_with_given_draws,
    read_json,
)

from electra_flax.config.optimizer import OptimizerConfig
from electra_flax.training import losses, masking
from electra_flax.training.optimizers import learning_rate
from electra_flax.training.optimizers.adamw import AdamState

FORWARD_CASES = {
    "A_small_gen0.25": "tf1_ckpt/A_small_gen0.25/weights.npz",
    "B_koelectra_small_gen1.0": "tf1_ckpt/B_koelectra_small_gen1.0/weights.npz",
}


@pytest.mark.slow  # tests/test_golden_tiny.py has the same in small
@pytest.mark.parametrize("name", FORWARD_CASES)
def test_forward_is_the_originals(golden, name):
    config = golden_config(read_json(golden / f"forward/{name}_hparams.json"))
    params = golden_params(config, np.load(golden / FORWARD_CASES[name]))
    case = np.load(golden / f"forward/{name}.npz")

    total, outcome = losses_with_given_draws(config, params, Draws.read(case))

    np.testing.assert_allclose(outcome.generator_BMV, case["mlm_logits"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(outcome.discriminator_BT, case["disc_logits"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(outcome.means["generator_loss"], case["mlm_loss"], rtol=1e-5)
    np.testing.assert_allclose(outcome.means["discriminator_loss"], case["disc_loss"], rtol=1e-5)
    np.testing.assert_allclose(total, case["total_loss"], rtol=1e-5)


@pytest.mark.parametrize("name", FORWARD_CASES)
def test_hiding_and_corrupting_follow_the_original(golden, name):
    """The recorded draws through our functions. Rows in which the original drew a position twice differ by design."""
    case = np.load(golden / f"forward/{name}.npz")
    ids_BT = jnp.asarray(case["input_ids"])
    weights_BM = jnp.asarray(case["masked_lm_weights"])
    positions_BM = jnp.asarray(case["masked_lm_positions"])
    masked = masking.hide(ids_BT, positions_BM, weights_BM, jnp.asarray(case["u_replace"]) < 0.85, SPECIAL.mask)
    corrupted = masking.corrupt(ids_BT, masked, jnp.asarray(case["sampled_ids"]))

    np.testing.assert_array_equal(masked.targets_BM, case["masked_lm_ids"])
    num_checked = 0
    for row in range(len(ids_BT)):
        used = np.asarray(positions_BM[row])[np.asarray(weights_BM[row]) > 0]
        np.testing.assert_array_equal(masked.masked_ids_BT[row], case["masked_input_ids"][row])
        if len(set(used.tolist())) == len(used):
            num_checked += 1
            np.testing.assert_array_equal(corrupted.corrupted_ids_BT[row], case["corrupted_input_ids"][row])
            np.testing.assert_array_equal(corrupted.is_replaced_BT[row], case["is_fake_labels"][row])
        once = [p for p in used.tolist() if used.tolist().count(p) == 1]
        np.testing.assert_array_equal(
            np.asarray(corrupted.corrupted_ids_BT[row])[once], case["corrupted_input_ids"][row][once]
        )
    assert num_checked, "every row has a duplicate: nothing was compared whole"


class RecordedTraining(GivenTraining):
    """Twenty steps that the original took, on batches with its draws."""

    def __init__(self, golden):
        setup = read_json(golden / "optimizer/A_config.json")
        self.hparams = setup["hparams"]
        super().__init__(golden_config(self.hparams))
        self.slots = np.load(golden / "optimizer/A_adam_slots_after_20.npz")
        self._weights = np.load(golden / "optimizer/A_weights.npz")
        self._trace = np.load(golden / "optimizer/A_trace.npz")
        self._batches = np.load(golden / "optimizer/batches.npz")

    def weights(self, moment):
        """{the original's name: array}; "init" or "20"."""
        (prefix,) = {key.split("/")[0] for key in self._weights.files if moment in key.split("/")[0]}
        return below(prefix, self._weights)

    def train(self, params, opt_state, steps):
        """(params, opt_state) after these steps, whose losses, norms and rates are the original's."""
        for number in steps:
            case = {key: self._batches[key][number] for key in self._batches.files}
            updated = self.update(params, opt_state, Draws.read(case))
            params, opt_state = updated.params, updated.opt_state
            trace = {key: self._trace[key][number] for key in ("loss", "mlm", "disc", "gnorm", "lr")}
            self.assert_step(number, updated, trace["loss"], trace["gnorm"], trace["lr"])
            means = updated.outcome.means
            np.testing.assert_allclose(means["generator_loss"], trace["mlm"], atol=1e-4, rtol=0)
            np.testing.assert_allclose(means["discriminator_loss"], trace["disc"], atol=1e-4, rtol=0)
        return params, opt_state

    def assert_is_its_end(self, params, opt_state):
        adam = next(part for part in opt_state if isinstance(part, AdamState))
        assert_tree(params, self.weights("20"), atol=1e-5)
        assert_tree(adam.m, self.slots, atol=1e-5, suffix="/adam_m")
        assert_tree(adam.v, self.slots, atol=1e-5, suffix="/adam_v")


@pytest.mark.slow  # as above
def test_twenty_optimizer_steps_are_the_originals(golden):
    recorded = RecordedTraining(golden)
    params = golden_params(recorded.config, recorded.weights("init"))
    recorded.assert_is_its_end(*recorded.train(params, recorded.optimizer.init(params), range(20)))


@pytest.mark.parametrize("schedule", "abcde")
def test_learning_rate_schedules_are_the_originals(schedule):
    helpers = np.load(RECORDED / "helpers.npz")
    base, total, warmup, power = helpers[f"lr_{schedule}_base_T_W_power"]
    config = OptimizerConfig(learning_rate=float(base), warmup_steps=int(warmup), decay_power=float(power))
    ours = jax.vmap(lambda t: learning_rate(t, config, int(total)))(jnp.asarray(helpers[f"lr_{schedule}_steps"]))
    # 1 - t/T cancels near the end: one float32 ulp of 1, times the peak, is the most that two ways can agree to.
    ulp = float(base) * 2.0**-23
    np.testing.assert_allclose(ours, helpers[f"lr_{schedule}_values"], rtol=1e-6, atol=ulp)


def test_sampling_with_the_originals_noise():
    helpers = np.load(RECORDED / "helpers.npz")
    logits, noise = jnp.asarray(helpers["samp_logits"]), jnp.asarray(helpers["samp_u"])
    targets = jnp.asarray(helpers["samp_oracle"])
    for name, temperature, disallow in (
        ("samp_ids", 1.0, False),
        ("samp_ids_temp0p5", 0.5, False),
        ("samp_ids_disallow", 1.0, True),
    ):
        ours = masking.sample_with_uniform(noise, logits, targets, temperature, disallow)
        np.testing.assert_array_equal(ours, helpers[name], err_msg=name)
    # None of the recorded draws hits its target, so that disallowing changes nothing there. Here all would.
    drawn = jnp.asarray(helpers["samp_ids"])
    assert (masking.sample_with_uniform(noise, logits, drawn, 1.0, disallow_correct=True) != drawn).all()


@pytest.mark.parametrize("mask_prob", [0.1, 0.15, 0.2, 0.25])
def test_number_of_predictions_is_the_originals(mask_prob):
    rounded = np.load(RECORDED / "helpers.npz")[f"round_num_tokens_times_{mask_prob}"]
    lengths = np.arange(1, 513)
    table = rounded[-512:] if len(rounded) == 512 else rounded[1:]
    mask_BT = jnp.asarray(np.arange(512)[None, :] < lengths[:, None], jnp.int32)
    batch = {"input_ids": jnp.full((512, 512), 9, jnp.int32), "attention_mask": mask_BT}
    _, weights_BM = masking.choose_positions(jnp.ones((512, 512)), batch, mask_prob, SPECIAL, 200)
    np.testing.assert_array_equal(weights_BM.sum(axis=1), np.maximum(table, 1))


def test_evaluation_metrics_are_the_originals():
    case = np.load(RECORDED / "evaluation.npz")
    probs, labels, mask = (
        jnp.asarray(case[key].reshape(48, 128)) for key in ("disc_probs", "disc_labels", "input_mask")
    )
    # The original lets padding into the AUC as (label 0, probability 0); ours leaves it out.
    both = losses.auc_sums(probs * mask, labels * mask, jnp.ones_like(mask))
    np.testing.assert_allclose(
        losses.auc(np.asarray(both["auc_replaced_above"]), np.asarray(both["auc_original_above"])),
        case["disc_auc"],
        atol=1e-6,
    )
    ours = losses.auc_sums(probs, labels, mask)
    without = losses.auc(np.asarray(ours["auc_replaced_above"]), np.asarray(ours["auc_original_above"]))
    assert abs(without - 0.478) < 1e-3  # docs/semantics.md, section 11
