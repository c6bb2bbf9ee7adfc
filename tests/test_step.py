"""One step: the first loss, masks, and that meshes and accumulation do not change what is computed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_tools import SPECIAL, init_params, tiny_config
from weights_tools import SHARING

from electra_flax.errors import UserError
from electra_flax.model import electra, randomness
from electra_flax.model.sharding import batch_sharding, check_batch, make_mesh, rule_for
from electra_flax.training import masking
from electra_flax.training.initial_state import abstract_frozen, init_state
from electra_flax.training.objectives import make_objective
from electra_flax.training.objectives.metrics import metrics_of
from electra_flax.training.step import accumulate_gradients, make_train_step
from electra_flax.trees import tree_names

NUM_STEPS = 10


def make_batches(config, num_batches=NUM_STEPS, always_the_same=False):
    rng = np.random.default_rng(0)
    rows, tokens = config.training.batch_size, config.data.max_seq_length
    for _ in range(num_batches):
        rng = np.random.default_rng(0) if always_the_same else rng
        lengths = rng.integers(8, tokens + 1, rows)[:, None]
        mask = (np.arange(tokens)[None, :] < lengths).astype(np.int32)
        ids = rng.integers(5, config.model.vocab_size, (rows, tokens)).astype(np.int32) * mask
        ids[:, 0] = SPECIAL.cls
        yield {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def loss_of(config, sums):
    return make_objective(config, SPECIAL).summarize(jax.tree.map(np.asarray, sums))["loss"]


def frozen_weights(config):
    """Those of a generator that does not learn, where there is one."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32), abstract_frozen(config))


def run(num_devices=8, always_the_same=False, **changes):
    """Losses of ten steps, and the final parameters."""
    config = tiny_config(**changes)
    mesh = make_mesh(config.mesh, jax.devices()[:num_devices])
    state, step = init_state(config, mesh), make_train_step(config, make_objective(config, SPECIAL), mesh)
    history, frozen = [], frozen_weights(config)
    for batch in make_batches(config, always_the_same=always_the_same):
        state, sums = step(state, jax.device_put(batch, batch_sharding(mesh)), *frozen)
        history.append(loss_of(config, sums))
    return np.asarray(history), state


@pytest.mark.slow
def test_a_step_masks_what_its_number_says():
    config = tiny_config(masking={"mask_prob": 0.4, "final_mask_prob": 0.1}, training={"num_steps": 10})
    mesh, counts = make_mesh(config.mesh), []
    state, step = init_state(config, mesh), make_train_step(config, make_objective(config, SPECIAL), mesh)
    for batch in make_batches(config, always_the_same=True):
        tokens = float(batch["attention_mask"].sum())
        state, sums = step(state, jax.device_put(batch, batch_sharding(mesh)))
        counts.append(float(sums["masked"]) / tokens)
    np.testing.assert_allclose(counts, np.linspace(0.4, 0.1, 10), atol=0.02)


@pytest.mark.parametrize("own", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_generator_without_dropout_has_none(own):
    changes = {"dropout": 0.0, "embedding_sharing": "separate" if own else "shared"}
    config = tiny_config(generator=changes, model={"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5})
    params = init_params(config.architecture)
    ids = jnp.arange(5, 69).reshape(2, 32)
    inputs = [config.architecture, params, ids, jnp.ones_like(ids), jnp.zeros_like(ids)]
    positions, seeds = jnp.asarray([[3, 4], [5, 6]]), jnp.arange(2, dtype=jnp.int32)
    generate = jax.jit(electra.apply_generator, static_argnums=0)
    plain, with_seeds = (generate(*inputs, positions, each) for each in (None, seeds))
    np.testing.assert_array_equal(plain, with_seeds)
    discriminate = jax.jit(electra.apply_discriminator, static_argnums=0)
    plain, with_seeds = (discriminate(*inputs, each) for each in (None, seeds))
    assert np.abs(plain - with_seeds).max() > 0


VARIANTS: dict[str, dict] = {
    "shared": {},
    "gdes": {"generator": {"embedding_sharing": "gdes"}},
    "decoupled": {
        "generator": {"embedding_sharing": "gdes"},
        "optimizer": {"decoupled": True, "generator_learning_rate": 3e-3},
        "objective": {"discriminator_weight": 1.0, "temperature_schedule": "exponential"},
    },
    "frozen": {"generator": {"frozen": "somewhere"}},
    "two towers": {"generator": {"two_towers": True}},
    "Electric": {"objective": {"kind": "electric"}},
    "corrective": {"objective": {"corrective_lm_weight": 0.7}},
}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.long] if VARIANTS[name] else []) for name in VARIANTS],
)
def variant(request):
    """Changes of the configuration."""
    return VARIANTS[request.param]


