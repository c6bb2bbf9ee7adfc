"""AdamW as the original has it: no bias correction, decoupled decay (docs/semantics.md, section 10)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from electra_flax.config.optimizer import OptimizerConfig
from electra_flax.training.optimizers.optimizer import Optimizer, is_decayed


class AdamState(NamedTuple):
    """First and second moments, shaped as the parameters."""

    m: optax.Updates
    v: optax.Updates


def parts(config: OptimizerConfig, corrects_bias: bool) -> list[optax.GradientTransformation]:
    """Return AdamW's parts; `corrects_bias` divides moments by what they lack in the first steps, as torch's AdamW."""
    scale_by_adam = optax.scale_by_adam if corrects_bias else scale_by_uncorrected_adam
    return [
        scale_by_adam(config.beta1, config.beta2, config.epsilon),
        optax.add_decayed_weights(config.weight_decay, mask=is_decayed),
    ]


def scale_by_uncorrected_adam(beta1: float, beta2: float, epsilon: float) -> optax.GradientTransformation:
    """Return m / (sqrt(v) + epsilon) with no bias correction; optax's own Adam always corrects."""

    def init(params: optax.Params) -> AdamState:
        return AdamState(jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params))

    def update(
        grads: optax.Updates, state: AdamState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, AdamState]:
        del params
        m = jax.tree.map(lambda old, g: beta1 * old + (1 - beta1) * g, state.m, grads)
        v = jax.tree.map(lambda old, g: beta2 * old + (1 - beta2) * jnp.square(g), state.v, grads)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + epsilon), m, v), AdamState(m, v)

    return optax.GradientTransformation(init, update)


ADAMW = Optimizer(parts, AdamState, {"m": "adam_m", "v": "adam_v"}, has_adams_rates=True)
