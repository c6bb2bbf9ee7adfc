"""How many tokens of an example are hidden, alone in a row or not (docs/semantics.md, section 5)."""

import jax
import jax.numpy as jnp

from electra_flax.config.masking import MaskingConfig


def share_at(masking: MaskingConfig, num_steps: int, step: jax.Array | None) -> float | jax.Array:
    """Return masking.mask_prob of a step, the last one's without a step: what evaluations hide."""
    if step is None or masking.final_mask_prob is None:
        return masking.last_share
    last = num_steps - 1  # steps are counted from 0
    done = step.astype(jnp.float32) / max(last, 1)
    share = masking.mask_prob + (masking.final_mask_prob - masking.mask_prob) * done
    return jnp.where(step >= last, masking.final_mask_prob, share)  # compiled, 6 / 6 need not be 1


def num_wanted(
    num_tokens: jax.Array, num_candidates: jax.Array, mask_prob: float | jax.Array, max_predictions: int
) -> jax.Array:
    """Return how many of an example's tokens are chosen, int32.

    Of n tokens, special ones included, max(1, min(max_predictions, round(n * mask_prob))), the product in float32,
    halves to even; no more than there are candidates.
    """
    share = jnp.round(num_tokens.astype(jnp.float32) * jnp.float32(mask_prob))
    return jnp.minimum(jnp.clip(share, 1, max_predictions).astype(jnp.int32), num_candidates)
