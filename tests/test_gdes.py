"""The discriminator's tables as a difference from the generator's: microsoft/DeBERTa's updates, gradients, folding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_tools import SPECIAL, clip_by_recorded_norms, config_for, init_params, tiny_config
from test_start import begin
from test_step import make_batches
from weights_tools import export, random_weights

from electra_flax.config.optimizer import OptimizerConfig
from electra_flax.errors import UserError
from electra_flax.model import electra
from electra_flax.training.objectives import make_objective
from electra_flax.training.objectives.objective import row_seeds
from electra_flax.training.optimizers import OPTIMIZERS
from electra_flax.trees import flat, nested
from electra_flax.weights.delta import fold, unfold
from electra_flax.weights.export import export_to_tf1
from electra_flax.weights.sources import find_weights
from electra_flax.weights.start import Start

GDES = {"generator": {"embedding_sharing": "gdes"}}
TABLES = [f"{name}_embeddings/embedding" for name in ("word", "position", "token_type")]
TRACE_STEPS = 20


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"untied_generator": False}, "embedding_sharing=gdes needs generator.untied_generator=true, got false"),
        ({"uniform_generator": True}, "embedding_sharing=gdes needs a generator, but generator.uniform_generator=true"),
        ({"kind": "masked_tokens"}, "embedding_sharing=gdes needs objective.kind=replaced_tokens .* got masked_tokens"),
        ({"kind": "electric"}, "embedding_sharing=gdes needs .* a generator of one tower, got two towers"),
    ],
)
def test_what_has_no_two_models_has_no_difference(changes, expected):
    section = "objective" if "kind" in changes else "generator"
    with pytest.raises(UserError, match=expected):
        tiny_config(**{**GDES, section: GDES.get(section, {}) | changes})


def test_the_first_step_is_that_of_shared_tables():
    """Parameters, samples, losses, and all gradients but those of what is shared there: bit by bit."""
    batch = next(make_batches(tiny_config(), 1))

    def first(config):
        objective, params = make_objective(config, SPECIAL), init_params(config.architecture)
        draws = objective.draw(batch, row_seeds(jax.random.key(1), 16), jnp.int32(0))
        return flat(params), objective.sums(params, batch, draws, electra.xla_attention, True)

    params, sums = first(tiny_config())
    ours, our_sums = first(tiny_config(**GDES))
    assert ours.keys() - params.keys() == {f"discriminator_delta/{name}" for name in (*TABLES, *_NORM)}
    for name in params:
        np.testing.assert_array_equal(ours[name], params[name])
    for name in sums:
        np.testing.assert_array_equal(our_sums[name], sums[name], err_msg=name)


_NORM = ("LayerNorm/scale", "LayerNorm/bias")


def test_no_loss_reaches_the_others_tables(tmp_path):
    weights = random_weights(tmp_path, "a difference")
    config = config_for(weights.architecture)
    config = dataclasses.replace(config, objective=dataclasses.replace(config.objective, corrective_lm_weight=1.0))
    objective, params = make_objective(config, SPECIAL), weights.to_params()
    params["corrective_lm_head"] = {"bias": jnp.ones(config.model.vocab_size)}
    batch = next(make_batches(config, 1))
    draws = objective.draw(batch, row_seeds(jax.random.key(1), 16), jnp.int32(0))

    @jax.jit
    def gradients(params):
        def loss(params, name):
            return objective.sums(params, batch, draws, electra.xla_attention, True)[name]

        kinds = ("generator_nll", "discriminator_nll", "corrective_nll")
        return [flat(jax.grad(loss)(params, name)) for name in kinds]

    of_generator, of_discriminator, of_corrector = gradients(params)
    for name in (*TABLES, *_NORM):
        table, difference = f"electra/embeddings/{name}", f"discriminator_delta/{name}"
        assert not np.any(of_discriminator[table]) and not np.any(of_generator[difference])
        assert np.any(of_generator[table]) and np.any(of_discriminator[difference])
        assert not np.any(of_corrector[table]) and np.any(of_corrector[difference])
    for name in of_generator.keys() - {"corrective_lm_head/bias"}:  # nothing is learned by both
        assert np.any(of_generator[name]) != np.any(of_discriminator[name]) or name.endswith("key/bias"), name


def test_updates_are_those_of_deberta(golden):
    """Twenty steps of microsoft/DeBERTa: from its gradients and norms, its tables."""
    trace = np.load(golden / "gdes/trace.npz")
    config = OptimizerConfig(learning_rate=1e-2, warmup_steps=5)

    def rate(step):
        done = step / TRACE_STEPS
        return config.learning_rate * jnp.where(done < 0.25, done / 0.25, 1 - done)

    compared = 0
    for side, tables in (("generator", "generator"), ("discriminator", "delta")):
        norms = jnp.asarray([trace[f"{step}/{side}_grad_norm"] for step in range(TRACE_STEPS)], jnp.float32)
        optimizer = optax.chain(
            clip_by_recorded_norms(norms), *OPTIMIZERS["adamw"].parts(config, False), optax.scale_by_learning_rate(rate)
        )
        names = {f"{tables}_{kind}": f"{kind}_embeddings/embedding" for kind in ("word", "position")}
        params = nested({ours: jnp.asarray(trace[f"initial/{name}"]) for name, ours in names.items()})
        state = optimizer.init(params)
        for step in range(TRACE_STEPS):
            grads = nested({ours: jnp.asarray(trace[f"{step}/{name}_grad"]) for name, ours in names.items()})
            if side == "generator":
                before = {kind: trace[f"{step - 1}/delta_{kind}_after"] if step else 0.0 for kind in _KINDS}
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            for name, ours in names.items():
                expected = trace[f"{step}/{name}_after"]
                np.testing.assert_allclose(flat(params)[ours], expected, atol=1e-6, rtol=0)
                compared += 1
                if side == "generator":  # the discriminator reads the table after the generator's step
                    kind = name.removeprefix("generator_")
                    used = trace[f"{step}/discriminator_{kind}_used"]
                    np.testing.assert_allclose(expected + before[kind], used, atol=1e-6, rtol=0)
    assert compared == 4 * TRACE_STEPS


_KINDS = ("word", "position")


def test_folding_gives_both_models(tmp_path):
    weights = random_weights(tmp_path, "a difference")
    folded = fold(weights)
    ids = jnp.arange(5, 69).reshape(2, 32)
    for part in ("generator", "discriminator"):
        ours, theirs = (
            electra.apply_with_layers(each.architecture, each.to_params(), part, ids, jnp.ones_like(ids), ids % 2)
            for each in (weights, folded)
        )
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    back = unfold(folded)
    assert back.shapes == weights.shapes and back.architecture == weights.architecture
    for name in weights.shapes:  # a difference loses the last bits of what it is added to
        np.testing.assert_allclose(back.read(name), weights.read(name), atol=1e-6, rtol=0)


@pytest.mark.slow
def test_a_run_begins_with_two_folders(tmp_path, caplog):
    """Of either kind, published or not; what it would export is what they hold."""
    for sharing, most in (("a difference", 1e-6), ("embeddings", 0.0)):
        out = export(fold(random_weights(tmp_path / sharing, sharing)), tmp_path / sharing / "out", False)
        theirs = find_weights(f"hf:{out}")
        architecture = dataclasses.replace(theirs.architecture, has_own_embeddings=False, has_delta=True)
        config = config_for(architecture)
        found, drawn, audit = begin(Start(f"hf:{out}"), config, theirs.vocabulary, caplog)
        assert not drawn and "not used: nothing" in audit
        ours = fold(dataclasses.replace(theirs, architecture=architecture, read=found.__getitem__,
                                        shapes={name: value.shape for name, value in found.items()}))  # fmt: skip
        for name in ours.shapes:
            expected = theirs.read(name if name in theirs.shapes else name.replace("generator/", "electra/"))
            np.testing.assert_allclose(ours.read(name), expected, atol=most, rtol=0, err_msg=name)
        if not most:
            assert not any(np.any(found[f"discriminator_delta/{name}"]) for name in TABLES)
        if most:
            generator = dataclasses.replace(config.generator, embedding_sharing="shared")
            shared = dataclasses.replace(config, generator=generator)
            with pytest.raises(UserError, match="embeddings of the two differ.* set it to gdes"):
                Start(f"hf:{out}").check(shared, theirs.vocabulary)


def test_the_original_holds_tables_as_wide_as_layers_alone(tmp_path):
    weights = fold(random_weights(tmp_path, "a difference", model={"embedding_size": 8}))
    with pytest.raises(UserError, match="own embeddings are 8 wide and its hidden size is 16"):
        export_to_tf1(weights, tmp_path / "original")
