"""One training step and one evaluation step, as pure functions of (state, batch).

Every random decision is drawn from fold_in(key(seed), step), so no key is part of the state and a resumed run repeats
what an uninterrupted one would have done.

Array names: B batch, T tokens, M masked positions, A accumulation slices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, Sharding

from electra_flax.config.schema import Config
from electra_flax.data.vocabulary import SpecialTokens
from electra_flax.model import electra, randomness
from electra_flax.model.attention import Attend, xla_attention
from electra_flax.model.sharding import Batch, batch_sharding, state_shardings
from electra_flax.training import losses, masking
from electra_flax.training.masking import MaskedInputs
from electra_flax.training.optimizer import learning_rate, make_optimizer
from electra_flax.trees import tree_names


class TrainState(NamedTuple):
    """All that changes from step to step."""

    step: jax.Array
    params: electra.Params
    opt_state: optax.OptState


def init_state(config: Config, mesh: Mesh) -> TrainState:
    """A fresh state, created in place on the mesh."""

    create = functools.partial(_create_state, config)
    return jax.jit(create, out_shardings=state_shardings(abstract_state(config), mesh))()


def abstract_state(config: Config) -> TrainState:
    """The state's tree with shapes and dtypes instead of arrays."""
    return jax.eval_shape(functools.partial(_create_state, config))


def abstract_batch(config: Config, sharding: Sharding | None = None) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch's shapes and dtypes instead of arrays."""
    shape = (config.training.batch_size, config.data.max_seq_length)
    names = ("input_ids", "attention_mask", "token_type_ids")
    return {name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding) for name in names}


def _create_state(config: Config) -> TrainState:
    params = electra.init(config.architecture, jax.random.key(config.training.seed))
    optimizer = make_optimizer(config.optimizer, config.training.num_steps)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def make_train_step(
    config: Config, special: SpecialTokens, mesh: Mesh, attend: Attend = xla_attention
) -> Callable[[TrainState, Batch], tuple[TrainState, losses.Sums]]:
    """(state, batch) -> (next state, metric sums); compiled, the old state's memory is reused."""
    optimizer = make_optimizer(config.optimizer, config.training.num_steps)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, losses.Sums]:
        key = jax.random.fold_in(jax.random.key(config.training.seed), state.step)
        grads, sums = accumulate_gradients(config, special, state.params, batch, key, attend)
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            sums["grad_norm"] = optax.tree.norm(grads)
            # A step that is not finite changes nothing but the counters: its batch is left out.
            is_finite = jnp.isfinite(sums["grad_norm"]) & jnp.isfinite(total_loss(config, sums, sums))
            params, opt_state = jax.tree.map(
                lambda new, old: new if new.dtype == jnp.int32 else jnp.where(is_finite, new, old),
                (params, opt_state),
                (state.params, state.opt_state),
            )
            sums["skipped"] = 1 - is_finite.astype(jnp.float32)
        sums["learning_rate"] = learning_rate(state.step, config.optimizer, config.training.num_steps)
        return TrainState(state.step + 1, params, opt_state), sums

    shardings = state_shardings(abstract_state(config), mesh)
    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, None),
    )


def make_norms(
    config: Config, special: SpecialTokens
) -> Callable[[TrainState, Batch], dict[str, dict[str, jax.Array]]]:
    """(state, batch) -> the norm of every parameter and of its gradient, by name: for a look at a run that failed."""

    def norms(state: TrainState, batch: Batch) -> dict[str, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(config.training.seed), state.step)
        grads, _ = accumulate_gradients(config, special, state.params, batch, key)
        names = jax.tree.leaves(tree_names(state.params))

        def by_name(tree: electra.Params) -> dict[str, jax.Array]:
            return {name: jnp.linalg.norm(leaf) for name, leaf in zip(names, jax.tree.leaves(tree), strict=True)}

        return {"parameter_norms": by_name(state.params), "gradient_norms": by_name(grads)}

    return jax.jit(norms)


def make_eval_step(
    config: Config, special: SpecialTokens, mesh: Mesh, attend: Attend = xla_attention
) -> Callable[[electra.Params, Batch, jax.Array], losses.Sums]:
    """(params, batch, key) -> metric sums, without dropout; the same key gives the same masks and samples."""

    def eval_step(params: electra.Params, batch: Batch, key: jax.Array) -> losses.Sums:
        seeds = row_seeds(key, batch["input_ids"].shape[0])
        masked = mask(config, special, batch, seeds)
        counts = losses.denominators(masked.weights_BM, batch["attention_mask"])
        return forward(config, params, batch, masked, seeds.sample_B, None, attend) | counts

    return jax.jit(eval_step, in_shardings=(None, batch_sharding(mesh), None))


