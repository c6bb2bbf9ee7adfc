"""LAMB for very large batches (You et al. 2020, algorithm 2): decayed parameters move in proportion to their norm."""

from __future__ import annotations

import optax

from electra_flax.config.optimizer import OptimizerConfig
from electra_flax.training.optimizers.optimizer import Optimizer, is_decayed


def parts(config: OptimizerConfig, corrects_bias: bool) -> list[optax.GradientTransformation]:
    """Return LAMB's parts; bias is always corrected, as the paper has it."""
    del corrects_bias
    return [
        optax.scale_by_adam(config.beta1, config.beta2, config.epsilon),
        optax.add_decayed_weights(config.weight_decay, mask=is_decayed),
        optax.masked(optax.scale_by_trust_ratio(), is_decayed),
    ]


LAMB = Optimizer(parts)
