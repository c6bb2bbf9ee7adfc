"""ELECTRA: a generator fills hidden tokens in, a discriminator tells which tokens it replaced."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

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
        corrupted, masked = masking.corrupt(batch["input_ids"], draws.masked, sampled_BM), draws.masked
        inputs = (
            self.config.architecture, params, corrupted.corrupted_ids_BT, batch["attention_mask"],
            batch["token_type_ids"],
        )  # fmt: skip
        how = (draws.dropout_B if is_training else None, attend, segments_of(batch))
        if self.config.architecture.has_corrective_head:
            logits_BT, guesses_BMV = electra.apply_corrector(*inputs, masked.positions_BM, *how)
            with jax.named_scope("corrective_loss"):
                logits_BM = jnp.take_along_axis(logits_BT, masked.positions_BM, axis=1)
                sums |= losses.corrective_lm_sums(guesses_BMV, masked.targets_BM, masked.weights_BM, logits_BM)
        else:
            logits_BT = electra.apply_discriminator(*inputs, *how)
        return sums | losses.replaced_token_sums(logits_BT, corrupted.is_replaced_BT, batch["attention_mask"])

    def loss(self, sums: Sums, counts: Sums) -> jax.Array:
        """Return generator_weight * masked-LM loss + discriminator_weight * replaced-token loss, and what is added."""
        weights = self.config.objective
        discriminator_loss = losses.mean(sums["discriminator_nll"], counts["tokens"])
        loss = super().loss(sums, counts) + weights.discriminator_weight * discriminator_loss
        if not weights.corrective_lm_weight:
            return loss
        return loss + weights.corrective_lm_weight * losses.mean(sums["corrective_nll"], counts["masked"])

    def _total(self, found: dict[str, float]) -> float:
        weights = self.config.objective
        return (
            weights.generator_weight * found["generator_loss"]
            + weights.discriminator_weight * found["discriminator_loss"]
            + weights.corrective_lm_weight * found.get("corrective_loss", 0.0)
        )
