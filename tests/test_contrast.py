"""The contrast of sequences: crops, loss and head against plain numpy and PyTorch, and runs with it."""

import collections
import functools
import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_tools import SPECIAL, init_params, tiny_config
from run_tools import check_it_goes_on, refusal
from safetensors.numpy import load_file
from test_step import loss_of, make_batches, run

import electra_flax
from electra_flax.commands.cli import main
from electra_flax.errors import UserError
from electra_flax.model import electra, randomness
from electra_flax.model.attention import xla_attention
from electra_flax.model.sharding import batch_sharding, check_batch, make_mesh, rule_for, state_shardings
from electra_flax.training.flops import step_flops
from electra_flax.training.initial_state import init_state
from electra_flax.training.objectives import contrast, make_objective
from electra_flax.training.objectives.contrast import contrast_sums, crop
from electra_flax.training.objectives.objective import batch_seeds
from electra_flax.training.optimizers.optimizer import is_decayed
from electra_flax.training.state import over_slices
from electra_flax.training.step import accumulate_gradients, make_train_step
from electra_flax.trees import flat, nested

# Two groups in a batch of 16, or one in each of its slices.
ON = {"objective": {"contrast_weight": 0.7, "contrast_rows": 8, "contrast_from": 0.0}}
WEAK = {"discriminator_weight": 0.01}
STRONG = {"objective": {**ON["objective"], **WEAK, "contrast_weight": 7.0}}
SMALL = {"objective": {**ON["objective"], "contrast_rows": 2}}


def plain_loss(ours, theirs, is_text, rows):
    """The released loss, in float64, a view at a time: all views of a group, interleaved, against all others."""
    total = 0.0
    for first in range(0, len(ours), rows):
        group = [row for row in range(first, first + rows)]
        views = np.stack([view[row] for row in group for view in (ours, theirs)]).astype(np.float64)
        views /= np.linalg.norm(views, axis=1, keepdims=True)
        there = np.repeat(is_text[first : first + rows] > 0, 2)
        for view in np.flatnonzero(there):
            others = [other for other in np.flatnonzero(there) if other != view]
            similar = views[others] @ views[view]
            total -= 0.5 * (views[view ^ 1] @ views[view] - np.log(np.exp(similar).sum()))
    return total


@pytest.fixture(scope="module")
def views():
    rng = np.random.default_rng(0)
    ours = rng.normal(0, 1, (12, 20)).astype(np.float32)
    return ours, (ours + rng.normal(0, 2, ours.shape)).astype(np.float32)


@pytest.mark.parametrize("rows", [2, 4, 12])
def test_the_loss_is_that_of_the_released_code(views, rows):
    sums = contrast_sums(*map(jnp.asarray, views), jnp.ones(12), rows)
    assert float(sums["contrast_nll"]) == pytest.approx(plain_loss(*views, np.ones(12), rows), rel=1e-5)
    assert 0 < float(sums["contrast_correct"]) < 12


def test_empty_rows_count_nothing_and_are_no_candidates(views):
    is_text = np.asarray([1, 1, 0, 1] * 2 + [1, 0, 0, 0], np.float32)
    value, gradients = jax.value_and_grad(
        lambda *views: contrast_sums(*views, jnp.asarray(is_text), 4)["contrast_nll"], argnums=(0, 1)
    )(*map(jnp.asarray, views))
    assert float(value) == pytest.approx(plain_loss(*views, is_text, 4), rel=1e-5)
    for gradient in gradients:
        # The last text is alone in its group: nothing can be learned of it, and all is finite.
        assert (np.abs(gradient).sum(axis=1) > 1e-6).tolist() == [*(is_text[:8] > 0), False, False, False, False]


def test_gradients_are_those_of_pytorch(views):
    """Written as the released criterion is: both views side by side, then one cross entropy over the group."""
    torch = pytest.importorskip("torch")
    theirs = [torch.tensor(view, requires_grad=True) for view in views]
    losses = []
    for first in range(0, 12, 4):
        both = torch.stack([view[first : first + 4] for view in theirs], dim=1).reshape(8, -1)
        both = torch.nn.functional.normalize(both)
        similarity = both @ both.T
        similarity = similarity.masked_fill(torch.eye(8, dtype=torch.bool), -torch.inf)
        partner = torch.arange(8) ^ 1
        losses.append(0.5 * torch.nn.functional.cross_entropy(similarity, partner, reduction="sum"))
    sum(losses).backward()
    ours = jax.grad(lambda *views: contrast_sums(*views, jnp.ones(12), 4)["contrast_nll"], argnums=(0, 1))(
        *map(jnp.asarray, views)
    )
    for each, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(each, other.grad.numpy(), rtol=1e-4, atol=1e-6)