@pytest.fixture(scope="module")
def one_device(variant):
    return run(num_devices=1, **variant)[0]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"mesh": {"data": 1, "fsdp": 8}}, marks=pytest.mark.slow),
        {"mesh": {"data": 4, "tensor": 2}},
        pytest.param({"training": {"gradient_accumulation_steps": 4}, "num_devices": 4}, marks=pytest.mark.slow),
        pytest.param({"training": {"gradient_accumulation_steps": 2}}, marks=pytest.mark.slow),
    ],
    ids=["data=8", "fsdp=8", "data=4 tensor=2", "accumulation 4", "accumulation 2 on 8"],
)
def test_layout_does_not_change_the_losses(variant, one_device, changes):
    history, _ = run(**{"num_devices": 8, **variant, **changes})
    np.testing.assert_allclose(history, one_device, rtol=1e-5)
    assert one_device[-1] != one_device[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in VARIANTS if VARIANTS[name]])
def test_a_layout_of_all_kinds_does_not_change_a_variants_losses(name):
    """Each kind alone is above, which takes five times as long."""
    one = run(num_devices=1, **VARIANTS[name])[0]
    layout = {"mesh": {"data": 2, "fsdp": 2, "tensor": 2}, "training": {"gradient_accumulation_steps": 2}}
    np.testing.assert_allclose(run(**VARIANTS[name], **layout)[0], one, rtol=1e-5)
    assert one[-1] != one[0]


@pytest.mark.slow
def test_parameters_are_really_split():
    _, state = run(mesh={"data": 1, "fsdp": 8})
    kernel = state.params["electra"]["encoder"]["layer"]["0"]["intermediate"]["dense"]["kernel"]
    assert kernel.addressable_shards[0].data.size * 8 == kernel.size


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["replaced_tokens", "electric"])
@pytest.mark.parametrize("vocab_size", [300, 35000])
def test_first_loss_is_that_of_guessing(vocab_size, kind):
    config = tiny_config(model={"vocab_size": vocab_size}, training={"batch_size": 64}, objective={"kind": kind})
    mesh = make_mesh(config.mesh)
    batch = next(make_batches(config, 1))
    _, sums = make_train_step(config, make_objective(config, SPECIAL), mesh)(
        init_state(config, mesh), jax.device_put(batch, batch_sharding(mesh))
    )
    loss = loss_of(config, sums)
    nats = np.log(2)
    if kind == "electric":  # nearly all tokens are told from drawn ones by the size of the vocabulary
        nats = float(sums["replaced"] / sums["tokens"]) * (np.log(vocab_size) + np.log(0.85 / 0.15))
    assert loss == pytest.approx(np.log(vocab_size) + 50 * nats, rel=0.02)
    guessed = {metric.name: metric.guessed(config) for metric in metrics_of(config)}
    full = 1 if kind == "replaced_tokens" else 4 / 32 * float(sums["tokens"] / sums["replaced"])  # of full rows
    assert guessed["discriminator_loss"] == pytest.approx(full * nats, rel=0.02)


