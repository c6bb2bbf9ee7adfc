"""The state of a run, from gradients to the next one, and gradients in slices: what all training steps share."""

from __future__ import annotations

import functools
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
        moved = move(optimizer, Moved(state.params, state.opt_state), grads)
        norm = optax.tree.norm(grads)
        is_finite = all_finite(norm, loss)
        params, opt_state = keep_where(is_finite, moved, Moved(state.params, state.opt_state))
    how = {"grad_norm": norm, "skipped": 1 - is_finite.astype(jnp.float32)}
    return TrainState(state.step + 1, params, opt_state), how


class Moved(NamedTuple):
    """What an optimizer changes."""

    params: Params
    opt_state: optax.OptState


def move(optimizer: optax.GradientTransformation, old: Moved, grads: Params) -> Moved:
    """Return what becomes of parameters and the optimizer's state."""
    updates, opt_state = optimizer.update(grads, old.opt_state, old.params)
    return Moved(optax.apply_updates(old.params, updates), opt_state)


def all_finite(*numbers: jax.Array) -> jax.Array:
    """Return whether all of them are: losses and norms, which one number that is not finite makes so too."""
    return functools.reduce(jnp.logical_and, map(jnp.isfinite, numbers))


def keep_where(is_finite: jax.Array, new: Any, old: Any) -> Any:
    """Return the new tree, or the old one; whole numbers are counters of schedules, which go on with the step."""
    return jax.tree.map(lambda new, old: new if new.dtype == jnp.int32 else jnp.where(is_finite, new, old), new, old)


def sum_over_slices(compute: Callable[[Any], Any], rows: Any, num_slices: int, together: int = 1) -> Any:
    """Return the sum of what `compute` makes of each slice of the rows, one slice in memory at a time.

    So many consecutive rows as stay `together`, from the first on, are in one slice.
    """
    return over_slices(lambda rows: (compute(rows), ()), rows, num_slices, together)[0]


def over_slices(
    compute: Callable[[Any], tuple[Any, Any]], rows: Any, num_slices: int, together: int = 1
) -> tuple[Any, Any]:
    """Return as `sum_over_slices`, and rows, of pairs that `compute` makes of each slice: what is added, and rows."""
    if num_slices == 1:
        return compute(rows)

    def add_slice(total: Any, rows: Any) -> tuple[Any, Any]:
        more, made = compute(rows)
        return jax.tree.map(jnp.add, total, more), made

    sliced = jax.tree.map(lambda array: _slices(array, num_slices, together), rows)
    shapes, _ = jax.eval_shape(compute, jax.tree.map(lambda array: array[0], sliced))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, made = jax.lax.scan(add_slice, zeros, sliced)
    return total, jax.tree.map(lambda array: _whole(array, together), made)


def _slices(array_B: jax.Array, num_slices: int, together: int) -> jax.Array:
    # Every num_slices-th group of rows goes to the same slice: each device's rows stay on that device.
    grouped = array_B.reshape(-1, num_slices, together, *array_B.shape[1:]).swapaxes(0, 1)
    return grouped.reshape(num_slices, -1, *array_B.shape[1:])


def _whole(array: jax.Array, together: int) -> jax.Array:
    """Undo `_slices`."""
    grouped = array.reshape(array.shape[0], -1, together, *array.shape[2:]).swapaxes(0, 1)
    return grouped.reshape(-1, *array.shape[2:])
