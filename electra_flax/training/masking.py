"""Which tokens are hidden, what replaces them, and the labels: pure functions (docs/semantics.md, sections 5 and 6).

Randomness comes as one seed per row (randomness.py): masks and samples depend on the step and the row's place in the
global batch alone.

Array names: B batch, T tokens, M masked positions, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from electra_flax.config.masking import MaskingConfig
from electra_flax.data.vocabulary import SpecialTokens
from electra_flax.model import randomness
from electra_flax.model.reductions import argmax_last
from electra_flax.training.budget import num_wanted
from electra_flax.trees import Batch


class MaskedInputs(NamedTuple):
    """What the generator sees and must predict."""

    masked_ids_BT: jax.Array
    """int32: input_ids with [MASK] at most of the chosen positions."""
    positions_BM: jax.Array
    """int32: the chosen positions; 0 where weights are 0."""
    targets_BM: jax.Array
    """int32: the original ids there; 0 where weights are 0."""
    weights_BM: jax.Array
    """float32: 1 for a chosen position, 0 for an unused column."""


class Slots(NamedTuple):
    """Whose noise masked positions draw, where that is not said by their row and column."""

    seeds_BM: jax.Array
    ranks_BM: jax.Array
    """int32: the columns that they would have in a row of their example alone."""


class CorruptedInputs(NamedTuple):
    """What the discriminator sees and must tell."""

    corrupted_ids_BT: jax.Array
    """int32: input_ids with the sampled ids at the chosen positions."""
    is_replaced_BT: jax.Array
    """int32: 1 where the id differs from the original. Sampling the original gives 0."""


def mask_inputs(
    seeds_B: jax.Array,
    batch: Batch,
    share: float | jax.Array,
    config: MaskingConfig,
    special: SpecialTokens,
    max_predictions: int,
) -> MaskedInputs:
    """Choose a `share` of the positions, without replacement, and hide them.

    The original draws with replacement (a position may count twice); this is the one deliberate difference here.
    """
    num_rows = batch["input_ids"].shape[0]
    score_BT = randomness.uniform(batch["input_ids"].shape, randomness.fold_in(seeds_B, 0))
    replace_BM = randomness.uniform((num_rows, max_predictions), randomness.fold_in(seeds_B, 1))
    positions_BM, weights_BM = choose_positions(score_BT, batch, share, special, max_predictions)
    return hide(batch["input_ids"], positions_BM, weights_BM, replace_BM < config.mask_token_prob, special.mask)


def choose_positions(
    score_BT: jax.Array, batch: Batch, share: float | jax.Array, special: SpecialTokens, max_predictions: int
) -> tuple[jax.Array, jax.Array]:
    """Return the candidates with the highest scores: positions_BM and weights_BM.

    Candidates are tokens that are neither padding nor [CLS], [SEP], [MASK].
    """
    mask_BT, is_candidate_BT = batch["attention_mask"], is_candidate(batch, special)
    wanted_B = num_wanted(mask_BT.sum(axis=1), is_candidate_BT.sum(axis=1), share, max_predictions)
    # The largest of independent uniform numbers are a draw without replacement; what is no candidate comes last.
    _, positions_BM = jax.lax.top_k(jnp.where(is_candidate_BT, score_BT, -1.0), max_predictions)
    is_used_BM = jnp.arange(max_predictions)[None, :] < wanted_B[:, None]
    return jnp.where(is_used_BM, positions_BM, 0), is_used_BM.astype(jnp.float32)


def is_candidate(batch: Batch, special: SpecialTokens) -> jax.Array:
    """Return which tokens may be hidden, bool [B, T]."""
    ids_BT = batch["input_ids"]
    is_special_BT = (ids_BT == special.cls) | (ids_BT == special.sep) | (ids_BT == special.mask)
    return (batch["attention_mask"] == 1) & ~is_special_BT


def hide(
    ids_BT: jax.Array,
    positions_BM: jax.Array,
    weights_BM: jax.Array,
    becomes_mask_BM: jax.Array,
    mask_id: int,
) -> MaskedInputs:
    """Write [MASK] at the used positions for which `becomes_mask_BM` is true."""
    targets_BM = jnp.take_along_axis(ids_BT, positions_BM, axis=1) * weights_BM.astype(ids_BT.dtype)
    masked_ids_BT = write(ids_BT, positions_BM, mask_id, (weights_BM > 0) & becomes_mask_BM)
    return MaskedInputs(masked_ids_BT, positions_BM, targets_BM, weights_BM)


def sample_replacements(
    seeds: jax.Array | Slots,
    logits_BMV: jax.Array,
    targets_BM: jax.Array,
    temperature: float | jax.Array,
    disallow_correct: bool,
) -> jax.Array:
    """Draw one id per masked position from the generator's distribution, sampled_BM int32; carries no gradient.

    `seeds` are one a row, or of each position.
    """
    if isinstance(seeds, Slots):
        token_11V = jnp.arange(logits_BMV.shape[-1])[None, None, :]
        place_BMV = seeds.ranks_BM[..., None] * logits_BMV.shape[-1] + token_11V
        uniform_BMV = randomness.uniform_at(place_BMV, seeds.seeds_BM[..., None])
    else:
        uniform_BMV = randomness.uniform(logits_BMV.shape, seeds)
    return sample_with_uniform(uniform_BMV, logits_BMV, targets_BM, temperature, disallow_correct)


def sample_with_uniform(
    uniform_BMV: jax.Array,
    logits_BMV: jax.Array,
    targets_BM: jax.Array,
    temperature: float | jax.Array,
    disallow_correct: bool,
) -> jax.Array:
    """Return the Gumbel-max draw for given uniform noise in [0, 1)."""
    logits_BMV = jax.lax.stop_gradient(logits_BMV).astype(jnp.float32) / temperature
    if disallow_correct:
        is_target_BMV = jnp.arange(logits_BMV.shape[-1])[None, None, :] == targets_BM[..., None]
        logits_BMV = jnp.where(is_target_BMV, logits_BMV - 1000.0, logits_BMV)
    gumbel_BMV = -jnp.log(-jnp.log(uniform_BMV + 1e-9) + 1e-9)
    return argmax_last(logits_BMV + gumbel_BMV)


def corrupt(ids_BT: jax.Array, masked: MaskedInputs, sampled_BM: jax.Array) -> CorruptedInputs:
    """Put the sampled ids at the chosen positions of the original text."""
    corrupted_ids_BT = write(ids_BT, masked.positions_BM, sampled_BM, masked.weights_BM > 0)
    return CorruptedInputs(corrupted_ids_BT, (corrupted_ids_BT != ids_BT).astype(jnp.int32))


def write(ids_BT: jax.Array, positions_BM: jax.Array, values: jax.Array | int, where_BM: jax.Array) -> jax.Array:
    """Return ids, or numbers of another type, with these values at the positions for which `where_BM` is true."""
    # Unused columns are sent out of the row, where a scatter drops them.
    num_tokens = ids_BT.shape[1]
    targets_BM = jnp.where(where_BM, positions_BM, num_tokens)
    values_BM = jnp.broadcast_to(jnp.asarray(values, ids_BT.dtype), positions_BM.shape)

    def write_row(ids_T: jax.Array, targets_M: jax.Array, values_M: jax.Array) -> jax.Array:
        return ids_T.at[targets_M].set(values_M, mode="drop")

    return jax.vmap(write_row)(ids_BT, targets_BM, values_BM)
