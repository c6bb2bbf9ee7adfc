"""The state of a run, from gradients to the next one, and gradients in slices: what all training steps share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from electra_flax.trees import Params


class TrainState(NamedTuple):
    """All that changes from step to step."""

    step: jax.Array
    params: Params
    opt_state: optax.OptState


def apply_gradients(
    optimizer: optax.GradientTransformation, state: TrainState, grads: Params, loss: jax.Array
) -> tuple[TrainState, dict[str, jax.Array]]:
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