@pytest.mark.parametrize(
    "changes",
    [
        {"generator": {"uniform_generator": True}},
        {"generator": {"embedding_sharing": "separate"}},
        {"generator": {"embedding_sharing": "gdes"}},
        SHARING["everything"],
        {"objective": {"kind": "masked_tokens"}},
        {"generator": {"two_towers": True}},
        {"objective": {"kind": "electric"}},
        {"objective": {"disallow_correct": True, "temperature": 0.5}},
    ],
    ids=[
        "uniform",
        "untied embeddings",
        "gdes",
        "one transformer",
        "masked LM",
        "two towers",
        "Electric",
        "disallow correct",
    ],
)
@pytest.mark.slow
def test_every_option_learns(changes):
    history, state = run(num_devices=1, always_the_same=True, **changes)
    assert np.isfinite(history).all() and history[-1] < history[0]
    objective = changes.get("objective", {}).get("kind", "replaced_tokens")
    assert ("discriminator_predictions" in state.params) == (objective != "masked_tokens")


def test_uniform_generator_has_no_parameters_and_a_constant_loss():
    config = tiny_config(generator={"uniform_generator": True})
    params = init_params(config.architecture)
    assert not [name for name in jax.tree.leaves(tree_names(params)) if name.startswith("generator")]


@pytest.mark.parametrize("two_towers", [False, True])
def test_every_parameter_has_a_sharding_rule(two_towers):
    architecture = tiny_config(generator={"two_towers": two_towers}).architecture
    names = tree_names(jax.eval_shape(lambda: electra.init(architecture, jax.random.key(0))))
    for name in jax.tree.leaves(names):
        rule_for(name)
    with pytest.raises(AssertionError, match="no sharding rule covers"):
        rule_for("electra/new_thing/table")


def test_masks_hide_the_right_tokens():
    config = tiny_config(training={"batch_size": 512})
    batch = {name: jnp.asarray(array) for name, array in next(make_batches(config, 1)).items()}
    seeds = randomness.row_seeds(jax.random.key(0), 512)
    masked = masking.mask_inputs(
        seeds, batch, config.masking.mask_prob, config.masking, SPECIAL, config.max_predictions_per_seq
    )
    ids, positions = np.asarray(batch["input_ids"]), np.asarray(masked.positions_BM)
    used = np.asarray(masked.weights_BM) > 0
    chosen = np.zeros_like(ids, bool)
    for row in range(512):
        at = positions[row][used[row]]
        assert len(set(at)) == len(at)
        chosen[row, at] = True
    assert not np.isin(ids[chosen], [0, 2, 3, 4]).any()
    hidden = np.asarray(masked.masked_ids_BT)
    np.testing.assert_array_equal(hidden[~chosen], ids[~chosen])
    assert set(np.unique(hidden[chosen] == 4)) == {True, False}
    # 85 % become [MASK]: 3 standard deviations of a binomial.
    share, count = (hidden[chosen] == 4).mean(), chosen.sum()
    assert abs(share - 0.85) < 3 * np.sqrt(0.85 * 0.15 / count)


def test_batch_that_does_not_divide_is_refused_with_the_nearest():
    mesh = make_mesh(tiny_config().mesh)
    with pytest.raises(UserError, match="batch_size=100 must be a multiple of 8 .* nearest: 96 or 104"):
        check_batch(100, 1, mesh)
    with pytest.raises(UserError, match="does not fit 8 devices"):
        make_mesh(tiny_config(mesh={"data": 3}).mesh)


def test_embedding_gradients_add_up_in_bfloat16():
    """A token type's gradient is the sum of all positions': thousands of terms, which a bfloat16 sum would lose."""
    config = tiny_config(training={"batch_size": 64, "compute_dtype": "bfloat16"})
    params = init_state(config, make_mesh(config.mesh, jax.devices()[:1])).params
    batch = next(make_batches(config, 1))
    grads, _ = jax.jit(functools.partial(accumulate_gradients, make_objective(config, SPECIAL)))(
        params, batch, jax.random.key(0), jnp.int32(0)
    )
    tables = grads["electra"]["embeddings"]
    token_type, positions = (tables[f"{name}_embeddings"]["embedding"] for name in ("token_type", "position"))
    np.testing.assert_allclose(token_type[0], positions.sum(axis=0), rtol=1e-4, atol=1e-5 * np.abs(token_type).max())
