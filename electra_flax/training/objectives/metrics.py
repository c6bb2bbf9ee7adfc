"""The numbers of each objective that people read: console, charts, report and doctor iterate over them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from electra_flax.config.schema import Config, ObjectiveKind
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
    return math.log(config.model.vocab_size) if config.architecture.has_generator_head else None


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
_DISCRIMINATOR = (
    Metric(
        "discriminator_loss", losses.ratio("discriminator_nll", "tokens"), "Discriminator loss",
        "binary cross entropy a token, nats", guessed=lambda config: math.log(2), is_on_console=True,
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
)  # fmt: skip
METRICS: dict[ObjectiveKind, tuple[Metric, ...]] = {
    "masked_tokens": _GENERATOR,
    "replaced_tokens": (*_GENERATOR, *_DISCRIMINATOR),
}


def metrics_of(config: Config) -> tuple[Metric, ...]:
    """Return the metrics of a run."""
    return METRICS[config.objective.kind]
