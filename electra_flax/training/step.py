"""One training step and one evaluation step, as pure functions of (state, batch).

Every random decision is drawn from fold_in(key(seed), step), so no key is part of the state and a resumed run repeats
what an uninterrupted one would have done.

Array names: B batch, T tokens.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from electra_flax.config.schema import Config, TrainingConfig
from electra_flax.model.attention import Attend, xla_attention
from electra_flax.model.sharding import batch_sharding, state_shardings, whole
from electra_flax.training import decoupled
from electra_flax.training.initial_state import abstract_state
from electra_flax.training.losses import Sums
from electra_flax.training.objectives.objective import Objective, batch_seeds
from electra_flax.training.optimizers import learning_rate, make_optimizer
from electra_flax.training.state import TrainState, apply_gradients, sum_over_slices
from electra_flax.trees import Batch, Params, flat


def make_train_step(
    config: Config, objective: Objective, mesh: Mesh, attend: Attend = xla_attention
) -> Callable[..., tuple[TrainState, Sums]]:
    """Return (state, batch) -> (next state, metric sums); compiled, the old state's memory is reused.

    A frozen generator's weights come after the batch (initial_state.abstract_frozen).
    """
    optimizer = make_optimizer(config.optimizer, config.training.num_steps)

    def coupled(state: TrainState, batch: Batch, key: jax.Array, *frozen: Params) -> tuple[TrainState, Sums]:
        slices = config.training.gradient_accumulation_steps
        grads, sums = accumulate_gradients(objective, state.params, batch, key, state.step, attend, slices, *frozen)
        state, how = apply_gradients(optimizer, state, grads, objective.loss(sums, sums))
        return state, sums | how

    advance = decoupled.make_advance(config, objective, attend) if config.optimizer.decoupled else coupled

    def train_step(state: TrainState, batch: Batch, *frozen: Params) -> tuple[TrainState, Sums]:
        key = jax.random.fold_in(jax.random.key(config.training.seed), state.step)
        rate = learning_rate(state.step, config.optimizer, config.training.num_steps)
        state, sums = advance(state, batch, key, *frozen)
        return state, sums | {"learning_rate": rate}

    shardings = state_shardings(abstract_state(config), mesh)
    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(shardings, batch_sharding(mesh), *_of_frozen(config, mesh)),
        out_shardings=(shardings, None),
    )


def _of_frozen(config: Config, mesh: Mesh) -> list[NamedSharding]:
    return [whole(mesh)] if config.samples_online else []


def make_norms(objective: Objective, training: TrainingConfig) -> Callable[..., dict[str, dict[str, jax.Array]]]:
    """Return (state, batch, a frozen generator) -> the norm of every parameter and of its gradient, by name.

    For a look at a failed run.
    """

    def norms(state: TrainState, batch: Batch, *frozen: Params) -> dict[str, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(training.seed), state.step)
        slices = training.gradient_accumulation_steps
        grads, _ = accumulate_gradients(objective, state.params, batch, key, state.step, xla_attention, slices, *frozen)

        def by_name(tree: Params) -> dict[str, jax.Array]:
            return {name: jnp.linalg.norm(leaf) for name, leaf in flat(tree).items()}

        return {"parameter_norms": by_name(state.params), "gradient_norms": by_name(grads)}

    return jax.jit(norms)


def make_eval_step(
    config: Config, objective: Objective, mesh: Mesh, attend: Attend = xla_attention
) -> Callable[..., Sums]:
    """Return (params, batch, key) -> metric sums, without dropout; the same key gives the same masks and samples.

    A frozen generator's weights come last.
    """

    def eval_step(params: Params, batch: Batch, key: jax.Array, *frozen: Params) -> Sums:
        draws = objective.draw(batch, batch_seeds(key, batch), step=None)
        sums = objective.sums(_together(params, *frozen), batch, draws, attend, is_training=False)
        return sums | objective.count(batch, draws)

    return jax.jit(eval_step, in_shardings=(None, batch_sharding(mesh), None, *_of_frozen(config, mesh)))


def _together(params: Params, *frozen: Params) -> Params:
    return functools.reduce(operator.or_, frozen, params)


def accumulate_gradients(
    objective: Objective,
    params: Params,
    batch: Batch,
    key: jax.Array,
    step: jax.Array,
    attend: Attend = xla_attention,
    num_slices: int = 1,
    *frozen: Params,
) -> tuple[Params, Sums]:
    """Return gradients of the whole batch's loss, computed slice by slice, and its metric sums.

    What is `frozen` is used with the parameters and has no gradient.

    The masks and the counts that losses are divided by belong to the whole batch, so the slices' gradients add up to
    exactly those of one large batch, where averaging the slices' means would weigh their tokens unequally.
    """
    draws = objective.draw(batch, batch_seeds(key, batch), step)
    counts = objective.count(batch, draws)

    def slice_loss(params: Params, rows: Any) -> tuple[jax.Array, Sums]:
        batch, draws = rows
        sums = objective.sums(_together(params, *frozen), batch, draws, attend, is_training=True)
        return objective.loss(sums, counts), sums

    slice_gradients = jax.grad(slice_loss, has_aux=True)
    grads, sums = sum_over_slices(
        functools.partial(slice_gradients, params), (batch, draws), num_slices, objective.rows_together
    )
    return grads, sums | counts
