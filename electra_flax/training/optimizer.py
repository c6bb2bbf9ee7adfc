"""The original's AdamW without bias correction, and its schedule (docs/semantics.md, section 10); and LAMB."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from electra_flax.config.schema import OptimizerConfig
from electra_flax.trees import tree_names

# (regex over "a/b/c" parameter names, whether decayed); the first match decides.
WEIGHT_DECAY_RULES: tuple[tuple[str, bool], ...] = (
    (r"LayerNorm/", False),
    (r"/bias$", False),
    (r".*", True),
)


_EMBEDDINGS = r"^electra/embeddings(_project)?/"
_LAYER = re.compile(r"^electra/encoder/layer/(\d+)/")


class AdamState(NamedTuple):
    """First and second moments, shaped as the parameters."""

    m: optax.Updates
    v: optax.Updates


def make_optimizer(
    config: OptimizerConfig, num_steps: int, corrects_bias: bool = False
) -> optax.GradientTransformation:
    """Clip to the global norm, Adam, decoupled decay, for LAMB the trust ratio, learning rate.

    `corrects_bias`: AdamW divides its moments by what they lack in the first steps, as LAMB always does and torch's.
    """
    is_lamb = config.algorithm == "lamb"
    scale_by_adam = optax.scale_by_adam if is_lamb or corrects_bias else scale_by_uncorrected_adam
    parts = [
        optax.clip_by_global_norm(config.max_grad_norm),
        scale_by_adam(config.beta1, config.beta2, config.epsilon),
        optax.add_decayed_weights(config.weight_decay, mask=is_decayed),
    ]
    if is_lamb:
        parts.append(optax.masked(optax.scale_by_trust_ratio(), is_decayed))
    parts.append(optax.scale_by_learning_rate(lambda step: learning_rate(step, config, num_steps)))
    return optax.chain(*parts)


def learning_rate(step: jax.Array | int, config: OptimizerConfig, num_steps: int) -> jax.Array:
    """Polynomial decay to 0 at num_steps times linear warmup; 0 at step 0, so the first update changes nothing."""
    step = jnp.asarray(step, jnp.float32)
    # (T - t) / T, not 1 - t / T: the subtraction of whole numbers is exact, also near the end.
    decay = ((num_steps - jnp.minimum(step, num_steps)) / num_steps) ** config.decay_power
    warmup = jnp.minimum(1.0, step / config.warmup_steps) if config.warmup_steps else 1.0
    return config.learning_rate * decay * warmup


def scale_by_uncorrected_adam(beta1: float, beta2: float, epsilon: float) -> optax.GradientTransformation:
    """m / (sqrt(v) + epsilon) with no bias correction; optax's own Adam always corrects."""

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


def scale_by_layer(decay: float, num_layers: int, below_top: int) -> optax.GradientTransformation:
    """Multiplies each parameter's update by decay ** (layers between it and the head), for fine-tuning.

    The head's exponent is 0, that of the top layer `below_top`: 1 in the paper, 2 in the original's code
    (docs/semantics.md, section 10); the embeddings are one below the first layer.
    """

    def exponent(name: str) -> int:
        if re.search(_EMBEDDINGS, name):
            return num_layers + below_top
        layer = _LAYER.search(name)
        return num_layers - 1 - int(layer[1]) + below_top if layer else 0

    def scale(updates: optax.Updates, params: optax.Params | None = None) -> optax.Updates:
        del params
        return jax.tree.map(lambda name, update: update * decay ** exponent(name), tree_names(updates), updates)

    return optax.stateless(scale)


def is_decayed(params: Any) -> Any:
    """True for every parameter that weight decay touches."""

    def decide(name: str) -> bool:
        return next(decayed for pattern, decayed in WEIGHT_DECAY_RULES if re.search(pattern, name))

    return jax.tree.map(decide, tree_names(params))
