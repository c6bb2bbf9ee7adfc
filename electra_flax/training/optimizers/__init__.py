"""Updates of parameters: the clipped gradient, an optimizer, and the schedule of the learning rate.

An optimizer is one file; a new one is a file here, a line in the table, and its name in the schema.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from electra_flax.config.optimizer import OptimizerConfig
from electra_flax.training.optimizers.adamw import ADAMW
from electra_flax.training.optimizers.lamb import LAMB
from electra_flax.training.optimizers.optimizer import Optimizer
from electra_flax.trees import tree_names

OPTIMIZERS: dict[str, Optimizer] = {"adamw": ADAMW, "lamb": LAMB}

_EMBEDDINGS = r"^electra/embeddings(_project)?/"
_LAYER = re.compile(r"^electra/encoder/layer/(\d+)/")


Rate = Callable[[jax.Array | int], jax.Array]
"""Step -> learning rate."""


def make_optimizer(
    config: OptimizerConfig, num_steps: int, corrects_bias: bool = False, rate: Rate | None = None
) -> optax.GradientTransformation:
    """Return the chain: clip to the global norm, the optimizer's own parts, the learning rate, or another `rate`."""
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        *OPTIMIZERS[config.algorithm].parts(config, corrects_bias),
        optax.scale_by_learning_rate(rate or (lambda step: learning_rate(step, config, num_steps))),
    )


def learning_rate(step: jax.Array | int, config: OptimizerConfig, num_steps: int) -> jax.Array:
    """Return polynomial decay to 0 at num_steps times linear warmup: 0 at step 0, where nothing changes yet."""
    return scheduled(step, config.learning_rate, config.warmup_steps, config.decay_power, num_steps)


def scheduled(step: jax.Array | int, peak: float, warmup_steps: int, decay_power: float, num_steps: int) -> jax.Array:
    """Return `learning_rate` of these numbers."""
    step = jnp.asarray(step, jnp.float32)
    # (T - t) / T, not 1 - t / T: the subtraction of whole numbers is exact, also near the end.
    decay = ((num_steps - jnp.minimum(step, num_steps)) / num_steps) ** decay_power
    warmup = jnp.minimum(1.0, step / warmup_steps) if warmup_steps else 1.0
    return peak * decay * warmup


def scale_by_layer(decay: float, num_layers: int, below_top: int) -> optax.GradientTransformation:
    """Multiply each parameter's update by decay ** (layers between it and the head), for fine-tuning.

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
