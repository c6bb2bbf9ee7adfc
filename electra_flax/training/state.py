"""The state of a training run."""

from __future__ import annotations

from typing import NamedTuple

import jax
import optax

from electra_flax.trees import Params


class TrainState(NamedTuple):
    """All that changes from step to step."""

    step: jax.Array
    params: Params
    opt_state: optax.OptState
