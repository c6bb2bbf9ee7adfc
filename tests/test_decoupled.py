"""A step of two optimizers: the generator's first, then the discriminator's on what the generator has become."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_tools import SPECIAL, config_for, tiny_config
from run_tools import DIE_ONCE_SAVED, end, make_shards, pretrain, records, refusal, start, state_at
from test_step import make_batches
from weights_tools import random_weights

from electra_flax.commands.cli import main
from electra_flax.errors import UserError
from electra_flax.model import electra
from electra_flax.model.sharding import make_mesh
from electra_flax.reports.doctor import diagnose_config
from electra_flax.training.initial_state import init_state
from electra_flax.training.objectives import make_objective
from electra_flax.training.objectives.objective import batch_seeds
from electra_flax.training.optimizers import make_optimizer
from electra_flax.training.state import TrainState
from electra_flax.training.step import make_train_step
from electra_flax.trees import flat, nested

GDES = {"embedding_sharing": "gdes"}
TWO = {"decoupled": True, "generator_learning_rate": 0.01, "generator_warmup_steps": 0, "warmup_steps": 0}
ONE = {"discriminator_weight": 1.0}
GENERATORS = ("generator", "electra/embeddings/")  # with a difference


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "needs parameters that the two models do not share, got generator.embedding_sharing=shared"),
        ({"generator": {"embedding_sharing": "separate"}, "objective": {"kind": "masked_tokens"}},
         "decoupled=true needs objective.kind=replaced_tokens .* got masked_tokens"),
        ({"optimizer": {"generator_learning_rate": 0.1}}, "generator_learning_rate=0.1 needs optimizer.decoupled=true"),
        ({"optimizer": {"generator_warmup_steps": 3}}, "generator_warmup_steps=3 needs optimizer.decoupled=true"),
        ({"generator": GDES, "optimizer": {"decoupled": True, "generator_warmup_steps": 30}},
         "generator_warmup_steps=30 must be at most training.num_steps=20"),
    ],
)  # fmt: skip
def test_what_one_optimizer_must_move_is_refused(changes, expected):
    with pytest.raises(UserError, match=expected):
        tiny_config(**{**changes, "optimizer": changes.get("optimizer", {"decoupled": True})})


def one_step(config, params, opt_state=None):
    """(state after a step, its sums, the objective, its draws)."""
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    objective, batch = make_objective(config, SPECIAL), next(make_batches(config, 1))
    state = init_state(config, mesh)
    # The step takes what it is given.
    state = TrainState(state.step, jax.tree.map(jnp.array, params), opt_state or state.opt_state)
    draws = objective.draw(batch, batch_seeds(jax.random.fold_in(jax.random.key(0), 0), batch), jnp.int32(0))
    after, sums = make_train_step(config, objective, mesh)(state, batch)
    return after, sums, objective, (batch, draws)


@pytest.mark.parametrize("sharing", ["a difference", pytest.param("nothing", marks=pytest.mark.slow)])
def test_a_step_is_two_steps(tmp_path, sharing):
    """Written out: each side's gradient, clipped by its own norm, and the table that the discriminator then reads."""
    weights = random_weights(tmp_path, sharing)
    architecture, params = weights.architecture, weights.to_params()
    changes = {"optimizer": TWO, "objective": ONE}
    config = config_for(architecture)
    config = tiny_config(generator=vars(config.generator), **changes)
    after, sums, objective, (batch, draws) = one_step(config, params)

    counts, rest = objective.count(batch, draws), (batch, draws)
    # Before it moves.
    sampled = jax.jit(lambda params: objective.generate(params, *rest, electra.xla_attention, True)[1])(params)

    def loss_of(side, both):
        if side == "generator":
            return objective.generator_loss(objective.generate(both, *rest, electra.xla_attention, True)[0], counts)
        found = objective.discriminator_sums(both, *rest, sampled, electra.xla_attention, True)
        return objective.discriminator_loss(found, counts)

    own_tables = "electra/embeddings/" if sharing == "a difference" else "generator/"
    generators = {name for name in flat(params) if name.startswith(("generator", own_tables))}
    now = flat(params)
    for side, is_side, rate in (("generator", True, 0.01), ("discriminator", False, 1e-3)):

        def loss(own, now=now, side=side):
            return loss_of(side, nested(now | flat(own)))

        own = nested({name: leaf for name, leaf in now.items() if (name in generators) == is_side})
        grads = jax.jit(jax.grad(loss))(own)
        norm = optax.tree.norm(grads)
        np.testing.assert_allclose(sums["generator_grad_norm" if is_side else "grad_norm"], norm, rtol=1e-5)
        np.testing.assert_allclose(sums["generator_learning_rate" if is_side else "learning_rate"], rate, rtol=1e-6)
        clipped = jax.tree.map(lambda g, norm=norm: g / jnp.maximum(1.0, norm), grads)
        optimizer = make_optimizer(tiny_config(optimizer={"learning_rate": rate, "warmup_steps": 0}).optimizer, 20)
        move = jax.jit(
            lambda grads, own, to=optimizer: optax.apply_updates(own, to.update(grads, to.init(own), own)[0])
        )
        moved = move(clipped, own)
        for name, value in flat(moved).items():
            np.testing.assert_allclose(flat(after.params)[name], value, atol=1e-6, rtol=0, err_msg=name)
            # A first step of Adam's kind moves all by about the rate, unless the gradient is next to nothing.
            assert np.abs(value - now[name]).max() > 0.5 * rate or name.endswith("key/bias"), name
        now = now | flat(moved)


