"""The discriminator's own guesses of the hidden tokens: their loss and head in plain numpy, and runs with them."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_tools import SPECIAL, init_params, tiny_config
from run_tools import check_it_goes_on, refusal
from safetensors.numpy import load_file
from test_step import make_batches, run
from weights_tools import SHARING

import electra_flax
from electra_flax.commands.cli import main
from electra_flax.errors import UserError
from electra_flax.model import electra
from electra_flax.model.attention import xla_attention
from electra_flax.model.sharding import rule_for
from electra_flax.training import losses
from electra_flax.training.flops import step_flops
from electra_flax.training.initial_state import abstract_batch
from electra_flax.training.objectives import make_objective
from electra_flax.training.objectives.objective import batch_seeds
from electra_flax.training.step import accumulate_gradients
from electra_flax.trees import flat

apply_all_heads = jax.jit(electra.apply_all_heads, static_argnums=0)
WEIGHT = {"objective": {"corrective_lm_weight": 0.7}}


def plain_loss(logits, targets, weights, replaced_logits):
    """COCO-LM's released loss: the mean over the masked of (1 - sigmoid(copy logit)) times the cross entropy.

    Its copy logit is minus the logit of `replaced`.
    """
    logits, copy_logits = logits.astype(np.float64), -replaced_logits.astype(np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_probability = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    total = 0.0
    for row, column in zip(*np.nonzero(weights), strict=True):
        is_not_copied = 1 - 1 / (1 + np.exp(-copy_logits[row, column]))
        total += is_not_copied * -log_probability[row, column, targets[row, column]]
    return total / weights.sum()


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(0, 3, (4, 6, 50)).astype(np.float32), rng.integers(0, 50, (4, 6))
    weights = (rng.random((4, 6)) < 0.7).astype(np.float32)
    return logits, targets, weights, rng.normal(0, 3, (4, 6)).astype(np.float32)


def test_the_loss_is_that_of_the_released_code(drawn):
    sums = losses.corrective_lm_sums(*map(jnp.asarray, drawn))
    assert float(sums["corrective_nll"]) / drawn[2].sum() == pytest.approx(plain_loss(*drawn), rel=1e-5)
    right = (drawn[0].argmax(axis=-1) == drawn[1]) * drawn[2]
    assert float(sums["corrective_correct"]) == right.sum()


def test_no_gradient_goes_through_the_belief(drawn):
    logits, targets, weights, replaced = map(jnp.asarray, drawn)

    def loss(logits, replaced):
        return losses.corrective_lm_sums(logits, targets, weights, replaced)["corrective_nll"]

    of_guesses, of_belief = jax.grad(loss, argnums=(0, 1))(logits, replaced)
    assert not np.asarray(of_belief).view(np.int32).any()
    assert (np.abs(of_guesses).sum(axis=-1) > 0).tolist() == (drawn[2] > 0).tolist()


@pytest.mark.parametrize(
    ("embedding_size", "sharing"), [(16, "shared"), (16, "gdes"), pytest.param(32, "shared", marks=pytest.mark.slow)]
)
def test_the_head_is_the_states_times_the_embeddings_as_they_are_read(embedding_size, sharing):
    own = {"model": {"embedding_size": embedding_size}, "generator": {"embedding_sharing": sharing}}
    architecture = tiny_config(**own, **WEIGHT).architecture
    params = init_params(architecture)
    params["corrective_lm_head"]["bias"] = jax.random.normal(jax.random.key(1), (300,))
    if sharing == "gdes":
        delta = params["discriminator_delta"]["word_embeddings"]
        delta["embedding"] = 0.1 * jax.random.normal(jax.random.key(2), delta["embedding"].shape)
    ids = jnp.arange(5, 69).reshape(2, 32)
    inputs, positions = [ids, jnp.ones_like(ids), jnp.zeros_like(ids)], np.asarray([[3, 4, 9], [31, 0, 7]])
    logits_BT, logits_BMV, _ = apply_all_heads(architecture, params, *inputs, jnp.asarray(positions))
    discriminator, encoder = (
        jax.jit(apply, static_argnums=0) for apply in (electra.apply_discriminator, electra.apply_encoder)
    )
    np.testing.assert_array_equal(logits_BT, discriminator(architecture, params, *inputs))
    hidden = np.asarray(encoder(architecture, params, *inputs), np.float64)
    weights = {name: np.asarray(value, np.float64) for name, value in flat(params).items()}
    table = weights["electra/embeddings/word_embeddings/embedding"]
    table = table + weights.get("discriminator_delta/word_embeddings/embedding", 0)
    if embedding_size != 32:
        table = table @ weights["electra/embeddings_project/kernel"]
    for row in range(2):
        expected = hidden[row, positions[row]] @ table.T + weights["corrective_lm_head/bias"]
        np.testing.assert_allclose(logits_BMV[row], expected, rtol=1e-5, atol=1e-5)


def gradients(**changes):
    config = tiny_config(**changes)
    objective = make_objective(config, SPECIAL)
    params = init_params(config.architecture)
    batch = {name: jnp.asarray(array) for name, array in next(make_batches(config, 1)).items()}
    found, sums = jax.jit(functools.partial(accumulate_gradients, objective))(
        params, batch, jax.random.key(0), jnp.int32(0)
    )
    return flat(found), objective.loss(sums, sums), sums


def test_what_is_added_is_the_weighted_loss_and_nothing_else():
    """Another head changes no initial value and no draw; the generator's transformer and head learn as without it."""
    plain, plain_loss, plain_sums = gradients()
    found, loss, sums = gradients(**WEIGHT)
    assert found.keys() - plain.keys() == {"corrective_lm_head/bias"}
    for name, value in plain_sums.items():
        np.testing.assert_array_equal(value, sums[name], err_msg=name)
    added = 0.7 * float(sums["corrective_nll"] / sums["masked"])
    assert float(loss) == pytest.approx(float(plain_loss) + added, rel=1e-6) and added > 0.1
    for name, grad in plain.items():
        is_same = np.allclose(grad, found[name], rtol=1e-5, atol=1e-7)
        if name.startswith(("generator", "discriminator_predictions")):
            assert is_same, name
        elif name.endswith(("query/kernel", "word_embeddings/embedding", "output/dense/kernel")):
            assert not is_same, name


