"""Which tokens are hidden where rows hold several examples: in each as many as it would have in a row of its own.

All that is random here is a function of the step and the example's number, not of the row: with the same numbers an
example has the same tokens hidden, and replaced by the same ones, whatever it shares its row with and wherever it lies.

Array names: B batch, T tokens, S examples of a row, M masked positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from electra_flax.config.schema import Config
from electra_flax.data.packing import LEAST_LENGTH
from electra_flax.model import randomness
from electra_flax.training.budget import num_wanted
from electra_flax.training.masking_units import choose_whole, score_of, span_starts, word_starts
from electra_flax.trees import Batch


class Chosen(NamedTuple):
    """Tokens to hide, as many columns as a row may need."""

    positions_BM: jax.Array
    """int32: their places in the row; 0 where weights are 0, as all that follows."""
    weights_BM: jax.Array
    """float32: 1 for a chosen position, 0 for an unused column."""
    segment_BM: jax.Array
    """int32: which of the row's examples, from 0 on."""
    rank_BM: jax.Array
    """int32: which column it would be in a row of that example alone."""


class _Counts(NamedTuple):
    """Of each example of a row, int32 [B, S]."""

    wanted_BS: jax.Array
    """How many of its tokens are hidden."""
    start_BS: jax.Array
    """Tokens of the examples before it."""


def max_predictions_per_row(config: Config) -> int:
    """Return columns of masked positions that hold all that a row's examples may want."""
    if not config.is_packed:
        return config.max_predictions_per_seq
    tokens = config.data.max_seq_length

    def columns(share: float) -> int:
        # An example of n tokens wants at most n * share + 1/2; or 1, of which n * share is the least for the shortest.
        beyond = max(0.5, 1 - LEAST_LENGTH * share)
        return min(tokens, int(tokens * share + config.packing.segments * beyond + 1e-6))

    return max(columns(share) for share in (config.masking.mask_prob, config.masking.last_share))


def choose_packed(
    score_seeds_BS: jax.Array,
    batch: Batch,
    share: float | jax.Array,
    is_candidate_BT: jax.Array,
    config: Config,
    continuations: Sequence[int] = (),
) -> Chosen:
    """Return of each example those of its candidates that masking.choose_positions would with the same seed.

    Whole words or spans of them where masking.unit says so; `continuations` are the entries of the vocabulary that
    continue a word.
    """
    segments_BT, num_segments = batch["segments"], score_seeds_BS.shape[1]
    score_BT = randomness.uniform_at(batch["places"], of_segment(score_seeds_BS, segments_BT - 1))
    counts = _count(segments_BT, is_candidate_BT, share, config, num_segments)
    if config.masking.unit == "token":
        # By example, in each its candidates by falling score, of equals the first.
        key_BT = jnp.where(segments_BT > 0, segments_BT, num_segments + 1)
        fallen_BT = jnp.where(is_candidate_BT, -score_BT, 1.0)
        place_BT = jax.lax.broadcasted_iota(jnp.int32, segments_BT.shape, 1)
        _, _, sorted_BT = jax.lax.sort((key_BT, fallen_BT, place_BT), dimension=1, num_keys=2, is_stable=True)
    else:
        assert continuations, "masking.unit asks for them"
        continues_V = np.isin(np.arange(config.model.vocab_size), continuations)
        starts_BT = word_starts(jnp.asarray(continues_V)[batch["input_ids"]], is_candidate_BT)
        if config.masking.unit == "span":
            length_seeds_BS = randomness.fold_in(score_seeds_BS, 0)
            begins_BT = span_starts(starts_BT, is_candidate_BT, segments_BT, length_seeds_BS)
            score_BT = score_of(begins_BT, score_BT)
        sorted_BT, hidden_BS = choose_whole(score_BT, starts_BT, segments_BT, is_candidate_BT, counts.wanted_BS)
        counts = counts._replace(wanted_BS=hidden_BS)
    # Column m belongs to the first example whose wanted ones, and those of all before it, are more than m.
    column_1M = jnp.arange(max_predictions_per_row(config))[None, :]
    end_BS = counts.wanted_BS.cumsum(axis=1)
    is_used_BM = column_1M < end_BS[:, -1:]
    segment_BM = jnp.where(is_used_BM, (column_1M[..., None] >= end_BS[:, None, :]).sum(axis=-1), 0)
    rank_BM = jnp.where(is_used_BM, column_1M - of_segment(end_BS - counts.wanted_BS, segment_BM), 0)
    ranked_BM = jnp.where(is_used_BM, of_segment(counts.start_BS, segment_BM) + rank_BM, 0)
    positions_BM = jnp.where(is_used_BM, jnp.take_along_axis(sorted_BT, ranked_BM, axis=1), 0)
    return Chosen(positions_BM, is_used_BM.astype(jnp.float32), segment_BM, rank_BM)


def of_segment(values_BS: jax.Array, segment: jax.Array) -> jax.Array:
    """Return the value of the example that each place is of, counted from 0; 0 where there is none.

    By comparison: a gather of so few values would take a TPU longer.
    """
    is_of = segment[..., None] == jnp.arange(values_BS.shape[1])[None, None, :]
    return jnp.where(is_of, values_BS[:, None, :], 0).sum(axis=-1)


def _count(
    segments_BT: jax.Array, is_candidate_BT: jax.Array, share: float | jax.Array, config: Config, num_segments: int
) -> _Counts:
    is_of_BST = segments_BT[:, None, :] == jnp.arange(1, num_segments + 1)[None, :, None]
    tokens_BS = is_of_BST.sum(axis=2)
    candidates_BS = (is_of_BST & is_candidate_BT[:, None, :]).sum(axis=2)
    wanted_BS = num_wanted(tokens_BS, candidates_BS, share, config.max_predictions_per_seq)
    return _Counts(wanted_BS, tokens_BS.cumsum(axis=1) - tokens_BS)
