"""A generator that does not learn: its weights enter every step beside the state, and are no part of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding

from electra_flax.config.schema import Config
from electra_flax.data.vocabulary import Vocabulary
from electra_flax.model.sharding import state_shardings, whole
from electra_flax.training.state import TrainState
from electra_flax.trees import Params, flat, nested

_TABLES, _OURS = "generator/embeddings/", "electra/embeddings/"


class Frozen(NamedTuple):
    """Weights by our names of a generator's, float32, on the host."""

    arrays: Mapping[str, np.ndarray]
    sha256: str
    """Of names and numbers."""

    def place(self, config: Config, mesh: Mesh) -> Params:
        """Return them on every device, in the type of activations."""
        dtype = jnp.dtype(config.training.compute_dtype)
        return nested({name: _placed(value.astype(dtype), whole(mesh)) for name, value in self.arrays.items()})

    def initialize(self, state: TrainState, mesh: Mesh) -> TrainState:
        """Return a state whose discriminator has the generator's embeddings, and their LayerNorm."""
        shardings, params = flat(state_shardings(state.params, mesh)), flat(state.params)
        for name, value in self.arrays.items():
            if name.startswith(_TABLES):
                ours = name.replace(_TABLES, _OURS)
                params[ours] = _placed(value, shardings[ours])
        return state._replace(params=nested(params))


ReadFrozen = Callable[[Config, Vocabulary], Frozen | None]
"""(weights/frozen.py)"""


def _placed(value: np.ndarray, sharding: Sharding) -> jax.Array:
    return jax.make_array_from_callback(value.shape, sharding, value.__getitem__)