def test_the_generators_table_learns_nothing_from_it_where_the_discriminator_has_a_difference():
    gdes = {"generator": {"embedding_sharing": "gdes"}}
    plain, found = (gradients(**each, **gdes)[0] for each in ({}, WEIGHT))
    for name, grad in plain.items():
        if name.startswith(("generator", "electra/embeddings/")):
            np.testing.assert_array_equal(grad, found[name], err_msg=name)
    words = "discriminator_delta/word_embeddings/embedding"
    assert np.abs(plain[words] - found[words]).max() > 1e-4


def test_the_sums_are_those_of_the_parts_by_hand():
    config = tiny_config(**WEIGHT)
    objective, params = make_objective(config, SPECIAL), init_params(config.architecture)
    batch = {name: jnp.asarray(array) for name, array in next(make_batches(config, 1)).items()}

    @jax.jit
    def outputs(params):
        draws = objective.draw(batch, batch_seeds(jax.random.key(3), batch), None)
        sums = objective.sums(params, batch, draws, xla_attention, is_training=False)
        return draws, sums, objective.generate(params, batch, draws, xla_attention, is_training=False)[1]

    draws, sums, sampled = outputs(params)
    corrupted, masked = np.array(batch["input_ids"]), draws.masked
    for row in range(len(corrupted)):
        used = np.asarray(masked.weights_BM[row]) > 0
        corrupted[row, np.asarray(masked.positions_BM[row])[used]] = np.asarray(sampled[row])[used]
    logits, guesses, _ = apply_all_heads(
        config.architecture, params, corrupted, batch["attention_mask"], batch["token_type_ids"], masked.positions_BM
    )
    at = np.take_along_axis(np.asarray(logits), np.asarray(masked.positions_BM), axis=1)
    expected = plain_loss(np.asarray(guesses), np.asarray(masked.targets_BM), np.asarray(masked.weights_BM), at)
    assert float(sums["corrective_nll"] / masked.weights_BM.sum()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="one optimizer", marks=pytest.mark.slow),
        pytest.param(
            {"generator": {"embedding_sharing": "gdes"}, "optimizer": {"decoupled": True}}, id="two optimizers"
        ),
    ],
)
def test_it_learns_and_its_bias_is_split_as_the_vocabulary_is(changes):
    history, state = run(num_devices=1, always_the_same=True, **WEIGHT, **changes)
    assert np.isfinite(history).all() and history[-1] < history[0]
    assert np.abs(state.params["corrective_lm_head"]["bias"]).max() > 0
    assert rule_for("corrective_lm_head/bias") == rule_for("generator_lm_head/bias")


