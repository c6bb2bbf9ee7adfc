"""Fingerprints of a checkpoint's numbers: bytes that changed on a disk show."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from electra_flax.training.state import TrainState


def is_whole(read: Any, expected: list[int]) -> bool:
    """Return whether a state, or the parameters alone, are those of the fingerprint of a state."""
    if isinstance(read, TrainState):
        return np.array_equal(fingerprint(read), expected)
    leaves = jax.tree.leaves(read)
    found = [int(fingerprint(leaf)[0]) for leaf in leaves]  # one by one: no second copy of all
    # A state's leaves are its step, its parameters and its moments, in this order.
    return found == expected[1 : 1 + len(leaves)]


@jax.jit
def fingerprint(tree: Any) -> jax.Array:
    """Return a number for each array of 32-bit values, uint32 [arrays]; the same however the arrays are sharded.

    Sums of all bits, each weighed by its place: one changed value always shows.
    """

    def of_array(leaf: jax.Array) -> jax.Array:
        # Bits and not values: NaN equals itself, and -0 is not 0. Whole numbers modulo 2^32, because their sum is the
        # same in any order: the devices of another mesh, which each add up other parts, find the same number.
        bits = jax.lax.bitcast_convert_type(leaf, jnp.uint32)
        weights = jnp.ones(bits.shape, jnp.uint32)
        # Weighed by their places, values that were exchanged nearly always show too. Odd weights have an inverse modulo
        # 2^32, so that a change of one value never vanishes.
        for dim in range(bits.ndim):
            weights *= (2 * jax.lax.broadcasted_iota(jnp.uint32, bits.shape, dim) + 1) * (2 * dim + 3)
        return (bits * weights).sum(dtype=jnp.uint32)

    return jnp.stack([of_array(leaf) for leaf in jax.tree.leaves(tree)])
