"""One training step and one evaluation step, as pure functions of (state, batch).

Every random decision is drawn from fold_in(key(seed), step), so no key is part of the state and a resumed run repeats
what an uninterrupted one would have done.

Array names: B batch, T tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, Sharding

from electra_flax.config.schema import Config
from electra_flax.data.vocabulary import SpecialTokens
from electra_flax.model import electra
from electra_flax.model.attention import Attend, xla_attention
from electra_flax.model.electra import Params
from electra_flax.model.sharding import Batch, batch_sharding, state_shardings
from electra_flax.training.objectives import make_objective
from electra_flax.training.objectives.objective import Objective, Sums, row_seeds
from electra_flax.training.optimizer import learning_rate, make_optimizer
from electra_flax.training.state import TrainState
from electra_flax.trees import flat


def init_state(config: Config, mesh: Mesh) -> TrainState:
    """Return a fresh state, created in place on the mesh."""

    create = functools.partial(_create_state, config)
    state: TrainState = jax.jit(create, out_shardings=state_shardings(abstract_state(config), mesh))()
    return state


def abstract_state(config: Config) -> TrainState:
    """Return the state's tree with shapes and dtypes instead of arrays."""
    state: TrainState = jax.eval_shape(functools.partial(_create_state, config))
    return state


def abstract_batch(config: Config, sharding: Sharding | None = None) -> dict[str, jax.ShapeDtypeStruct]:
    """Return a batch's shapes and dtypes instead of arrays."""
    shape = (config.training.batch_size, config.data.max_seq_length)
    names = ("input_ids", "attention_mask", "token_type_ids")
    return {name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding) for name in names}


def _create_state(config: Config) -> TrainState:
    params = electra.init(config.architecture, jax.random.key(config.training.seed))
    optimizer = make_optimizer(config.optimizer, config.training.num_steps)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def make_train_step(
    config: Config, special: SpecialTokens, mesh: Mesh, attend: Attend = xla_attention
) -> Callable[[TrainState, Batch], tuple[TrainState, Sums]]:
    """Return (state, batch) -> (next state, metric sums); compiled, the old state's memory is reused."""
    optimizer = make_optimizer(config.optimizer, config.training.num_steps)
    objective = make_objective(config, special)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        key = jax.random.fold_in(jax.random.key(config.training.seed), state.step)
        slices = config.training.gradient_accumulation_steps
        grads, sums = accumulate_gradients(objective, state.params, batch, key, attend, slices)
        rate = learning_rate(state.step, config.optimizer, config.training.num_steps)
        state, how = apply_gradients(optimizer, state, grads, objective.loss(sums, sums))
        return state, sums | how | {"learning_rate": rate}

    shardings = state_shardings(abstract_state(config), mesh)
    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, None),
    )


def apply_gradients(
    optimizer: optax.GradientTransformation, state: TrainState, grads: Params, loss: jax.Array
) -> tuple[TrainState, Sums]:
    """Return the next state, and the gradient's norm and whether the step was skipped, 0 or 1.

    A step that is not finite changes nothing but the counters: its batch is left out.
    """
    with jax.named_scope("optimizer"):
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        norm = optax.tree.norm(grads)
        # The norm and the loss, not each number: one that is not finite makes its sum so too. Whole numbers are
        # counters (of the optimizer's schedule), which go on with `step`.
        is_finite = jnp.isfinite(norm) & jnp.isfinite(loss)
        params, opt_state = jax.tree.map(
            lambda new, old: new if new.dtype == jnp.int32 else jnp.where(is_finite, new, old),
            (params, opt_state),
            (state.params, state.opt_state),
        )
    how = {"grad_norm": norm, "skipped": 1 - is_finite.astype(jnp.float32)}
    return TrainState(state.step + 1, params, opt_state), how


def make_norms(objective: Objective, seed: int) -> Callable[[TrainState, Batch], dict[str, dict[str, jax.Array]]]:
    """Return (state, batch) -> the norm of every parameter and of its gradient, by name: for a look at a failed run."""

    def norms(state: TrainState, batch: Batch) -> dict[str, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        grads, _ = accumulate_gradients(objective, state.params, batch, key)

        def by_name(tree: Params) -> dict[str, jax.Array]:
            return {name: jnp.linalg.norm(leaf) for name, leaf in flat(tree).items()}

        return {"parameter_norms": by_name(state.params), "gradient_norms": by_name(grads)}

    return jax.jit(norms)


def make_eval_step(
    objective: Objective, mesh: Mesh, attend: Attend = xla_attention
) -> Callable[[Params, Batch, jax.Array], Sums]:
    """Return (params, batch, key) -> metric sums, without dropout; the same key gives the same masks and samples."""

    def eval_step(params: Params, batch: Batch, key: jax.Array) -> Sums:
        draws = objective.draw(batch, row_seeds(key, batch["input_ids"].shape[0]))
        sums = objective.sums(params, batch, draws, attend, is_training=False)
        return sums | objective.count(batch, draws)

    return jax.jit(eval_step, in_shardings=(None, batch_sharding(mesh), None))


def accumulate_gradients(
    objective: Objective,
    params: Params,
    batch: Batch,
    key: jax.Array,
    attend: Attend = xla_attention,
    num_slices: int = 1,
) -> tuple[Params, Sums]:
    """Return gradients of the whole batch's loss, computed slice by slice, and its metric sums.

    The masks and the counts that losses are divided by belong to the whole batch, so the slices' gradients add up to
    exactly those of one large batch, where averaging the slices' means would weigh their tokens unequally.
    """
    draws = objective.draw(batch, row_seeds(key, batch["input_ids"].shape[0]))
    counts = objective.count(batch, draws)

    def slice_loss(params: Params, rows: Any) -> tuple[jax.Array, Sums]:
        batch, draws = rows
        sums = objective.sums(params, batch, draws, attend, is_training=True)
        return objective.loss(sums, counts), sums

    slice_gradients = jax.grad(slice_loss, has_aux=True)
    grads, sums = sum_over_slices(functools.partial(slice_gradients, params), (batch, draws), num_slices)
    return grads, sums | counts


def sum_over_slices(compute: Callable[[Any], Any], rows: Any, num_slices: int) -> Any:
    """Return the sum of what `compute` makes of each slice of the rows, one slice in memory at a time."""
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