@pytest.mark.parametrize(
    "changes",
    [
        {"generator": {"two_towers": True}},
        {"generator": {"embedding_sharing": "gdes"}},
        {"generator": {"uniform_generator": True}},
        {"generator": {"dropout": 0.0}, "masking": {"unit": "word"}},
        {"data": {"packing": "best_fit"}},
        {"training": {"gradient_accumulation_steps": 2}},
        SHARING["everything"],
        SHARING["nothing"],
    ],
    ids=lambda changes: " ".join(f"{name}={value}" for part in changes.values() for name, value in part.items())[:40],
)
def test_it_adds_its_products_to_every_other_option(changes):
    """Traced, not run: three products with the table and three with the projection (forward and two gradients)."""
    plain, config = tiny_config(**changes), tiny_config(**changes, **WEIGHT)
    batch, key = abstract_batch(config), jax.random.key(0)
    draws = jax.eval_shape(
        lambda batch: make_objective(config, SPECIAL, (5,)).draw(batch, batch_seeds(key, batch), None), batch
    )
    sizes = config.model
    products = 3 * 2 * draws.masked.positions_BM.size * sizes.embedding_size * (sizes.vocab_size + sizes.hidden_size)
    assert step_flops(config) - step_flops(plain) == products


def test_it_needs_a_discriminator():
    with pytest.raises(UserError, match="corrective_lm_weight=0.7 needs objective.kind=replaced_tokens"):
        tiny_config(objective={"corrective_lm_weight": 0.7, "kind": "masked_tokens"})


@pytest.mark.slow
def test_a_run_with_it_goes_on_evaluates_and_leaves_its_head_out_of_exports(copy, capsys):
    fields = {"objective.corrective_lm_weight": 1.0}

    def check(step, metrics):
        assert metrics["corrective_loss"] > 0 and 0 <= metrics["corrective_accuracy"] <= 1, step

    held_out, whole = check_it_goes_on(copy, fields, check)
    assert "corrective_lm_head" in whole.params
    assert held_out["corrective_loss"] > 0
    assert "corrective_lm_weight" in refusal(
        capsys, ["pretrain", "--config", "tiny.yaml", "--data", "shards", "--workdir", "straight"]
    )

    with jax.numpy_rank_promotion("allow"):
        assert main(["export", "--workdir", "straight", "--out", "corrected"]) == 0
    for part in ("discriminator", "generator"):
        tensors = load_file(copy / "corrected" / part / "model.safetensors")
        assert not [name for name in tensors if "corrective" in name]
        assert load_file(copy / "export" / part / "model.safetensors").keys() == tensors.keys()
        assert json.loads((copy / "corrected/parity.json").read_text())[part]["flax"] < 1e-4
        assert "corrective language modelling | weight 1 (experimental); the head" in (
            copy / "corrected" / part / "README.md"
        ).read_text(encoding="utf-8")
    # Another run may begin with its weights: with a new head, or with none.
    for weight in (0.5, 0.0):
        config = {"objective.corrective_lm_weight": weight, "training.num_steps": 2}
        done = electra_flax.pretrain(
            "tiny.yaml", "shards", f"next-{weight}", overrides=config, init_from="orbax:straight", progress=False
        )
        assert done.step == 2
