"""Scaled dot-product attention with dropout: which implementation runs where, and the one that runs everywhere.

Array names: B batch, T tokens, S tokens attended to, H heads, K head size, D = H * K hidden.
"""

from __future__ import annotations

import math
from typing import Literal, Protocol

import jax
import jax.numpy as jnp

from electra_flax.model import randomness

# What a masked key's score is lowered by (docs/semantics.md, section 8).
MASK_BIAS = -10000.0
Sight = Literal["all", "left", "right"]
"""What a token attends to: all of its row, or itself and what lies on one side of it."""


class Attend(Protocol):
    """Attention of one layer. Keys at padding are masked; queries there are computed all the same.

    The mask is 1 at tokens and 0 at padding. Where `is_packed`, a token's is the number of its example in the row, from
    1 on, and it attends to that example alone. `sight` says which of these it sees.
    """

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
        is_packed: bool = False,
        sight: Sight = "all",
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
    is_packed: bool = False,
    sight: Sight = "all",
) -> jax.Array:
    """Return the plain form, for any device and any shape; see Attend."""
    batch, tokens, width = query_BTD.shape

    def heads(x: jax.Array) -> jax.Array:
        return x.reshape(batch, tokens, num_heads, width // num_heads)

    query_BTHK, key_BSHK, value_BSHK = heads(query_BTD), heads(key_BSD), heads(value_BSD)
    score_BHTS = jnp.einsum("BTHK,BSHK->BHTS", query_BTHK, key_BSHK, preferred_element_type=jnp.float32)
    bias_BTS = segment_bias(attention_mask_BS) if is_packed else mask_bias(attention_mask_BS)[:, None, :]
    if sight != "all":
        # Not the sum of both: padding all of whose tokens are masked attends as if none were, as the original's does.
        bias_BTS = jnp.minimum(bias_BTS, sight_bias(tokens, sight)[None])
    score_BHTS = score_BHTS / math.sqrt(width // num_heads) + bias_BTS[:, None]
    probability_BHTS = jax.nn.softmax(score_BHTS, axis=-1).astype(query_BTD.dtype)
    probability_BHTS = randomness.dropout(probability_BHTS, rate, seeds_B)
    return jnp.einsum("BHTS,BSHK->BTHK", probability_BHTS, value_BSHK).reshape(batch, tokens, width)


def mask_bias(attention_mask_BS: jax.Array) -> jax.Array:
    """Return 0 for tokens, -10000 for padding, float32."""
    return (1.0 - attention_mask_BS.astype(jnp.float32)) * MASK_BIAS


def segment_bias(segments_BS: jax.Array) -> jax.Array:
    """Return 0 where query and key are of one example, -10000 elsewhere, float32 [B, T, S].

    Nobody reads what padding attends to: all, as in the kernel.
    """
    query_BT1, key_B1S = segments_BS[:, :, None], segments_BS[:, None, :]
    return jnp.where((query_BT1 == key_B1S) | (query_BT1 == 0), 0.0, MASK_BIAS)


def sight_bias(tokens: int, sight: Sight) -> jax.Array:
    """Return 0 where a token (first) sees another (second), -10000 elsewhere, float32 [T, S]."""
    token_TS, seen_TS = (jax.lax.broadcasted_iota(jnp.int32, (tokens, tokens), dim) for dim in (0, 1))
    is_seen_TS = seen_TS <= token_TS if sight == "left" else seen_TS >= token_TS
    return jnp.where(is_seen_TS, 0.0, MASK_BIAS)
