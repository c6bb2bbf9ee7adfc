"""A probe: what a logistic regression on frozen states tells of labelled texts. It changes nothing of a run.

Array names: N texts, D hidden, L labels.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
from jax.sharding import Mesh
from scipy import optimize, special

from electra_flax.config.schema import Config
from electra_flax.data.pipeline import evaluation_batches
from electra_flax.data.tokenizer import Casing
from electra_flax.data.vocabulary import Vocabulary
from electra_flax.training.health import ReadStates
from electra_flax.trees import Batch, Params

log = logging.getLogger("electra_flax")

_DECAY = 0.1
"""Of the weights' squares, beside the mean cross entropy: a thousand texts have fewer numbers than a model is wide."""
_MAX_ITERATIONS = 200


class Labelled(NamedTuple):
    """Texts as a model reads them."""

    features: np.ndarray
    """int32 [N, 3, T]: ids, mask and token types, as `ShardedExamples.read` has them."""
    labels: np.ndarray
    """int32 [N]."""

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """Return the features of these texts."""
        found: np.ndarray = self.features[numbers]
        return found


class ProbeRows(NamedTuple):
    """What a probe learns from and is scored on."""

    train: Labelled
    scored: Labelled

    @property
    def digest(self) -> str:
        """Return what tells them from others."""
        arrays = (self.train.features, self.train.labels, self.scored.features, self.scored.labels)
        return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:12]


class Probe(Protocol):
    """A task with labels, wherever its texts come from (finetuning/probe.py)."""

    @property
    def source(self) -> str: ...

    def rows(self, vocabulary: Vocabulary, casing: Casing, longest: int) -> ProbeRows:
        """Return texts of at most `longest` tokens. Raises UserError where there are none that can be classified."""


class Prober:
    """Scores states on the rows of a probe, in batches of the run's own shape: their program is there already."""

    def __init__(self, rows: ProbeRows, config: Config, mesh: Mesh, read_states: ReadStates) -> None:
        self._rows, self._config, self._mesh, self._read_states = rows, config, mesh, read_states
        self._is_first = True

    def sums(self, params: Params) -> dict[str, np.ndarray]:
        """Return what the probe's metrics are computed from: rows, those told right, those of the commonest label."""
        begin = time.perf_counter()
        train, scored = self._rows
        predicted_N = predict(self._means(params, train), train.labels, self._means(params, scored))
        if self._is_first:
            self._is_first = False
            log.info("probe: trained on %s texts, scored on %s, in %.1f s", f"{len(train):,}", f"{len(scored):,}",
                     time.perf_counter() - begin)  # fmt: skip
        return {
            "probe_rows": np.asarray(len(scored)),
            "probe_correct": np.asarray((predicted_N == scored.labels).sum()),
            "probe_most_frequent": np.asarray(np.bincount(scored.labels).max()),
        }

    def _means(self, params: Params, rows: Labelled) -> np.ndarray:
        """Return the mean state of each text, float64 [N, D]."""
        batches: Iterator[Batch] = evaluation_batches(self._config, rows, self._mesh, len(rows))
        means = [np.asarray(self._read_states(params, batch)["means_BD"], np.float64) for batch in batches]
        return np.concatenate(means)[: len(rows)]


def predict(train_ND: np.ndarray, labels_N: np.ndarray, scored_ND: np.ndarray) -> np.ndarray:
    """Return the likeliest label of each row of `scored_ND`, after a logistic regression on the others, int [N].

    Features have the mean 0 and the deviation 1 of those that are learned from; the same in every call.
    """
    mean_D, deviation_D = train_ND.mean(axis=0), train_ND.std(axis=0) + 1e-6
    train_ND, scored_ND = (train_ND - mean_D) / deviation_D, (scored_ND - mean_D) / deviation_D
    num_labels = int(labels_N.max()) + 1
    one_hot_NL = np.eye(num_labels)[labels_N]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights_DL, bias_L = np.split(flat.reshape(-1, num_labels), [train_ND.shape[1]])
        log_NL = special.log_softmax(train_ND @ weights_DL + bias_L, axis=1)
        error_NL = (np.exp(log_NL) - one_hot_NL) / len(one_hot_NL)
        gradient = np.concatenate([train_ND.T @ error_NL + _DECAY * weights_DL, error_NL.sum(axis=0, keepdims=True)])
        value = -(log_NL * one_hot_NL).sum() / len(one_hot_NL) + _DECAY / 2 * (weights_DL**2).sum()
        return float(value), gradient.ravel()

    first = np.zeros((train_ND.shape[1] + 1) * num_labels)
    found = optimize.minimize(loss, first, jac=True, method="L-BFGS-B", options={"maxiter": _MAX_ITERATIONS}).x
    weights_DL, bias_L = np.split(found.reshape(-1, num_labels), [train_ND.shape[1]])
    predicted_N: np.ndarray = (scored_ND @ weights_DL + bias_L).argmax(axis=1)
    return predicted_N
