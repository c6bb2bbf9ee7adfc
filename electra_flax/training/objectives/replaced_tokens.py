"""ELECTRA: a generator fills hidden tokens in, a discriminator tells which tokens it replaced."""

from __future__ import annotations

from dataclasses import dataclass

import jax

from electra_flax.model import electra
from electra_flax.model.attention import Attend
from electra_flax.training import losses, masking
from electra_flax.training.losses import Sums
from electra_flax.training.objectives.masked_tokens import Draws, MaskedTokens, segments_of
from electra_flax.trees import Batch, Params


@dataclass(frozen=True)
class ReplacedTokens(MaskedTokens):
    """Tell replaced tokens from original ones (docs/semantics.md, sections 6 and 7)."""

    def sums(self, params: Params, batch: Batch, draws: Draws, attend: Attend, is_training: bool) -> Sums:
        sums, sampled_BM = self.generate(params, batch, draws, attend, is_training)
        corrupted = masking.corrupt(batch["input_ids"], draws.masked, sampled_BM)
        logits_BT = electra.apply_discriminator(
            self.config.architecture, params, corrupted.corrupted_ids_BT, batch["attention_mask"],
            batch["token_type_ids"], draws.dropout_B if is_training else None, attend,
            segments_of(batch),
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
