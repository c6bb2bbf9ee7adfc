"""Packing changes nothing but the time: losses, gradients and samples are those of examples in rows of their own."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_tools import SPECIAL, tiny_config

from electra_flax.data.packing import ROW_ARRAYS, Packing, fill_rows, pack_epoch
from electra_flax.model import electra
from electra_flax.model.sharding import batch_sharding, make_mesh
from electra_flax.training.initial_state import init_state
from electra_flax.training.objectives import make_objective
from electra_flax.training.objectives.objective import RowSeeds, batch_seeds
from electra_flax.training.packed_masking import max_predictions_per_row
from electra_flax.training.step import make_train_step
from electra_flax.trees import flat, nested

TOKENS, SEGMENTS = 32, 4
CONFIG = tiny_config(
    data={"packing": "best_fit"}, packing={"segments": SEGMENTS}, masking={"mask_prob": 0.25},
    model={"num_hidden_layers": 1},
)  # fmt: skip
# Of 1 to 32 tokens; some so short that nothing of them, or only one token, can be hidden.
LENGTHS = np.asarray([32, 31, 20, 17, 12, 11, 9, 8, 7, 5, 4, 3, 3, 3, 2, 1], np.int32)


def make_examples(lengths=LENGTHS, tokens=TOKENS, seed=0):
    """int32 [N, 3, T], as shards have them."""
    random = np.random.default_rng(seed)
    mask = (np.arange(tokens)[None, :] < lengths[:, None]).astype(np.int32)
    ids = random.integers(5, 300, mask.shape) * mask
    ids[:, 0] = SPECIAL.cls
    ids[np.arange(len(lengths)), lengths - 1] = SPECIAL.sep
    types = (np.arange(tokens)[None, :] >= lengths[:, None] // 2) * mask
    return np.stack([ids, mask, types], axis=1).astype(np.int32)


def batch_of(examples, lengths, table, first_number=1000):
    """A batch of rows with these examples, whose numbers in the shards are from 1000 on."""
    chosen = table[table >= 0]
    arrays = np.empty((len(ROW_ARRAYS), len(table), examples.shape[2]), np.int32)
    fill_rows(examples[chosen], lengths[chosen], table, arrays)
    named = {name: jnp.asarray(array) for name, array in zip(ROW_ARRAYS, arrays, strict=True)}
    return named | {"examples": jnp.asarray(np.where(table < 0, 0, table + first_number), jnp.int32)}


def table_of(lengths, tokens=TOKENS, segments=SEGMENTS):
    packed = pack_epoch(lengths, Packing(tokens, segments, 1024), 0, 0)
    table = np.full((len(packed), segments), -1, np.int64)
    for row, (start, end) in enumerate(zip(packed.starts, packed.starts[1:], strict=False)):
        table[row, : end - start] = packed.examples[start:end]
    return table


def in_rows_of_their_own(examples, batch, seeds, table):
    """The same examples as a batch without packing, and their seeds."""
    plain = dict(zip(ROW_ARRAYS[:3], map(jnp.asarray, examples.swapaxes(0, 1)), strict=True))
    order = np.argsort(table[table >= 0])
    mask_B, sample_B = (jnp.asarray(np.asarray(each)[table >= 0][order]) for each in (seeds.mask_B, seeds.sample_B))
    return plain, RowSeeds(mask_B, sample_B, jnp.zeros_like(mask_B))


def make_params(config):
    """Larger than fresh ones: what is small hides differences."""
    random = np.random.default_rng(2)
    values = {
        name: np.asarray(random.normal(size=shape) * (0.1 if len(shape) > 1 else 0.05), np.float32)
        for name, shape in electra.expected_shapes(config.architecture).items()
    }
    return nested({name: value + np.float32(name.endswith("scale")) for name, value in values.items()})


@functools.partial(jax.jit, static_argnums=0)
def losses_and_gradients(objective, params, batch, seeds):
    draws = objective.draw(batch, seeds, None)
    counts = objective.count(batch, draws)
    attend = electra.xla_attention

    def loss(params):
        sums = objective.sums(params, batch, draws, attend, is_training=False)
        return objective.loss(sums, counts), sums | counts

    (total, sums), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    sampled_BM = objective.generate(params, batch, draws, attend, False)[1]
    return total, sums, gradients, draws.masked, sampled_BM


def hidden_by_example(batch, masked, sampled_BM):
    """{(example, place in it): (id that is seen, id that was, sampled id)} of all hidden tokens."""
    rows, columns = np.nonzero(np.asarray(masked.weights_BM))
    positions = np.asarray(masked.positions_BM)[rows, columns]
    if "segments" in batch:
        segments, places = (np.asarray(batch[name])[rows, positions] for name in ("segments", "places"))
        numbers = np.asarray(batch["examples"])[rows, segments - 1] - 1000
    else:
        numbers, places = rows, positions
    seen, was = np.asarray(masked.masked_ids_BT)[rows, positions], np.asarray(masked.targets_BM)[rows, columns]
    values = zip(seen.tolist(), was.tolist(), np.asarray(sampled_BM)[rows, columns].tolist(), strict=True)
    found = dict(zip(zip(numbers.tolist(), places.tolist(), strict=True), values, strict=True))
    assert len(found) == len(rows)
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"objective": {"kind": "masked_tokens"}}, marks=pytest.mark.slow),
        pytest.param({"generator": {"uniform_generator": True}}, marks=pytest.mark.slow),
        pytest.param({"objective": {"disallow_correct": True, "temperature": 0.5}}, marks=pytest.mark.slow),
        pytest.param({"masking": {"unit": "word", "mask_prob": 0.4}}),
        pytest.param({"masking": {"unit": "span", "mask_prob": 0.4}}, marks=pytest.mark.slow),
        pytest.param({"masking": {"mask_prob": 0.05}}, marks=pytest.mark.slow),
        pytest.param({"masking": {"mask_prob": 0.15}, "packing": {"segments": 8}}, marks=pytest.mark.slow),
        pytest.param({"generator": {"two_towers": True}}, marks=pytest.mark.slow),
    ],
)
def test_losses_gradients_and_samples_are_those_without_packing(changes):
    config = CONFIG
    for section, fields in changes.items():
        config = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **fields)})
    objective = make_objective(config, SPECIAL, tuple(range(150, 300)))
    params, examples, table = make_params(config), make_examples(), table_of(LENGTHS, segments=config.packing.segments)
    assert len(table) < len(LENGTHS) / 2 and (table >= 0).sum() == len(LENGTHS)
    batch = batch_of(examples, LENGTHS, table)
    seeds = jax.jit(batch_seeds)(jax.random.key(5), batch)
    plain, plain_seeds = in_rows_of_their_own(examples, batch, seeds, table)
    ours = losses_and_gradients(objective, params, batch, seeds)
    theirs = losses_and_gradients(objective, params, plain, plain_seeds)
    assert_the_same(batch, plain, ours, theirs)


@pytest.mark.slow
def test_electric_packed_is_electric_on_rows_without_padding():
    """Its loss reads the towers at [CLS] and [SEP] too, whose neighbours are those at the other end of the row."""
    lengths, length = np.full(8, 16, np.int32), 16
    config = dataclasses.replace(CONFIG, objective=dataclasses.replace(CONFIG.objective, kind="electric"))
    short = dataclasses.replace(config, data=dataclasses.replace(config.data, packing="none", max_seq_length=length))
    params, examples = make_params(config), make_examples(lengths, TOKENS)
    table = table_of(lengths)
    assert len(table) == 4
    batch = batch_of(examples, lengths, table)
    seeds = jax.jit(batch_seeds)(jax.random.key(5), batch)
    plain, plain_seeds = in_rows_of_their_own(examples[:, :, :length], batch, seeds, table)
    ours = losses_and_gradients(make_objective(config, SPECIAL), params, batch, seeds)
    assert_the_same(
        batch, plain, ours, losses_and_gradients(make_objective(short, SPECIAL), params, plain, plain_seeds)
    )


def assert_the_same(batch, plain, ours, theirs):
    hidden = hidden_by_example(plain, *theirs[3:])
    assert hidden_by_example(batch, *ours[3:]) == hidden and len(hidden) > 10
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    for name, value in theirs[1].items():
        if not name.startswith("auc"):  # counts of tokens above thresholds, which a rounding may cross
            np.testing.assert_allclose(ours[1][name], value, rtol=1e-5, err_msg=name)
    gradients = flat(theirs[2])
    for name, gradient in flat(ours[2]).items():
        largest = np.abs(gradients[name]).max()
        if name.endswith("key/bias"):  # softmax takes it away: nothing but roundings
            assert max(largest, np.abs(gradient).max()) < 1e-6
            continue
        np.testing.assert_allclose(gradient, gradients[name], atol=1e-5 * largest, rtol=0, err_msg=name)
        assert largest > 0, name


LOGITS = jax.jit(
    lambda params, batch: electra.apply_discriminator(
        CONFIG.architecture, params, batch["input_ids"], batch["attention_mask"], batch["token_type_ids"],
        packed=electra.Segments(batch["segments"], batch["places"]),
    )
)  # fmt: skip


def test_an_example_sees_nothing_of_its_row():
    params = make_params(CONFIG)
    lengths = np.asarray([10, 7, 9, 3], np.int32)
    examples = make_examples(lengths)
    batch = batch_of(examples, lengths, np.asarray([[0, 1, 2, -1], [2, 3, 0, 1]]))
    before = np.asarray(LOGITS(params, batch))
    # A token of the second example changes: no bit of the others does.
    changed = dict(batch, input_ids=batch["input_ids"].at[0, 12].set(299))
    after = np.asarray(LOGITS(params, changed))
    np.testing.assert_array_equal(after[0, :10], before[0, :10])
    np.testing.assert_array_equal(after[0, 17:26], before[0, 17:26])
    assert (after[0, 10:17] != before[0, 10:17]).all()
    # The same examples at other places of a row: the same values.
    for ours, theirs, size in (((0, 0), (1, 12), 10), ((0, 10), (1, 22), 7), ((0, 17), (1, 0), 9)):
        values = [before[row, start : start + size] for row, start in (ours, theirs)]
        np.testing.assert_allclose(*values, atol=1e-6, rtol=0)
    assert np.abs(before).max() > 0.1


def test_columns_hold_all_that_is_wanted():
    """Whatever the lengths of a row's examples, down to those that hold a token and no special ones."""
    for share in (0.001, 0.02, 0.15, 0.15000001, 0.25, 0.4, 0.5, 0.9):
        for tokens, segments in ((32, 2), (32, 8), (64, 4)):
            config = tiny_config(
                data={"packing": "best_fit", "max_seq_length": tokens}, packing={"segments": segments},
                masking={"mask_prob": max(share, 1.01 / tokens)},
            )  # fmt: skip
            share_32, columns = np.float32(config.masking.mask_prob), max_predictions_per_row(config)
            wanted = [max(1, round(float(np.float32(n) * share_32))) for n in range(tokens + 1)]  # halves to even
            # The most that so many examples can want of so many tokens.
            most = np.full(tokens + 1, 0)
            for _ in range(segments):
                most = np.asarray([
                    max([most[room], *(most[room - max(n, 3)] + wanted[n] for n in range(1, room + 1) if room >= 3)])
                    for room in range(tokens + 1)
                ])  # fmt: skip
            assert most[tokens] <= columns <= most[tokens] + segments, (share, tokens, segments)
    assert max_predictions_per_row(tiny_config()) == tiny_config().max_predictions_per_seq


