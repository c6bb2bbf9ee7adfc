"""The state that a run begins with, and the shapes of states and batches."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, Sharding

from electra_flax.config.schema import Config
from electra_flax.data.packing import ROW_ARRAYS
from electra_flax.model import electra
from electra_flax.model.sharding import state_shardings
from electra_flax.training.optimizers import make_optimizer
from electra_flax.training.optimizers.sides import init_optimizers
from electra_flax.training.packed_masking import max_predictions_per_row
from electra_flax.training.state import TrainState
from electra_flax.trees import Params, nested


def init_state(config: Config, mesh: Mesh, change: Callable[[Params], Params] | None = None) -> TrainState:
    """Return a fresh state, created in place on the mesh; `change` is applied to the original's first values."""
    create = functools.partial(_create_state, config, change)
    state: TrainState = jax.jit(create, out_shardings=state_shardings(abstract_state(config), mesh))()
    return state


def abstract_state(config: Config) -> TrainState:
    """Return the state's tree with shapes and dtypes instead of arrays."""
    state: TrainState = jax.eval_shape(functools.partial(_create_state, config))
    return state


def abstract_frozen(config: Config, sharding: Sharding | None = None) -> tuple[Params, ...]:
    """Return what steps take beside state and batch: the shapes of a frozen generator, in the type of activations."""
    if not config.samples_online:
        return ()
    dtype = jnp.dtype(config.training.compute_dtype)
    shapes = electra.given_shapes(config.architecture)
    leaves = {name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for name, shape in shapes.items()}
    return (nested(leaves),)


def abstract_batch(config: Config, sharding: Sharding | None = None) -> dict[str, jax.ShapeDtypeStruct]:
    """Return a training batch's shapes and dtypes instead of arrays."""
    rows = config.training.batch_size
    shape = (rows, config.data.max_seq_length)
    shapes = dict.fromkeys(ROW_ARRAYS if config.is_packed else ROW_ARRAYS[:3], shape)
    if config.is_packed:
        shapes["examples"] = (rows, config.packing.segments)
    if config.data.corrupted is not None:
        shapes["sampled_ids"] = (rows, max_predictions_per_row(config))
    return {name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding) for name, shape in shapes.items()}


def _create_state(config: Config, change: Callable[[Params], Params] | None = None) -> TrainState:
    params = electra.init(config.architecture, jax.random.key(config.training.seed))
    if change is not None:
        params = change(params)
    init = init_optimizers if config.optimizer.decoupled else _init_optimizer
    return TrainState(jnp.zeros((), jnp.int32), params, init(config, params))


def _init_optimizer(config: Config, params: Params) -> optax.OptState:
    return make_optimizer(config.optimizer, config.training.num_steps).init(params)
