"""First values that look at neighbours: heads, positions, frequencies, and nothing else is changed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_tools import init_params

from electra_flax.config.architecture import Architecture, ModelConfig
from electra_flax.config.loading import load_config
from electra_flax.data.vocabulary import SpecialTokens
from electra_flax.errors import UserError
from electra_flax.model import electra
from electra_flax.training.first_values import look_at_neighbours, token_frequency
from electra_flax.trees import flat

SPECIAL = SpecialTokens(pad=0, unk=1, cls=2, sep=3, mask=4)
FREQUENCY = np.arange(1, 101) / 5050


def model(embedding_size, hidden_size, heads):
    return ModelConfig(
        vocab_size=100, embedding_size=embedding_size, hidden_size=hidden_size, num_hidden_layers=2,
        num_attention_heads=heads, intermediate_size=64, max_position_embeddings=64,
    )  # fmt: skip


@functools.cache
def both(architecture):
    """The original's first values, and ours."""
    params = init_params(architecture)
    return params, jax.jit(lambda: look_at_neighbours(architecture, FREQUENCY, params))()


def attention(sizes, params):
    """Attention of the first layer, [B, H, T, T], computed by hand."""
    ids_BT = jax.random.randint(jax.random.key(1), (8, 64), 5, 100)
    architecture = Architecture(sizes, None)
    hidden, _ = jax.jit(electra.apply_with_layers, static_argnums=(0, 2))(
        architecture, params, "discriminator", ids_BT, jnp.ones_like(ids_BT), jnp.zeros_like(ids_BT)
    )
    parts = params["electra"]["encoder"]["layer"]["0"]["attention"]["self"]
    heads, width = sizes.num_attention_heads, sizes.hidden_size // sizes.num_attention_heads
    query, key = ((hidden[0] @ parts[name]["kernel"]).reshape(8, 64, heads, width) for name in ("query", "key"))
    return np.asarray(jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", query, key) / np.sqrt(width), axis=-1))


# As wide as the embeddings; projected to more; a head whose width is odd.
@pytest.mark.parametrize(
    "sizes",
    [
        *(pytest.param(model(*sizes), marks=pytest.mark.slow) for sizes in ((128, 128, 4), (64, 128, 2))),
        model(64, 66, 2),
    ],
    ids=str,
)
def test_heads_look_left_and_right(sizes):
    fresh, ours = both(Architecture(sizes, None))
    for head, wanted in enumerate([-1, 1] * (sizes.num_attention_heads // 2)):
        found_BTT = attention(sizes, ours)[:, head]
        by_offset = {by: np.diagonal(found_BTT, by, axis1=1, axis2=2).mean() for by in range(-8, 9)}
        assert max(by_offset, key=by_offset.get) == wanted
        assert by_offset[wanted] > 0.2  # of a uniform 1/64
    assert attention(sizes, fresh).max() < 0.1


def test_towers_look_at_the_side_that_they_see():
    sizes = model(64, 64, 2)
    _, ours = both(Architecture(sizes, sizes, has_two_towers=True))
    for tower, wanted in (("generator_ltr", -1), ("generator_rtl", 1)):
        # As if it were a discriminator, which sees both sides.
        params = ours | {"electra": ours["electra"] | ours[tower], "generator_lm_head": ours["cloze_lm_head"],
                         "generator_predictions": ours["cloze_predictions"]}  # fmt: skip
        found_BHTT = attention(sizes, params)
        for head in range(2):
            by_offset = {by: np.diagonal(found_BHTT[:, head], by, axis1=1, axis2=2).mean() for by in range(-8, 9)}
            assert max(by_offset, key=by_offset.get) == wanted


def test_output_begins_with_the_frequencies():
    for generator, head in ((None, "generator_lm_head"), (model(64, 64, 2), "cloze_lm_head")):
        sizes = model(64, 64, 2) if generator else model(128, 128, 4)
        _, ours = both(Architecture(sizes, generator, has_two_towers=generator is not None))
        np.testing.assert_allclose(jax.nn.softmax(ours[head]["bias"]), FREQUENCY, rtol=1e-5)


def test_what_heads_see_keeps_its_length():
    _, ours = both(Architecture(model(128, 128, 4), None))
    layer = ours["electra"]["encoder"]["layer"]["0"]["attention"]
    x = jax.random.normal(jax.random.key(2), (1000, 128))
    y = x @ layer["self"]["value"]["kernel"] @ layer["output"]["dense"]["kernel"]
    assert jnp.linalg.norm(y) == pytest.approx(float(jnp.linalg.norm(x)), rel=0.1)


def test_all_else_is_the_original():
    sizes = model(128, 128, 4)
    architecture = Architecture(sizes, model(128, 64, 2))
    fresh, ours = (flat(params) for params in both(architecture))
    changed = {name for name in fresh if not np.array_equal(fresh[name], ours[name])}
    aimed = ("self/query", "self/key", "self/value", "output/dense")
    assert changed == {
        "generator_lm_head/bias", "electra/embeddings/position_embeddings/embedding",
        *(f"{part}/encoder/layer/0/attention/{name}/kernel" for part in ("electra", "generator") for name in aimed),
    }  # fmt: skip


def test_a_discriminator_alone_has_no_frequencies():
    architecture = Architecture(model(128, 128, 4), None, has_generator_head=False)
    _, ours = both(architecture)
    assert "generator_lm_head" not in ours


class Examples:
    """What ShardedExamples answers."""

    def __init__(self, ids, mask):
        self._rows = np.stack([ids, mask, np.zeros_like(ids)], axis=1)

    def __len__(self):
        return len(self._rows)

    def read(self, numbers):
        return self._rows[numbers]


@pytest.mark.parametrize("count", [1, 3, 50_000])
def test_frequency_is_of_tokens_that_can_be_hidden(count):
    ids = np.tile(np.asarray([[2, 7, 7, 8, 3, 0]], np.int32), (count, 1))
    frequency = token_frequency(Examples(ids, (ids > 0).astype(np.int32)), 10, SPECIAL)
    assert frequency.sum() == pytest.approx(1)
    assert (frequency > 0).all()
    assert frequency[7] > frequency[8] > 10 * frequency[3] / 3
    assert frequency[2] == frequency[3] == frequency[0] == frequency[9]  # [CLS], [SEP], padding, never seen
    seen = min(count, 20_000)
    assert frequency[7] == pytest.approx((2 * seen + 0.1) / (3 * seen + 1))


def test_a_range_of_zero_is_refused():
    with pytest.raises(UserError, match=r"first_values=neighbours scales --model.initializer_range=0: give"):
        load_config("configs/demo.yaml", ["--training.first_values", "neighbours", "--model.initializer_range", "0"])
