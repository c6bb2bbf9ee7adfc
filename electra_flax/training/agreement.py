"""What processes agree on behind each step: whether to save, whether to stop."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from electra_flax.model.sharding import whole


class Wishes(NamedTuple):
    """What at least one process wants to happen after a step: the same answer in all of them."""

    save: bool
    stop: bool


class Agreement:
    """Wishes of all processes, gathered behind each step on the devices and read a step later: nobody waits for it."""

    def __init__(self, mesh: Mesh) -> None:
        # A row for each device, split over all axes of the mesh: the maximum over rows is "any of them". It runs on
        # the devices, in order with the steps, and so needs no barrier between hosts, at which each would wait.
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._any = jax.jit(lambda wishes: wishes.max(axis=0), out_shardings=whole(mesh))

    def send(self, wishes: Wishes) -> jax.Array | np.ndarray:
        """Return own wishes on their way, int32 [2], to be given to `receive` after the next step was dispatched."""
        own = np.asarray(wishes, np.int32)
        if jax.process_count() == 1:  # nobody to ask: no program need be compiled
            return own
        rows = np.tile(own, (jax.local_device_count(), 1))
        any_wish: jax.Array = self._any(jax.make_array_from_process_local_data(self._sharding, rows))
        return any_wish

    def receive(self, sent: jax.Array | np.ndarray) -> Wishes:
        return Wishes(*(bool(wish) for wish in np.asarray(sent)))
