"""The temperature of sampling: what it is at a step, and that samples are drawn with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from golden_tools import SPECIAL, init_params, tiny_config
from test_step import make_batches

from electra_flax.model import electra, randomness
from electra_flax.training import masking
from electra_flax.training.objectives import make_objective
from electra_flax.training.objectives.objective import row_seeds
from electra_flax.training.temperature import temperature_at


@pytest.mark.parametrize(
    ("fields", "expected"),  # of the share done: 0, 0.1, 0.5, 0.9
    [
        ({"temperature": 1.5}, (1.5, 1.5, 1.5, 1.5)),
        ({"temperature_schedule": "exponential"}, (2.0, 1.3678794, 1.0067379, 1.0001234)),
        ({"temperature_schedule": "exponential", "temperature_tau": 0.5, "initial_temperature": 3.0},
         (3.0, 2.6374615, 1.7357589, 1.3305978)),
        ({"temperature_schedule": "linear"}, (2.0, 1.9, 1.5, 1.1)),
        ({"temperature_schedule": "linear", "temperature": 0.5, "initial_temperature": 1.0}, (1.0, 0.95, 0.75, 0.55)),
    ],
)  # fmt: skip
def test_schedules(fields, expected):
    objective = tiny_config(objective=fields).objective
    for share, temperature in zip((0.0, 0.1, 0.5, 0.9), expected, strict=True):
        found = temperature_at(objective, 1000, jnp.int32(1000 * share))
        np.testing.assert_allclose(found, temperature, rtol=1e-6)
    assert temperature_at(objective, 1000, None) == objective.temperature  # of evaluations


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_samples_are_those_of_the_temperature(temperature):
    """A chi-square test of 40,000 samples of 50 tokens; what the other temperature would give does not pass it."""
    rows, vocab_size = 400, 50
    logits_V = 2 * jax.random.normal(jax.random.key(0), (vocab_size,))
    logits_BMV = jnp.broadcast_to(logits_V, (rows, 100, vocab_size))
    seeds_B = randomness.row_seeds(jax.random.key(1), rows)
    sampled_BM = masking.sample_replacements(
        seeds_B, logits_BMV, jnp.zeros((rows, 100), int), jnp.full((rows, 1, 1), temperature), False
    )
    counted_V = np.bincount(np.asarray(sampled_BM).ravel(), minlength=vocab_size)

    def likelihood(temperature):
        expected_V = np.asarray(jax.nn.softmax(logits_V / temperature), np.float64)
        return scipy.stats.chisquare(counted_V, counted_V.sum() * expected_V / expected_V.sum()).pvalue

    assert likelihood(temperature) > 0.01 and likelihood(3.0 - temperature) < 1e-12


@pytest.mark.parametrize("unit", ["token", pytest.param("word", marks=pytest.mark.slow)])
def test_a_step_samples_with_its_own_temperature(unit):
    """The first with that at which a schedule begins, a later one with another, an evaluation with the last."""
    batch = next(make_batches(tiny_config(), 1))
    params = jax.tree.map(lambda leaf: 20 * leaf, init_params(tiny_config().architecture))

    def sampled(step, **fields):
        config = tiny_config(objective=fields, masking={"unit": unit})
        objective = make_objective(config, SPECIAL, (7,))
        draws = objective.draw(batch, row_seeds(jax.random.key(1), 16), step)
        return objective.generate(params, batch, draws, electra.xla_attention, True)[1]

    first, later = jnp.int32(0), jnp.int32(10)
    linear = {"temperature_schedule": "linear", "initial_temperature": 4.0, "temperature": 2.0}
    for step, temperature in ((first, 4.0), (later, 3.0), (None, 2.0)):
        constant = sampled(step, temperature=temperature)
        np.testing.assert_array_equal(sampled(step, **linear), constant)
        assert np.any(sampled(step, temperature=1.0) != constant)