def cropped(lengths, tokens=40, seed=0):
    """Rows of different tokens, with a second part from the middle on, and their crops."""
    rows = len(lengths)
    lengths = np.asarray(lengths)[:, None]
    place = np.arange(tokens)[None, :]
    mask = (place < lengths).astype(np.int32)
    ids = np.where(place == lengths - 1, SPECIAL.sep, 10 + place) * mask
    ids[:, 0] = np.where(lengths[:, 0] > 0, SPECIAL.cls, 0)
    types = (place > lengths // 2) * mask
    batch = {"input_ids": ids.astype(np.int32), "attention_mask": mask, "token_type_ids": types.astype(np.int32)}
    seeds = randomness.row_seeds(jax.random.key(seed), rows)
    found = jax.jit(functools.partial(crop, special=SPECIAL))({k: jnp.asarray(v) for k, v in batch.items()}, seeds)
    return batch, {name: np.asarray(array) for name, array in found.items()}


def test_a_crop_is_nine_tenths_of_the_text_between_cls_and_sep():
    lengths = [0, *range(2, 41)] * 3
    batch, found = cropped(lengths)
    for row, length in enumerate(lengths):
        ids, types = batch["input_ids"][row].tolist(), batch["token_type_ids"][row].tolist()
        inner = max(length - 2, 0)
        kept = int(0.9 * inner)
        mine = found["input_ids"][row].tolist()
        assert found["attention_mask"][row].tolist() == [int(place < (kept + 2) * (length > 0)) for place in range(40)]
        assert mine[kept + 2 :] == [SPECIAL.pad] * (40 - kept - 2)
        if length:
            assert (mine[0], mine[kept + 1]) == (SPECIAL.cls, SPECIAL.sep)
            start = ids.index(mine[1]) if kept else 1
            assert 1 <= start <= 1 + inner - kept
            assert mine[1 : kept + 1] == ids[start : start + kept]
            assert found["token_type_ids"][row].tolist() == (
                [types[0], *types[start : start + kept + 1], *[0] * (40 - kept - 2)]
            )
        else:
            assert not any(mine)


def test_crops_begin_anywhere_with_the_same_probability():
    _, found = cropped([32] * 4000)  # of 30 tokens 27: four places
    counts = collections.Counter((found["input_ids"][:, 1] - 10).tolist())
    assert sorted(counts) == [1, 2, 3, 4]
    # 4 standard deviations of a binomial.
    assert max(abs(count - 1000) for count in counts.values()) < 4 * np.sqrt(4000 * 0.25 * 0.75)


def far_from_the_start(config):
    """Parameters with which texts differ: at first all views are nearly one, and of that no gradient is left."""
    params = flat(init_params(config.architecture))

    def moved(name, leaf):
        if leaf.ndim == 1:
            return leaf
        return 0.6 * np.random.default_rng(zlib.crc32(name.encode())).normal(size=leaf.shape).astype(np.float32)

    return nested({name: moved(name, leaf) for name, leaf in params.items()})


def gradients(num_slices=1, **changes):
    config = tiny_config(**changes)
    objective = make_objective(config, SPECIAL)
    params = far_from_the_start(config)
    batch = {name: jnp.asarray(array) for name, array in next(make_batches(config, 1)).items()}
    step = functools.partial(accumulate_gradients, objective, num_slices=num_slices)
    found, sums = jax.jit(step)(params, batch, jax.random.key(0), jnp.int32(0))
    return flat(found), objective.loss(sums, sums), sums


@pytest.fixture(scope="module")
def plain():
    return gradients(objective=WEAK)


@pytest.fixture(scope="module")
def contrasted():
    return gradients(**STRONG)


HEAD = {f"contrast_predictions/{name}" for name in
        ("dense/kernel", "dense/bias", "LayerNorm/scale", "LayerNorm/bias")}  # fmt: skip


@pytest.mark.slow
def test_what_is_added_is_the_weighted_loss_and_nothing_else(plain, contrasted):
    """Another head changes no draw; the generator's transformer and head learn as without it."""
    (grads, loss, sums), (found, total, more) = plain, contrasted
    assert found.keys() - grads.keys() == HEAD
    for name, value in sums.items():
        np.testing.assert_array_equal(value, more[name], err_msg=name)
    added = 7 * float(more["contrast_nll"] / more["contrasted"])
    assert float(total) == pytest.approx(float(loss) + added, rel=1e-5)
    assert 7 < added < 30 and float(more["contrasted"]) == 16
    for name in HEAD:
        assert np.abs(found[name]).max() > 1e-4, name
    for name, grad in grads.items():
        is_same = np.abs(grad - found[name]).max() <= 1e-5 * np.abs(grad).max()
        if name.startswith(("generator", "discriminator_predictions")):
            assert is_same, name
        elif name.endswith(("value/kernel", "word_embeddings/embedding", "output/dense/kernel")):
            assert not is_same, name


@pytest.mark.slow
def test_the_sums_are_those_of_the_parts_by_hand():
    """The head in numpy on the states that the encoder gives, of the corrupted text and of the crop."""
    config = tiny_config(**ON)
    objective, params = make_objective(config, SPECIAL), far_from_the_start(config)
    batch = {name: jnp.asarray(array) for name, array in next(make_batches(config, 1)).items()}
    draws = objective.draw(batch, batch_seeds(jax.random.key(3), batch), None)
    sums = objective.sums(params, batch, draws, xla_attention, is_training=False)
    _, sampled = objective.generate(params, batch, draws, xla_attention, is_training=False)
    corrupted, masked = np.array(batch["input_ids"]), draws.masked
    for row in range(len(corrupted)):
        used = np.asarray(masked.weights_BM[row]) > 0
        corrupted[row, np.asarray(masked.positions_BM[row])[used]] = np.asarray(sampled[row])[used]
    clean = crop(batch, randomness.fold_in(draws.dropout_B, 6), SPECIAL)
    names = ("input_ids", "attention_mask", "token_type_ids")
    head = {name: np.asarray(params["contrast_predictions"][part][leaf], np.float64) for name, part, leaf in (
        ("kernel", "dense", "kernel"), ("bias", "dense", "bias"), ("scale", "LayerNorm", "scale"),
        ("shift", "LayerNorm", "bias"))}  # fmt: skip
    assert head["kernel"].shape == (32, 768)

    def view(*inputs):
        state = np.asarray(electra.apply_encoder(config.architecture, params, *inputs)[:, 0], np.float64)
        x = np.asarray(jax.nn.gelu(jnp.asarray(state @ head["kernel"] + head["bias"]), approximate=False), np.float64)
        x = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-12)
        return x * head["scale"] + head["shift"]

    ours = view(corrupted, batch["attention_mask"], batch["token_type_ids"])
    expected = plain_loss(ours, view(*(clean[name] for name in names)), np.ones(16), 8)
    assert float(sums["contrast_nll"]) == pytest.approx(expected, rel=1e-5)


