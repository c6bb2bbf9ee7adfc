"""One step of fine-tuning and one of prediction, on the mesh and with the optimizer of pretraining."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from electra_flax.config.architecture import Architecture
from electra_flax.config.optimizer import OptimizerConfig
from electra_flax.finetuning.batches import collate, sorted_batches
from electra_flax.finetuning.encoding import Row
from electra_flax.finetuning.heads import Batch, Head, Outputs
from electra_flax.finetuning.task import Training
from electra_flax.model import electra, randomness
from electra_flax.model.attention import Attend, xla_attention
from electra_flax.model.sharding import batch_sharding, global_batch, rows_of_process, state_shardings, whole
from electra_flax.runtime.console import progress
from electra_flax.runtime.processes import is_main
from electra_flax.training.optimizers import learning_rate, make_optimizer, scale_by_layer
from electra_flax.training.state import TrainState, apply_gradients, sum_over_slices
from electra_flax.trees import Params

# How many powers of layer_decay the top layer has below the head; the original's code counts one more than its paper.
_BELOW_TOP = {"paper": 1, "original": 2}


class Network(NamedTuple):
    """An encoder with a head, and what goes in."""

    architecture: Architecture
    """Of the encoder."""
    head: Head
    mesh: Mesh
    pad_id: int
    is_tagging: bool
    attend: Attend = xla_attention


def rates_of(training: Training, num_steps: int) -> OptimizerConfig:
    """Return the optimizer's settings, in the terms of pretraining."""
    return OptimizerConfig(
        learning_rate=training.learning_rate,
        warmup_steps=round(num_steps * training.warmup_proportion),
        weight_decay=training.weight_decay,
        epsilon=training.epsilon,
        max_grad_norm=training.max_grad_norm,
    )


def optimizer_of(training: Training, num_layers: int, num_steps: int) -> optax.GradientTransformation:
    """Return AdamW, as in pretraining or with bias correction, each layer with its own part of the learning rate."""
    below_top = _BELOW_TOP[training.layer_decay_form]
    layers = scale_by_layer(training.layer_decay, num_layers, below_top)
    return optax.chain(make_optimizer(rates_of(training, num_steps), num_steps, training.bias_correction), layers)


class Steps(NamedTuple):
    """What is compiled once for all seeds, and once for each length of a batch."""

    init: Callable[[Params], TrainState]
    """Step 0 with these parameters, placed on the mesh."""
    shapes: TrainState
    """Of a state's arrays."""
    train: Callable[[TrainState, Batch, np.uint32], tuple[TrainState, dict[str, jax.Array]]]
    """(state, batch, seed) -> (next state, what a loop wants to know, and "loss" and "steps")."""
    predict: Callable[[Params, Batch], Outputs]
    """(params, batch) -> the head's outputs."""


def make_steps(network: Network, training: Training, num_steps: int, params: Params) -> Steps:
    """Return the compiled steps; `params` are arrays or their shapes."""
    optimizer = optimizer_of(training, network.architecture.model.num_hidden_layers, num_steps)

    def schedule(step: jax.Array) -> jax.Array:
        return learning_rate(step, rates_of(training, num_steps), num_steps)

    def init(params: Params) -> TrainState:
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    shapes = jax.eval_shape(init, params)
    shardings = state_shardings(shapes, network.mesh)
    return Steps(
        jax.jit(init, out_shardings=shardings),
        shapes,
        jax.jit(
            functools.partial(_train_step, network, training, optimizer, schedule),
            donate_argnums=0,  # two states at once would not fit where one does
            in_shardings=(shardings, batch_sharding(network.mesh), None),
            out_shardings=(shardings, whole(network.mesh)),
        ),
        make_predict_step(network),
    )


