"""ELECTRA: a generator fills hidden tokens in, a discriminator tells which tokens it replaced."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import jax

from electra_flax.model import electra
from electra_flax.model.attention import Attend
from electra_flax.model.sharding import Batch
from electra_flax.training import losses, masking
from electra_flax.training.losses import Sums
from electra_flax.training.objectives.masked_tokens import GENERATOR_METRICS, Draws, MaskedTokens
from electra_flax.training.objectives.objective import Metric
from electra_flax.trees import Params

DISCRIMINATOR_METRICS = (
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


@dataclass(frozen=True)
class ReplacedTokens(MaskedTokens):
    """Tell replaced tokens from original ones (docs/semantics.md, sections 6 and 7)."""

    metrics: ClassVar[tuple[Metric, ...]] = (*GENERATOR_METRICS, *DISCRIMINATOR_METRICS)

    def sums(self, params: Params, batch: Batch, draws: Draws, attend: Attend, is_training: bool) -> Sums:
        sums, sampled_BM = self.generate(params, batch, draws, attend, is_training)
        corrupted = masking.corrupt(batch["input_ids"], draws.masked, sampled_BM)
        logits_BT = electra.apply_discriminator(
            self.config.architecture, params, corrupted.corrupted_ids_BT, batch["attention_mask"],
            batch["token_type_ids"], draws.dropout_B if is_training else None, attend,
        )  # fmt: skip
        return sums | losses.replaced_token_sums(logits_BT, corrupted.is_replaced_BT, batch["attention_mask"])

    def loss(self, sums: Sums, counts: Sums) -> jax.Array:
        """Return generator_weight * masked-LM loss + discriminator_weight * replaced-token loss."""
        discriminator_loss = losses.mean(sums["discriminator_nll"], counts["tokens"])
        return super().loss(sums, counts) + self.config.objective.discriminator_weight * discriminator_loss

    def _total(self, found: dict[str, float]) -> float:
        weights = self.config.objective
        return (
            weights.generator_weight * found["generator_loss"]
            + weights.discriminator_weight * found["discriminator_loss"]
        )
