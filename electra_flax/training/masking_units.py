"""Whole words and spans instead of tokens: where they begin, and which of them are hidden.

Of words in a random order, one after the other is taken whole; one that would hide more than is wanted is left out,
and shorter ones after it fill what is left (as google-research/bert does on the host). With spans, the words of a span
follow each other in that order, so that the last span taken may be cut, after a word (as SpanBERT does). Here all of
that happens on the device, in a few sorts and sums, for the examples of a row at once, whether it has one or several.

Array names: B batch, T tokens, S examples of a row, J spans of an example.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from electra_flax.model import randomness

_ROUNDS = 16
"""Words that are looked for to fill what the first ones leave. Each takes a token or more of it, and less is left than
the word that was left out has: enough for words of up to 17 pieces; of longer ones something may stay unfilled."""
# SpanBERT (1907.10529): words of a span, each one word longer 0.8 times as likely, at most ten.
_GEOMETRIC = 0.2 * 0.8 ** np.arange(10)
_LENGTH_BELOW = np.cumsum(_GEOMETRIC / _GEOMETRIC.sum())[:-1]


class Order(NamedTuple):
    """A row's tokens in the order in which they are hidden."""

    places_BT: jax.Array
    """int32: example after example, in each the hidden ones first."""
    hidden_BS: jax.Array
    """int32: how many of each example."""


def word_starts(continues_BT: jax.Array, is_candidate_BT: jax.Array) -> jax.Array:
    """Return which tokens begin a word, bool [B, T]; what no candidate comes before begins one, piece or not."""
    return is_candidate_BT & ~(continues_BT & _shifted(is_candidate_BT))


def span_starts(
    starts_BT: jax.Array, is_candidate_BT: jax.Array, segments_BT: jax.Array, seeds_BS: jax.Array
) -> jax.Array:
    """Return which of the words' starts begin a span, bool [B, T].

    The lengths are drawn for the first, second ... span of an example, so where they end is a sum, not a loop.
    """
    num_spans = starts_BT.shape[1]
    number_11J = jnp.arange(num_spans)[None, None, :]
    uniform_BSJ = randomness.uniform_at(number_11J, seeds_BS[..., None])
    length_BSJ = 1 + (uniform_BSJ[..., None] >= jnp.asarray(_LENGTH_BELOW, jnp.float32)[None, None, None]).sum(axis=-1)
    begin_BSJ = length_BSJ.cumsum(axis=-1) - length_BSJ
    is_begin_BT = jnp.zeros_like(starts_BT)
    for number in range(seeds_BS.shape[1]):  # a row has eight examples at most
        is_of_BT = segments_BT == number + 1
        word_BT = (starts_BT & is_of_BT).cumsum(axis=1) - 1
        # By comparison: whether a span begins with this word, of as many spans as there could be.
        begins_BT = (word_BT[..., None] == begin_BSJ[:, number, None, :]).any(axis=-1)
        is_begin_BT |= is_of_BT & begins_BT
    return starts_BT & (is_begin_BT | ~_shifted(is_candidate_BT))  # no span goes over a special token


def score_of(starts_BT: jax.Array, score_BT: jax.Array) -> jax.Array:
    """Return for each token the score at the start of its unit."""
    return jnp.take_along_axis(score_BT, _last_start(starts_BT), axis=1)


def choose_whole(
    score_BT: jax.Array,
    starts_BT: jax.Array,
    segments_BT: jax.Array,
    is_candidate_BT: jax.Array,
    wanted_BS: jax.Array,
) -> Order:
    """Return an order in which whole words come first, as many as fit into `wanted_BS` tokens of each example.

    `starts_BT` says where words begin; the score of a word is that at its start, the highest come first, of equals the
    first in the row. Where no word is as short as what is wanted, the first tokens of the first one are taken.
    """
    num_segments = wanted_BS.shape[1]
    place_BT = jax.lax.broadcasted_iota(jnp.int32, score_BT.shape, 1)
    first_BT = _last_start(starts_BT)
    ends_BT = is_candidate_BT & ~(_shifted(is_candidate_BT, -1) & ~_shifted(starts_BT, -1))
    last_BT = jax.lax.cummin(jnp.where(ends_BT, place_BT, score_BT.shape[1]), axis=1, reverse=True)
    score_BT = score_of(starts_BT, score_BT)
    key_BT = jnp.where(segments_BT > 0, segments_BT, num_segments + 1)
    # Stable: the tokens of a word stay together, in their order, and the words of a span.
    key_BT, fallen_BT, place_BT, offset_BT, length_BT = jax.lax.sort(
        (key_BT, jnp.where(is_candidate_BT, -score_BT, 1.0), place_BT, place_BT - first_BT, last_BT - first_BT + 1),
        dimension=1, num_keys=2, is_stable=True,
    )  # fmt: skip
    is_of_BST = key_BT[:, None, :] == jnp.arange(1, num_segments + 1)[None, :, None]
    is_candidate_BT = fallen_BT <= 0

    def by_token(values_BS: jax.Array) -> jax.Array:
        return jnp.where(is_of_BST, values_BS[..., None], 0).sum(axis=1)

    def by_example(values_BT: jax.Array) -> jax.Array:
        return jnp.where(is_of_BST, values_BT[:, None, :], 0).sum(axis=2)

    tokens_BS = is_of_BST.sum(axis=2)
    rank_BT = jax.lax.broadcasted_iota(jnp.int32, score_BT.shape, 1) - by_token(tokens_BS.cumsum(axis=1) - tokens_BS)
    begin_BT = rank_BT - offset_BT  # the rank of a word's first token
    is_hidden_BT = is_candidate_BT & (begin_BT + length_BT <= by_token(wanted_BS))
    beyond = score_BT.shape[1]

    def fill(_: int, is_hidden_BT: jax.Array) -> jax.Array:
        left_BS = wanted_BS - by_example(is_hidden_BT)
        fits_BT = is_candidate_BT & ~is_hidden_BT & (length_BT <= by_token(left_BS))
        next_BS = jnp.where(is_of_BST & fits_BT[:, None, :], begin_BT[:, None, :], beyond).min(axis=2)
        return is_hidden_BT | (fits_BT & (begin_BT == by_token(next_BS)))

    is_hidden_BT = jax.lax.fori_loop(0, _ROUNDS, fill, is_hidden_BT)
    is_hidden_BT |= is_candidate_BT & (by_token(by_example(is_hidden_BT)) == 0) & (rank_BT < by_token(wanted_BS))
    _, _, place_BT = jax.lax.sort(
        (key_BT, (~is_hidden_BT).astype(jnp.int32), place_BT), dimension=1, num_keys=2, is_stable=True
    )
    return Order(place_BT, by_example(is_hidden_BT))


def _last_start(starts_BT: jax.Array) -> jax.Array:
    """Return the place of the last start up to each place, 0 before the first."""
    place_BT = jax.lax.broadcasted_iota(jnp.int32, starts_BT.shape, 1)
    return jax.lax.cummax(jnp.where(starts_BT, place_BT, 0), axis=1)


def _shifted(flag_BT: jax.Array, by: Literal[1, -1] = 1) -> jax.Array:
    """Return what stands a token before (1) or after (-1), False beyond the row."""
    edge_B1 = jnp.zeros_like(flag_BT[:, :1])
    return jnp.concatenate([edge_B1, flag_BT[:, :-1]] if by == 1 else [flag_BT[:, 1:], edge_B1], axis=1)
