"""Reductions that every compiler does well."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def argmax_last(x: jax.Array) -> jax.Array:
    """Return the index of the first maximum along the last dimension, int32; no gradient. NaN anywhere: the size.

    jnp.argmax reduces pairs of value and index, which XLA's CPU compiler cannot vectorise: four times slower over a
    vocabulary.
    """
    x = jax.lax.stop_gradient(x)
    index = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    return jnp.where(x == x.max(axis=-1, keepdims=True), index, x.shape[-1]).min(axis=-1)