def test_a_generator_with_rate_0_stays(tmp_path):
    weights = random_weights(tmp_path, "a difference")
    generator = vars(config_for(weights.architecture).generator)
    config = tiny_config(generator=generator, optimizer={**TWO, "generator_learning_rate": 0.0}, objective=ONE)
    after = flat(one_step(config, weights.to_params())[0].params)
    for name in weights.shapes:
        is_moved, is_generators = not np.array_equal(after[name], weights.read(name)), name.startswith(GENERATORS)
        assert is_moved != is_generators or name.endswith("key/bias"), name


@pytest.mark.parametrize("broken", ["generator_lm_head/bias", "discriminator_predictions/dense/bias"])
def test_a_side_that_is_not_finite_skips_both(tmp_path, broken):
    weights = random_weights(tmp_path, "a difference")
    generator = vars(config_for(weights.architecture).generator)
    config = tiny_config(generator=generator, optimizer=TWO, objective=ONE)
    params = flat(weights.to_params())
    params[broken] = params[broken] * jnp.nan
    after, sums, *_ = one_step(config, nested(params))
    assert sums["skipped"] == 1 and after.step == 1
    for name, value in params.items():
        np.testing.assert_array_equal(flat(after.params)[name], value)
    for leaf in jax.tree.leaves(after.opt_state):
        assert leaf == 1 if leaf.ndim == 0 else not np.any(leaf)  # counters go on, moments stay 0


def test_doctor_says_that_a_weight_weighs_nothing():
    config = tiny_config(generator=GDES, optimizer={"decoupled": True})
    assert "discriminator_weight=50 weighs nothing" in " ".join(found.problem for found in diagnose_config(config))
    config = tiny_config(generator=GDES, optimizer={"decoupled": True}, objective=ONE)
    assert not any("weighs nothing" in found.problem for found in diagnose_config(config))


@pytest.fixture(scope="module")
def root(tmp_path_factory, sample_corpus):
    """Shards, and a run with two optimizers that nothing interrupts."""
    root = tmp_path_factory.mktemp("decoupled")
    make_shards(root, sample_corpus)
    text = (root / "tiny.yaml").read_text()
    text = text.replace("generator: {", "generator: {embedding_sharing: gdes, ")
    text = text.replace("optimizer: {", "optimizer: {decoupled: true, generator_learning_rate: 3.0e-3, ")
    text += "objective: {discriminator_weight: 1.0, temperature_schedule: linear}\n"
    (root / "tiny.yaml").write_text(text)
    assert main(pretrain(root, "straight")) == 0
    return root


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(root):
    for before, expected_code in ((DIE_ONCE_SAVED, 9), ("", 0)):
        assert end(start(pretrain(root, "killed"), before))[0] == expected_code
    for ours, theirs in zip(*(jax.tree.leaves(state_at(root, run)) for run in ("straight", "killed")), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for split in ("train", "validation"):
        assert records(root, "killed", split) == records(root, "straight", split)
    last = records(root, "straight", "train")[6]
    assert last["generator_learning_rate"] == pytest.approx(3 * last["learning_rate"])
    assert last["generator_grad_norm"] != last["grad_norm"]


@pytest.mark.slow
def test_a_run_of_two_optimizers_is_published_and_not_coupled_again(root, capsys):
    out = root / "out"
    with jax.numpy_rank_promotion("allow"):
        assert main(["export", "--workdir", str(root / "straight"), "--out", str(out)]) == 0
    differences = json.loads((out / "parity.json").read_text())
    for part in ("discriminator", "generator"):  # folded, in transformers
        assert differences[part]["flax"] < 1e-4
    said = refusal(capsys, pretrain(root, "straight", "--optimizer.decoupled", "false",
                                    "--optimizer.generator_learning_rate", "null"))  # fmt: skip
    assert "belongs to another run (optimizer.decoupled: True -> False" in said
    said = refusal(capsys, pretrain(root, "resumed", "--resume-from", f"orbax:{root}/straight"))
    assert "optimizer.decoupled=true makes two" in said
