"""Losses and metrics as sums and counts: slices of a batch add up exactly (docs/semantics.md, sections 6, 7, 11).

Array names: B batch, T tokens, M masked positions, V vocabulary, K thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from electra_flax.model.reductions import argmax_last

Sums = dict[str, jax.Array]
Totals = Mapping[str, np.ndarray]
"""Sums over any number of batches, float64 on the host."""

_TINY = 1e-6  # the original's guard of every denominator
_NUM_THRESHOLDS = 200  # of the binned AUC, as tf.metrics.auc


def masked_lm_sums(logits_BMV: jax.Array, targets_BM: jax.Array, weights_BM: jax.Array, sampled_BM: jax.Array) -> Sums:
    """Return cross entropy and accuracies of the generator over the masked positions, float32 sums."""
    nll_BM = negative_log_likelihood(logits_BMV, targets_BM)
    return {
        "generator_nll": (nll_BM * weights_BM).sum(),
        "generator_correct": ((argmax_last(logits_BMV) == targets_BM) * weights_BM).sum(),
        "generator_sampled_correct": ((sampled_BM == targets_BM) * weights_BM).sum(),
    }


def corrective_lm_sums(
    logits_BMV: jax.Array, targets_BM: jax.Array, weights_BM: jax.Array, replaced_logit_BM: jax.Array
) -> Sums:
    """Return what the discriminator's guesses of the masked positions cost and how many are right, float32 sums.

    A guess costs its cross entropy times the probability that the discriminator itself gives to `replaced` there, which
    gets no gradient by this: where it is sure that a token is the original, there is nothing to guess (COCO-LM's code).
    """
    belief_BM = jax.nn.sigmoid(jax.lax.stop_gradient(replaced_logit_BM))
    return {
        "corrective_nll": (belief_BM * negative_log_likelihood(logits_BMV, targets_BM) * weights_BM).sum(),
        "corrective_correct": ((argmax_last(logits_BMV) == targets_BM) * weights_BM).sum(),
    }


def negative_log_likelihood(logits_BMV: jax.Array, targets_BM: jax.Array) -> jax.Array:
    """Return nll_BM of ids under the softmax of the logits, nats."""
    # A comparison instead of a gather: its gradient is fused with the softmax's, where a scatter would be written out.
    is_target_BMV = jax.lax.broadcasted_iota(jnp.int32, logits_BMV.shape, 2) == targets_BM[..., None]
    target_logit_BM = jnp.where(is_target_BMV, logits_BMV, 0.0).sum(axis=-1)
    return jax.nn.logsumexp(logits_BMV, axis=-1) - target_logit_BM


def replaced_token_sums(logits_BT: jax.Array, is_replaced_BT: jax.Array, attention_mask_BT: jax.Array) -> Sums:
    """Return binary cross entropy and counts of the discriminator over tokens that are no padding, float32 sums."""
    weights_BT = attention_mask_BT.astype(jnp.float32)
    labels_BT = is_replaced_BT.astype(jnp.float32)
    logits_BT = logits_BT.astype(jnp.float32)
    # -log sigmoid of either sign in the form in which no exponential overflows.
    nll_BT = jnp.maximum(logits_BT, 0) - logits_BT * labels_BT + jnp.log1p(jnp.exp(-jnp.abs(logits_BT)))
    flagged_BT = (logits_BT > 0).astype(jnp.float32)
    return {
        "discriminator_nll": (nll_BT * weights_BT).sum(),
        "discriminator_correct": ((flagged_BT == labels_BT) * weights_BT).sum(),
        "flagged": (flagged_BT * weights_BT).sum(),
        "flagged_replaced": (flagged_BT * labels_BT * weights_BT).sum(),
        "replaced": (labels_BT * weights_BT).sum(),
        **auc_sums(jax.nn.sigmoid(logits_BT), labels_BT, weights_BT),
    }


def auc_sums(probabilities_BT: jax.Array, is_replaced_BT: jax.Array, weights_BT: jax.Array) -> Sums:
    """Return what `auc` is computed from: tokens above each of 200 thresholds, per label, float32 [K]."""
    # The outer two lie beyond 0 and 1, so that all tokens are above the first and none above the last.
    thresholds_K = jnp.asarray(
        [-1e-7, *(i / (_NUM_THRESHOLDS - 1) for i in range(1, _NUM_THRESHOLDS - 1)), 1 + 1e-7], jnp.float32
    )
    # Comparisons instead of a histogram: they fuse into one pass, where a scatter would go token by token.
    is_above_KBT = probabilities_BT[None] > thresholds_K[:, None, None]
    weights_BT = weights_BT.astype(jnp.float32)

    def above(selected_BT: jax.Array) -> jax.Array:
        return jnp.where(is_above_KBT, selected_BT[None], 0.0).sum(axis=(1, 2))

    return {
        "auc_replaced_above": above(weights_BT * is_replaced_BT),
        "auc_original_above": above(weights_BT * (1 - is_replaced_BT)),
    }


def denominators(weights_BM: jax.Array, attention_mask_BT: jax.Array) -> Sums:
    """Return masked positions and tokens; known before any slice of the batch is computed."""
    return {"masked": weights_BM.sum(), "tokens": attention_mask_BT.sum().astype(jnp.float32)}


def mean(total: jax.Array, count: jax.Array) -> jax.Array:
    """Return a sum over the whole batch divided by its count over the whole batch."""
    return total / (count + _TINY)


def ratio(total: str, count: str) -> Callable[[Totals], float]:
    """Return what divides two sums of these names over any number of batches, as `mean` does."""
    return lambda sums: float(sums[total]) / (float(sums[count]) + _TINY)


def share(part: str, whole: str) -> Callable[[Totals], float]:
    """Return what divides two counts of these names, 0 of nothing."""
    return lambda sums: float(sums[part]) / max(float(sums[whole]), 1.0)


def auc(replaced_above_K: np.ndarray, original_above_K: np.ndarray) -> float:
    """Return the area under the ROC curve by trapezoids over the thresholds, with tf.metrics.auc's guards."""
    true_positive, false_positive = replaced_above_K.astype(np.float64), original_above_K.astype(np.float64)
    true_rate = (true_positive + _TINY) / (true_positive[0] + _TINY)
    false_rate = false_positive / (false_positive[0] + _TINY)
    return float(np.sum((false_rate[:-1] - false_rate[1:]) * (true_rate[:-1] + true_rate[1:]) / 2))


def average_precision(replaced_above_K: np.ndarray, original_above_K: np.ndarray) -> float:
    """Return the area under precision over recall by steps, where all tokens between two thresholds share a rank.

    0 where nothing was replaced.
    """
    true_positive, false_positive = replaced_above_K.astype(np.float64), original_above_K.astype(np.float64)
    precision = true_positive / np.maximum(true_positive + false_positive, 1)
    found = true_positive[:-1] - true_positive[1:]
    return float(np.sum(found * precision[:-1]) / max(true_positive[0], 1.0))


def gain(total: str, part: str, count: str) -> Callable[[Totals], float]:
    """Return the entropy of the share of `part` minus the cross entropy `total`, both of `count` tokens, nats.

    What is known beyond the share itself: 0 where every token gets the share as its probability.
    """

    def value(sums: Totals) -> float:
        rate = ratio(part, count)(sums)
        entropy = float(np.sum(scipy.special.entr([rate, 1 - rate])))
        return entropy - ratio(total, count)(sums)

    return value