def test_rows_that_stay_together_are_in_one_slice():
    rows = jnp.arange(24)
    total, made = over_slices(lambda rows: (rows, rows), rows, num_slices=3, together=4)
    np.testing.assert_array_equal(made, rows)
    np.testing.assert_array_equal(total, [12, 15, 18, 21, 48, 51, 54, 57])  # 0..3 and 12..15, 4..7 and 16..19, ...
    total, made = over_slices(lambda rows: (rows, rows), rows, num_slices=3)
    np.testing.assert_array_equal(made, rows)
    assert total[0] == 0 + 1 + 2


@pytest.mark.slow
def test_slices_are_cut_between_groups(contrasted):
    grads, loss, sums = contrasted
    found, again, sliced = gradients(num_slices=2, **STRONG)
    assert float(again) == pytest.approx(float(loss), rel=1e-6)
    assert float(sliced["contrast_nll"]) == pytest.approx(float(sums["contrast_nll"]), rel=1e-5)
    for name, grad in grads.items():
        np.testing.assert_allclose(found[name], grad, rtol=1e-4, atol=1e-5 * np.abs(grad).max(), err_msg=name)


def steps(num_devices, **changes):
    """The losses of four steps, all and the contrast's, from parameters with which texts differ."""
    config = tiny_config(**{**SMALL, **changes})
    mesh = make_mesh(config.mesh, jax.devices()[:num_devices])
    state = init_state(config, mesh)
    state = state._replace(params=jax.device_put(far_from_the_start(config), state_shardings(state.params, mesh)))
    step, found = make_train_step(config, make_objective(config, SPECIAL), mesh), []
    for batch in make_batches(config, 4):
        state, sums = step(state, jax.device_put(batch, batch_sharding(mesh)))
        found.append((loss_of(config, sums), float(sums["contrast_nll"])))
    return np.asarray(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "changes"),
    [
        ({"mesh": {"data": 4, "tensor": 2}}, {}),
        ({"mesh": {"data": 2, "fsdp": 2, "tensor": 2}, "training": {"gradient_accumulation_steps": 2}}, {}),
        (
            {"training": {"gradient_accumulation_steps": 4}, "num_devices": 2},
            {"generator": {"embedding_sharing": "gdes"}, "optimizer": {"decoupled": True}},
        ),
    ],
    ids=["data=4 tensor=2", "all, accumulation 2", "two optimizers, accumulation 4"],
)
def test_layout_does_not_change_the_losses(layout, changes):
    one = steps(1, **changes)
    np.testing.assert_allclose(steps(**{"num_devices": 8, **changes, **layout}), one, rtol=1e-5)
    assert np.ptp(one[:, 1]) > 0.01