def _train_step(
    network: Network,
    training: Training,
    optimizer: optax.GradientTransformation,
    schedule: Callable[[jax.Array], jax.Array],
    state: TrainState,
    batch: Batch,
    seed: jax.Array,
) -> tuple[TrainState, dict[str, jax.Array]]:
    def slice_loss(params: Params, rows: Any) -> jax.Array:
        batch, seeds_B, divisor_B = rows
        hidden_BTD = _encode(network, params, batch, seeds_B)
        # 4: the encoder folds in the numbers below (electra.py).
        loss_B = network.head.loss(params, hidden_BTD, batch, randomness.fold_in(seeds_B, 4))
        loss: jax.Array = (loss_B * batch["weight"]).sum() / divisor_B[0]
        return loss

    rows = batch["weight"].shape[0]
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    # The whole batch's, so that the slices' losses add up; given to each of them as a value of its rows.
    divisor_B = jnp.broadcast_to(_divisor(batch, training.loss, network.is_tagging), rows)
    loss, grads = sum_over_slices(
        functools.partial(jax.value_and_grad(slice_loss), state.params),
        (batch, randomness.row_seeds(key, rows), divisor_B),
        training.gradient_accumulation_steps,
    )
    after, how = apply_gradients(optimizer, state, grads, loss)
    tokens = (batch["attention_mask"] * batch["weight"][:, None]).sum()
    return after, how | {"loss": loss, "steps": jnp.ones(()), "tokens": tokens, "learning_rate": schedule(state.step)}


def _encode(network: Network, params: Params, batch: Batch, seeds_B: jax.Array | None) -> jax.Array:
    return electra.apply_encoder(
        network.architecture, {"electra": params["electra"]}, batch["input_ids"], batch["attention_mask"],
        batch["token_type_ids"], seeds_B, network.attend,
    )  # fmt: skip


def _divisor(batch: Batch, loss: str, is_tagging: bool) -> jax.Array:
    """Return what a batch's summed loss is divided by: 1, its examples, or its tags."""
    if loss == "sum":
        return jnp.ones(())
    if is_tagging:
        return jnp.maximum(1.0, ((batch["target"] >= 0) * batch["weight"][:, None]).sum())
    examples: jax.Array = batch["weight"].sum()
    return examples


def make_predict_step(network: Network) -> Callable[[Params, Batch], Outputs]:
    """Return (params, batch) -> the head's outputs; compiled once for each length of a batch."""
    return jax.jit(
        functools.partial(apply, network),
        in_shardings=(None, batch_sharding(network.mesh)),
        out_shardings=whole(network.mesh),
    )


def apply(network: Network, params: Params, batch: Batch) -> Outputs:
    """Return the head's outputs, without dropout."""
    hidden_BTD = _encode(network, params, batch, None)
    return network.head.predict(params, hidden_BTD, batch)


def make_batch(network: Network, rows: Sequence[Row], indices: np.ndarray, batch_size: int, longest: int) -> Batch:
    """Return these rows on the mesh; every process gives its part of them."""
    batch = collate(rows, indices, batch_size, longest, network.pad_id, network.is_tagging)
    own = rows_of_process(network.mesh, batch_size)
    return global_batch(network.mesh, batch_size, own, {name: values[own] for name, values in batch.items()})


def predict_rows(
    network: Network,
    predict_step: Callable[[Params, Batch], Outputs],
    params: Params,
    rows: Sequence[Row],
    batch_size: int,
    longest: int,
) -> list[dict[str, np.ndarray]]:
    """Return the outputs of each row, in the order of the rows."""
    found: list[dict[str, np.ndarray]] = [{}] * len(rows)  # batches come by length, answers go back to their places
    batches = sorted_batches(rows, batch_size)
    with progress(len(batches), "predicting", "batches", delay=5, enabled=is_main()) as bar:
        for indices in batches:
            batch = make_batch(network, rows, indices, batch_size, longest)
            outputs = jax.device_get(predict_step(params, batch))
            for place, index in enumerate(indices):
                found[index] = {name: value[place] for name, value in outputs.items()}
            bar.update()
    return found
