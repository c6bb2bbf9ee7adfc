"""Whether the numbers of a checkpoint are those that were saved: bytes that changed on a disk show."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from electra_flax.training.state import TrainState


def is_whole(read: Any, expected: list[int]) -> bool:
    """Whether a state, or the parameters alone, are those of the fingerprint of a state."""
    if isinstance(read, TrainState):
        return np.array_equal(fingerprint(read), expected)
    leaves = jax.tree.leaves(read)
    found = [int(fingerprint(leaf)[0]) for leaf in leaves]  # one by one: no second copy of all
    return found == expected[1 : 1 + len(leaves)]  # after the step


@jax.jit
def fingerprint(tree: Any) -> jax.Array:
    """A number for each array of 32-bit values, uint32 [arrays]; the same however the arrays are sharded.

    Sums of all bits, each weighed by its place: one changed value always shows.
    """

    def of_array(leaf: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(leaf, jnp.uint32)
        weights = jnp.ones(bits.shape, jnp.uint32)
        for dim in range(bits.ndim):  # odd, so that no bit is lost
            weights *= (2 * jax.lax.broadcasted_iota(jnp.uint32, bits.shape, dim) + 1) * (2 * dim + 3)
        return (bits * weights).sum(dtype=jnp.uint32)

    return jnp.stack([of_array(leaf) for leaf in jax.tree.leaves(tree)])
