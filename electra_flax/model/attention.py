"""Scaled dot-product attention with dropout: which implementation runs where, and the one that runs everywhere.

Array names: B batch, T tokens, S tokens attended to, H heads, K head size, D = H * K hidden.
"""

from __future__ import annotations

import math
from typing import Protocol

import jax
import jax.numpy as jnp

from electra_flax.model import randomness

# What a masked key's score is lowered by (docs/semantics.md, section 8).
MASK_BIAS = -10000.0


class Attend(Protocol):
    """Attention of one layer. Keys at padding are masked; queries there are computed all the same."""

    def __call__(
        self,
        query_BTD: jax.Array,
        key_BSD: jax.Array,
        value_BSD: jax.Array,
        attention_mask_BS: jax.Array,
        seeds_B: jax.Array | None,
        *,
        num_heads: int,
        rate: float,
    ) -> jax.Array:
        """Return context_BTD in the type of the query; softmax in float32; no dropout without seeds."""
        ...


def xla_attention(
    query_BTD: jax.Array,
    key_BSD: jax.Array,
    value_BSD: jax.Array,
    attention_mask_BS: jax.Array,
    seeds_B: jax.Array | None,
    *,
    num_heads: int,
    rate: float,
) -> jax.Array:
    """Return the plain form, for any device and any shape; see Attend."""
    batch, tokens, width = query_BTD.shape

    def heads(x: jax.Array) -> jax.Array:
        return x.reshape(batch, tokens, num_heads, width // num_heads)

    query_BTHK, key_BSHK, value_BSHK = heads(query_BTD), heads(key_BSD), heads(value_BSD)
    score_BHTS = jnp.einsum("BTHK,BSHK->BHTS", query_BTHK, key_BSHK, preferred_element_type=jnp.float32)
    score_BHTS = score_BHTS / math.sqrt(width // num_heads) + mask_bias(attention_mask_BS)[:, None, None, :]
    probability_BHTS = jax.nn.softmax(score_BHTS, axis=-1).astype(query_BTD.dtype)
    probability_BHTS = randomness.dropout(probability_BHTS, rate, seeds_B)
    return jnp.einsum("BHTS,BSHK->BTHK", probability_BHTS, value_BSHK).reshape(batch, tokens, width)


def mask_bias(attention_mask_BS: jax.Array) -> jax.Array:
    """Return 0 for tokens, -10000 for padding, float32."""
    return (1.0 - attention_mask_BS.astype(jnp.float32)) * MASK_BIAS
