"""The numbers of each objective that people read: console, charts, report and doctor iterate over them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from electra_flax.config.objective import ObjectiveKind
from electra_flax.config.schema import Config
from electra_flax.training import losses
from electra_flax.training.losses import Totals


class Metric(NamedTuple):
    """A number that people read."""

    name: str
    """In metrics.jsonl and TensorBoard."""
    value: Callable[[Totals], float]
    title: str = ""
    """Of its chart; "" draws none."""
    note: str = ""
    """What the chart says of the number."""
    guessed: Callable[[Config], float | None] = lambda config: None
    """Of a loss: what a model that knows nothing has, nats; None of other numbers, and where nothing learns it."""
    is_on_console: bool = False
    is_logarithmic: bool = False
    """Whether its chart has a logarithmic axis."""


def _log_of_vocabulary(config: Config) -> float | None:
    return math.log(config.model.vocab_size) if config.architecture.learned.has_generator_head else None


def _of_energy_0(config: Config) -> float:
    """Return the loss of a discriminator whose own output is 0 everywhere."""
    if config.objective.kind != "electric":
        return math.log(2)
    # Each token is as likely as any other: the odds that it was drawn are those of a draw among the vocabulary.
    share = config.masking.mask_prob
    odds = math.log(share / (1 - share)) - math.log(config.model.vocab_size)
    share = min(share, config.max_predictions_per_seq / config.data.max_seq_length)  # of short rows, fewer are drawn
    return share * float(np.logaddexp(0, -odds)) + (1 - share) * float(np.logaddexp(0, odds))


def _average_precision(totals: Totals) -> float:
    return losses.average_precision(totals["auc_replaced_above"], totals["auc_original_above"])


def _state_spread(totals: Totals) -> float:
    mean_D = totals["state_sum"] / totals["state_tokens"]
    variance = totals["state_squares"] / totals["state_tokens"] - mean_D @ mean_D
    return math.sqrt(max(float(variance), 0.0) / len(mean_D))


def _sequence_cosine(totals: Totals) -> float:
    """Return the mean over all pairs; 0 of fewer than two sequences."""
    count, units_D = float(totals["sequences"]), totals["sequence_units"]
    return float(units_D @ units_D - count) / max(count * (count - 1), 1.0)


_GENERATOR = (
    Metric(
        "generator_loss", losses.ratio("generator_nll", "masked"), "Generator loss",
        "cross entropy of the masked tokens, nats", guessed=_log_of_vocabulary, is_on_console=True,
    ),
    Metric(
        "generator_accuracy", losses.ratio("generator_correct", "masked"), "Generator accuracy",
        "share of masked tokens guessed right", is_on_console=True,
    ),
    Metric("generator_sampled_accuracy", losses.ratio("generator_sampled_correct", "masked")),
)  # fmt: skip
_TOWERS = (
    Metric(
        "cloze_loss", losses.ratio("cloze_nll", "guessed"), "Cloze loss",
        "cross entropy of every token given the others, nats", guessed=_log_of_vocabulary, is_on_console=True,
    ),
)  # fmt: skip
_DISCRIMINATOR = (
    Metric(
        "discriminator_loss", losses.ratio("discriminator_nll", "tokens"), "Discriminator loss",
        "binary cross entropy a token, nats", guessed=_of_energy_0, is_on_console=True,
    ),
    Metric("discriminator_accuracy", losses.ratio("discriminator_correct", "tokens")),
    Metric(
        "discriminator_precision", losses.share("flagged_replaced", "flagged"), "Discriminator precision",
        "of the tokens flagged, those replaced", is_on_console=True,
    ),
    Metric(
        "discriminator_recall", losses.share("flagged_replaced", "replaced"), "Discriminator recall",
        "of the tokens replaced, those flagged", is_on_console=True,
    ),
    Metric(
        "discriminator_auc", lambda totals: losses.auc(totals["auc_replaced_above"], totals["auc_original_above"]),
        "Discriminator AUC", "0.5 is chance", is_on_console=True,
    ),
    Metric("replaced_rate", losses.ratio("replaced", "tokens")),
    Metric(
        "discriminator_gain", losses.gain("discriminator_nll", "replaced", "tokens"), "Discriminator gain",
        "over knowing only how many are replaced, nats a token; 0.03 or more late in a run",
    ),
    Metric("discriminator_average_precision", _average_precision),
    Metric(
        "discriminator_average_precision_over_rate",
        lambda totals: _average_precision(totals) / max(losses.ratio("replaced", "tokens")(totals), 1e-6),
        "Average precision over rate", "of the rank by the discriminator; 1 is chance, 2 or more late in a run",
    ),
)  # fmt: skip
_CORRECTIVE = (
    Metric(
        "corrective_loss", losses.ratio("corrective_nll", "masked"), "Corrective loss",
        "cross entropy of the discriminator's guesses times its belief that they are needed, nats", is_on_console=True,
    ),
    Metric(
        "corrective_accuracy", losses.ratio("corrective_correct", "masked"), "Corrective accuracy",
        "share of masked tokens that the discriminator guesses right",
    ),
)  # fmt: skip
_CONTRAST = (
    Metric(
        "contrast_loss", losses.ratio("contrast_nll", "contrasted"), "Contrast loss",
        "cross entropy of which two texts belong together, nats; 0 before objective.contrast_from", is_on_console=True,
    ),
    Metric(
        "contrast_accuracy", losses.ratio("contrast_correct", "contrasted"), "Contrast accuracy",
        "share of texts whose other half is the nearest of the group; 0 before objective.contrast_from",
    ),
)  # fmt: skip
_STATES = (
    Metric(
        "state_spread", _state_spread, "Spread of token states",
        "standard deviation around their mean; near 0 all tokens are one", is_logarithmic=True,
    ),
    Metric(
        "sequence_cosine", _sequence_cosine, "Mean cosine of two sequences",
        "of the means of their states; near 1 all texts are one",
    ),
)  # fmt: skip
_PROBE = (
    Metric(
        "probe_accuracy", losses.share("probe_correct", "probe_rows"), "Probe accuracy",
        "of a logistic regression on frozen states", is_on_console=True,
    ),
    Metric("probe_base_rate", losses.share("probe_most_frequent", "probe_rows")),
)  # fmt: skip
HEALTH_METRICS = (*_STATES, *_PROBE)
"""What an evaluation has beside its objective's: of states on held-out text, and of --probe where it is given."""
METRICS: dict[ObjectiveKind, tuple[Metric, ...]] = {
    "masked_tokens": _GENERATOR,
    "replaced_tokens": (*_GENERATOR, *_DISCRIMINATOR),
    "electric": (*_GENERATOR, *_DISCRIMINATOR),
}


def health_of(totals: Totals) -> dict[str, float]:
    """Return what the sums of training/health.py, and of a probe where they are there, amount to."""
    known = HEALTH_METRICS if "probe_rows" in totals else _STATES
    return {metric.name: metric.value(totals) for metric in known}


def metrics_of(config: Config) -> tuple[Metric, ...]:
    """Return the metrics of a run's objective."""
    added = (*(_TOWERS if config.has_two_towers else ()), *METRICS[config.objective.kind])
    if config.data.corrupted is not None:  # of the generator nothing is known but what it sampled
        added = _DISCRIMINATOR
    architecture = config.architecture
    added = (*added, *_CORRECTIVE) if architecture.has_corrective_head else added
    return (*added, *_CONTRAST) if architecture.has_contrast_head else added