class RowSeeds(NamedTuple):
    """A step's randomness: one int32 seed a row of the global batch for each use."""

    mask_B: jax.Array
    sample_B: jax.Array
    dropout_B: jax.Array


def row_seeds(key: jax.Array, num_rows: int) -> RowSeeds:
    seeds_B = randomness.row_seeds(key, num_rows)
    return RowSeeds(*(randomness.fold_in(seeds_B, number) for number in range(3)))


def mask(config: Config, special: SpecialTokens, batch: Batch, seeds: RowSeeds) -> MaskedInputs:
    with jax.named_scope("masking"):
        return masking.mask_inputs(seeds.mask_B, batch, config.masking, special, config.max_predictions_per_seq)


def accumulate_gradients(
    config: Config,
    special: SpecialTokens,
    params: electra.Params,
    batch: Batch,
    key: jax.Array,
    attend: Attend = xla_attention,
) -> tuple[electra.Params, losses.Sums]:
    """Gradients of the whole batch's loss, computed slice by slice.

    The masks and both denominators belong to the whole batch, so the slices' gradients add up to exactly those of
    one large batch, where averaging the slices' means would weigh their tokens unequally.
    """
    seeds = row_seeds(key, batch["input_ids"].shape[0])
    masked = mask(config, special, batch, seeds)
    counts = losses.denominators(masked.weights_BM, batch["attention_mask"])
    num_slices = config.training.gradient_accumulation_steps

    def slice_loss(params: electra.Params, rows: Any) -> tuple[jax.Array, losses.Sums]:
        batch, masked, sample_seeds_B, dropout_seeds_B = rows
        sums = forward(config, params, batch, masked, sample_seeds_B, dropout_seeds_B, attend)
        return total_loss(config, sums, counts), sums

    slice_gradients = jax.grad(slice_loss, has_aux=True)
    rows = (batch, masked, seeds.sample_B, seeds.dropout_B)
    grads, sums = sum_over_slices(functools.partial(slice_gradients, params), rows, num_slices)
    return grads, sums | counts


def sum_over_slices(compute: Callable[[Any], Any], rows: Any, num_slices: int) -> Any:
    """The sum of what `compute` makes of each slice of the rows, one slice in memory at a time."""
    if num_slices == 1:
        return compute(rows)

    def add_slice(total: Any, rows: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, compute(rows)), None

    sliced = jax.tree.map(lambda array: _slices(array, num_slices), rows)
    shapes = jax.eval_shape(compute, jax.tree.map(lambda array: array[0], sliced))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(add_slice, zeros, sliced)
    return total


def _slices(array_B: jax.Array, num_slices: int) -> jax.Array:
    # Every num_slices-th row goes to the same slice: each device's rows stay on that device.
    return array_B.reshape(-1, num_slices, *array_B.shape[1:]).swapaxes(0, 1)


def forward(
    config: Config,
    params: electra.Params,
    batch: Batch,
    masked: MaskedInputs,
    sample_seeds_B: jax.Array,
    dropout_seeds_B: jax.Array | None,
    attend: Attend,
) -> losses.Sums:
    """Generator, sampling, discriminator: metric sums."""
    attention_mask, token_types = batch["attention_mask"], batch["token_type_ids"]
    logits_BMV = electra.apply_generator(
        config.architecture,
        params,
        masked.masked_ids_BT,
        attention_mask,
        token_types,
        masked.positions_BM,
        dropout_seeds_B,
        attend,
    )
    objective = config.objective
    with jax.named_scope("sampling"):
        sampled_BM = masking.sample_replacements(
            sample_seeds_B, logits_BMV, masked.targets_BM, objective.temperature, objective.disallow_correct
        )
    with jax.named_scope("generator_loss"):
        sums = losses.masked_lm_sums(logits_BMV, masked.targets_BM, masked.weights_BM, sampled_BM)
    if not objective.electra_objective:
        return sums
    corrupted = masking.corrupt(batch["input_ids"], masked, sampled_BM)
    logits_BT = electra.apply_discriminator(
        config.architecture, params, corrupted.corrupted_ids_BT, attention_mask, token_types, dropout_seeds_B, attend
    )
    return sums | losses.replaced_token_sums(logits_BT, corrupted.is_replaced_BT, attention_mask)


def total_loss(config: Config, sums: losses.Sums, counts: losses.Sums) -> jax.Array:
    """generator_weight * masked-LM loss + discriminator_weight * replaced-token loss."""
    means = losses.mean_losses(sums, counts)
    loss = config.objective.generator_weight * means["generator_loss"]
    if "discriminator_loss" in means:
        loss += config.objective.discriminator_weight * means["discriminator_loss"]
    return loss