def part_configs(**changes):
    objective = {"contrast_weight": 0.7, "contrast_rows": 8, "contrast_from": 0.5}
    config = tiny_config(objective=objective, training={"num_steps": 10}, **changes)
    return config, [(part.start, part.end, part.config) for phase in config.phases for part in phase.parts]


@pytest.mark.slow
def test_before_it_begins_a_step_is_bitwise_that_of_a_run_without_it():
    _, parts = part_configs()
    assert [(start, end) for start, end, _ in parts] == [(0, 5), (5, 10)]
    without = tiny_config(training={"num_steps": 10})
    found = {}
    for name, config in (("without", without), ("before", parts[0][2])):
        mesh = make_mesh(config.mesh, jax.devices()[:1])
        state, step = init_state(config, mesh), make_train_step(config, make_objective(config, SPECIAL), mesh)
        step = step.lower(state, next(make_batches(config, 1))).compile()
        cost = step.cost_analysis()["flops"]
        for batch in make_batches(config, 2):
            state, sums = step(state, jax.device_put(batch, jax.devices()[0]))
        found[name] = state, sums, cost, loss_of(config, sums)
    (state, sums, cost, loss), (before, more, other, total) = found["without"], found["before"]
    theirs = flat(before.params)
    assert theirs.keys() - flat(state.params).keys() == HEAD
    for name, value in flat(state.params).items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)
    for name, value in sums.items():
        np.testing.assert_array_equal(value, more[name], err_msg=name)
    assert loss == total
    # What the optimizer does to the head is all that it costs: some operations a parameter.
    head = sum(theirs[name].size for name in HEAD)
    assert 0 <= other - cost < 30 * head


def test_before_it_begins_its_metrics_are_0_of_nothing():
    config, parts = part_configs()
    batch = {name: jnp.asarray(array) for name, array in next(make_batches(config, 1)).items()}
    before, seeds, views = parts[0][2], jnp.zeros(16, jnp.int32), jnp.zeros((16, 768))
    sums = contrast.sums(before, SPECIAL, {}, batch, views, seeds, xla_attention, is_training=True)
    sums |= contrast.count(batch, before.objective)
    others = {"generator_nll", "generator_correct", "generator_sampled_correct", "discriminator_nll", "replaced",
              "discriminator_correct", "flagged", "flagged_replaced", "masked", "tokens"}  # fmt: skip
    totals = {name: np.float64(1) for name in others} | {name: np.asarray(value) for name, value in sums.items()}
    totals |= dict.fromkeys(("auc_replaced_above", "auc_original_above"), np.ones(200))
    found = make_objective(config, SPECIAL).summarize(totals)
    assert found.pop("contrast_loss") == found.pop("contrast_accuracy") == 0
    assert found == make_objective(tiny_config(), SPECIAL).summarize(totals)


def test_its_steps_have_another_pass_of_the_discriminator():
    _, parts = part_configs()
    before, after = (step_flops(config) for _, _, config in parts)
    plain = step_flops(tiny_config())
    head = 3 * 2 * 16 * 32 * 768
    assert 0 <= before - plain <= head
    # Forward and two gradients of the projection and of the layers, attention's two products included.
    layers = 2 * (4 * 32 * 32 + 2 * 32 * 64 + 2 * 32 * 32) + 16 * 32
    again = 3 * 2 * 16 * 32 * layers
    similarities = 3 * 2 * 2 * 16 * 16 * 768
    assert after - plain == pytest.approx(again + 2 * head + similarities, rel=0.01)