@pytest.mark.slow
def test_layout_does_not_change_packed_steps():
    lengths = np.random.default_rng(1).integers(3, TOKENS + 1, 60).astype(np.int32)
    batch = batch_of(make_examples(lengths), lengths, table_of(lengths)[:16])

    def losses(devices, **changes):
        config = tiny_config(
            data={"packing": "best_fit"}, packing={"segments": SEGMENTS}, model={"hidden_dropout_prob": 0.1},
            training={"batch_size": 16, "num_steps": 4} | changes.pop("training", {}), **changes,
        )  # fmt: skip
        mesh = make_mesh(config.mesh, jax.devices()[:devices])
        state, step = init_state(config, mesh), make_train_step(config, make_objective(config, SPECIAL), mesh)
        found = []
        for _ in range(4):
            state, sums = step(state, jax.device_put(batch, batch_sharding(mesh)))
            found.append([float(sums[name]) for name in ("generator_nll", "discriminator_nll", "masked", "replaced")])
        return np.asarray(found)

    one = losses(1)
    for layout in (
        {"devices": 8}, {"devices": 8, "mesh": {"data": 2, "fsdp": 2, "tensor": 2}},
        {"devices": 4, "training": {"gradient_accumulation_steps": 4}},
    ):  # fmt: skip
        np.testing.assert_allclose(losses(**layout), one, rtol=1e-5)