def test_the_phases_of_a_run_are_cut_where_it_begins():
    long = {"long_phase": {"steps": 4, "batch_size": 8, "max_seq_length": 64}}
    found = [(start, end, config.objective.contrast_from) for start, end, config in part_configs(**long)[1]]
    assert found == [(0, 5, 1.0), (5, 6, 0.0), (6, 10, 0.0)]
    (phase,) = tiny_config().phases
    assert phase.parts == [phase]


def test_its_head_decays_and_is_placed_by_rules():
    params = jax.eval_shape(lambda: electra.init(tiny_config(**ON).architecture, jax.random.key(0)))
    decayed = flat(is_decayed(params))
    assert {name for name in HEAD if decayed[name]} == {"contrast_predictions/dense/kernel"}
    for name in HEAD:
        assert rule_for(name) == rule_for(name.replace("contrast", "generator"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": {"kind": "masked_tokens"}}, "contrast_weight=0.7 needs objective.kind=replaced_tokens with"),
        ({"objective": {"kind": "electric"}}, "contrast_weight=0.7 needs .* got two towers"),
        ({"generator": {"two_towers": True}}, "contrast_weight=0.7 needs .* got two towers"),
        ({"data": {"packing": "best_fit"}}, "contrast_weight=0.7 needs data.packing=none, got best_fit"),
        ({"objective": {"contrast_rows": 3}}, "contrast_rows=3 must divide the 16 rows of a slice"),
        ({"training": {"gradient_accumulation_steps": 4}}, r"contrast_rows=8 must divide the 4 rows of a slice"),
        (
            {"long_phase": {"steps": 4, "batch_size": 12, "max_seq_length": 64}},
            "long phase: objective.contrast_rows=8 must divide the 12 rows",
        ),
    ],
    ids=["masked_tokens", "electric", "two towers", "packed", "rows", "accumulation", "long phase"],
)
def test_what_cannot_be_is_refused_in_a_line(changes, message):
    objective = ON["objective"] | changes.get("objective", {})
    with pytest.raises(UserError, match=message):
        tiny_config(**{**{name: part for name, part in changes.items() if name != "objective"}, "objective": objective})


def test_a_group_that_devices_would_part_is_refused():
    mesh = make_mesh(tiny_config().mesh)
    check_batch(128, 2, mesh, rows_together=8)
    with pytest.raises(UserError, match=r"must be a multiple of 128 = 8 devices .* x 8 rows .*nearest: 128"):
        check_batch(64, 2, mesh, rows_together=8)


@pytest.mark.slow
def test_it_learns():
    history, state = run(num_devices=1, always_the_same=True, **ON)
    assert np.isfinite(history).all() and history[-1] < history[0]
    assert np.abs(state.params["contrast_predictions"]["dense"]["bias"]).max() > 0


@pytest.mark.slow
def test_a_run_in_which_it_begins_goes_on_evaluates_and_leaves_its_head_out_of_exports(copy, capsys):
    fields = {"objective.contrast_weight": 1.0, "objective.contrast_rows": 2, "objective.contrast_from": 0.5,
              "training.gradient_accumulation_steps": 1, "mesh.data": 1, "mesh.tensor": -1}  # fmt: skip

    def check(step, metrics):
        assert (metrics["contrast_loss"] > 0) == (step > 3), step
        assert 0 <= metrics["contrast_accuracy"] <= 1

    held_out, _ = check_it_goes_on(copy, fields, check)
    assert held_out["contrast_loss"] > 0
    assert "contrast" in refusal(
        capsys, ["pretrain", "--config", "tiny.yaml", "--data", "shards", "--workdir", "straight"]
    )
    with jax.numpy_rank_promotion("allow"):
        assert main(["export", "--workdir", "straight", "--out", "told"]) == 0
    for part in ("discriminator", "generator"):
        tensors = load_file(copy / "told" / part / "model.safetensors")
        assert load_file(copy / "export" / part / "model.safetensors").keys() == tensors.keys()
        assert json.loads((copy / "told/parity.json").read_text())[part]["flax"] < 1e-4
        assert "contrast of sequences | weight 1, groups of 2, from 0.5 of the steps on (experimental); the head" in (
            copy / "told" / part / "README.md"
        ).read_text(encoding="utf-8")
    # Another run may begin with its weights: with a new head, or with none.
    for weight in (0.5, 0.0):
        config = {**fields, "objective.contrast_weight": weight, "training.num_steps": 2}
        done = electra_flax.pretrain(
            "tiny.yaml", "shards", f"next-{weight}", overrides=config, init_from="orbax:straight", progress=False
        )
        assert done.step == 2
