"""ELECTRA: a generator fills tokens in, a discriminator tells which it replaced; Electric: how likely each one is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from electra_flax.model import electra
from electra_flax.model.attention import Attend
from electra_flax.training import losses, masking
from electra_flax.training.losses import Sums
from electra_flax.training.masking import CorruptedInputs
from electra_flax.training.objectives import contrast
from electra_flax.training.objectives.masked_tokens import Draws, MaskedTokens, Term, segments_of
from electra_flax.trees import Batch, Params


@dataclass(frozen=True)
class ReplacedTokens(MaskedTokens):
    """Tell replaced tokens from original ones (docs/semantics.md, sections 6 and 7)."""

    def count(self, batch: Batch, draws: Draws) -> Sums:
        return super().count(batch, draws) | contrast.count(batch, self.config.objective)

    def sums(self, params: Params, batch: Batch, draws: Draws, attend: Attend, is_training: bool) -> Sums:
        sums, sampled_BM = self.generate(params, batch, draws, attend, is_training)
        return sums | self.discriminator_sums(params, batch, draws, sampled_BM, attend, is_training)

    def discriminator_sums(
        self, params: Params, batch: Batch, draws: Draws, sampled_BM: jax.Array, attend: Attend, is_training: bool
    ) -> Sums:
        """Return the discriminator's sums, for what was sampled at the hidden positions."""
        corrupted = masking.corrupt(batch["input_ids"], draws.masked, sampled_BM)
        logits_BT, added = self.discriminate(params, batch, draws, corrupted, attend, is_training)
        return added | losses.replaced_token_sums(logits_BT, corrupted.is_replaced_BT, batch["attention_mask"])

    def discriminate(
        self,
        params: Params,
        batch: Batch,
        draws: Draws,
        corrupted: CorruptedInputs,
        attend: Attend,
        is_training: bool,
    ) -> tuple[jax.Array, Sums]:
        """Return the discriminator's logits_BT, and the sums of what else it learns."""
        told = electra.apply_all_heads(
            self.config.architecture, params, corrupted.corrupted_ids_BT, batch["attention_mask"],
            batch["token_type_ids"], draws.masked.positions_BM, draws.dropout_B if is_training else None, attend,
            segments_of(batch),
        )  # fmt: skip
        return told.logits_BT, self._added(params, batch, draws, told, attend, is_training)

    def _added(
        self, params: Params, batch: Batch, draws: Draws, told: electra.Told, attend: Attend, is_training: bool
    ) -> Sums:
        masked, found = draws.masked, {}
        if told.guesses_BMV is not None:
            with jax.named_scope("corrective_loss"):
                logits_BM = jnp.take_along_axis(told.logits_BT, masked.positions_BM, axis=1)
                found = losses.corrective_lm_sums(told.guesses_BMV, masked.targets_BM, masked.weights_BM, logits_BM)
        if told.views_BC is not None:
            found |= contrast.sums(
                self.config, self.special, params, batch, told.views_BC, draws.dropout_B, attend, is_training
            )
        return found

    def loss(self, sums: Sums, counts: Sums) -> jax.Array:
        """Return generator_weight * masked-LM loss + discriminator_weight * replaced-token loss, and what is added.

        Without the first where the generator is frozen.
        """
        if self.config.generator.frozen is not None:
            return self.discriminator_loss(sums, counts)
        both = self.generator_loss(sums, counts) + self._of_discriminator(sums, counts)
        return self._with_added(both, sums, counts)

    def generator_loss(self, sums: Sums, counts: Sums) -> jax.Array:
        """Return generator_weight * masked-LM loss."""
        return super().loss(sums, counts)

    def discriminator_loss(self, sums: Sums, counts: Sums) -> jax.Array:
        """Return discriminator_weight * replaced-token loss, and what is added."""
        return self._with_added(self._of_discriminator(sums, counts), sums, counts)

    def _of_discriminator(self, sums: Sums, counts: Sums) -> jax.Array:
        return self.config.objective.discriminator_weight * losses.mean(sums["discriminator_nll"], counts["tokens"])

    def _with_added(self, loss: jax.Array, sums: Sums, counts: Sums) -> jax.Array:
        objective = self.config.objective
        if objective.corrective_lm_weight:
            loss += objective.corrective_lm_weight * losses.mean(sums["corrective_nll"], counts["masked"])
        if objective.contrasts:
            loss += objective.contrast_weight * losses.mean(sums["contrast_nll"], counts["contrasted"])
        return loss

    def _total(self, found: dict[str, float]) -> float:
        weights = self.config.objective
        of_generator = 0.0 if self.config.generator.frozen is not None else found[self.guessing.metric]
        return (
            weights.generator_weight * of_generator
            + weights.discriminator_weight * found["discriminator_loss"]
            + weights.corrective_lm_weight * found.get("corrective_loss", 0.0)
            + weights.contrast_weight * found.get("contrast_loss", 0.0)
        )


@dataclass(frozen=True)
class FromSamples(ReplacedTokens):
    """Tell tokens that a frozen generator replaced before the run, which batches bring as sampled_ids [B, M]."""

    def generate(
        self, params: Params, batch: Batch, draws: Draws, attend: Attend, is_training: bool
    ) -> tuple[Sums, jax.Array]:
        return {}, batch["sampled_ids"]


class Guess(NamedTuple):
    """What two towers make of a text: as `generate` returns it, and all of it."""

    sums: Sums
    sampled_BM: jax.Array
    cloze: electra.Cloze


@dataclass(frozen=True)
class TwoTowers(ReplacedTokens):
    """ELECTRA with a generator of two towers, which guess every token from what lies on either side of it.

    They see the text, of which nothing is hidden (docs/semantics.md, section 9).
    """

    guessing: ClassVar[Term] = Term("cloze_nll", "guessed", "cloze_loss")

    def count(self, batch: Batch, draws: Draws) -> Sums:
        return super().count(batch, draws) | {"guessed": self._weights(batch).sum()}

    def sums(self, params: Params, batch: Batch, draws: Draws, attend: Attend, is_training: bool) -> Sums:
        guess = self._guess(params, batch, draws, attend, is_training)
        corrupted = masking.corrupt(batch["input_ids"], draws.masked, guess.sampled_BM)
        logits_BT, added = self.discriminate(params, batch, draws, corrupted, attend, is_training)
        logits_BT, labels_BT = self.told(logits_BT, corrupted, draws, guess)
        found = losses.replaced_token_sums(logits_BT, labels_BT, batch["attention_mask"])
        return guess.sums | added | found

    def generate(
        self, params: Params, batch: Batch, draws: Draws, attend: Attend, is_training: bool
    ) -> tuple[Sums, jax.Array]:
        guess = self._guess(params, batch, draws, attend, is_training)
        return guess.sums, guess.sampled_BM

    def _guess(self, params: Params, batch: Batch, draws: Draws, attend: Attend, is_training: bool) -> Guess:
        cloze = electra.apply_towers(
            self.config.architecture, params, batch["input_ids"], batch["attention_mask"], batch["token_type_ids"],
            self._weights(batch), draws.masked.positions_BM, draws.dropout_B if is_training else None, attend,
            segments_of(batch),
        )  # fmt: skip
        sums, sampled_BM = self.sample(cloze.logits_BMV, draws)
        return Guess(sums | {"cloze_nll": cloze.nll}, sampled_BM, cloze)

    def told(
        self, logits_BT: jax.Array, corrupted: CorruptedInputs, draws: Draws, guess: Guess
    ) -> tuple[jax.Array, jax.Array]:
        """Return logits_BT of what the discriminator must tell, and labels_BT."""
        del draws, guess
        return logits_BT, corrupted.is_replaced_BT

    def _weights(self, batch: Batch) -> jax.Array:
        return masking.is_candidate(batch, self.special).astype(jnp.float32)


@dataclass(frozen=True)
class Electric(TwoTowers):
    """Tell drawn tokens from those of the text, knowing how likely each was to be drawn (docs/semantics.md, section 9).

    Of n tokens k are drawn from the towers' distribution q. If the text's own have the density exp(-E), a token is a
    drawn one with the odds k q / ((n - k) exp(-E)). Their logarithm is E + log q + log(k / (n - k)), so what the
    discriminator adds to the rest is E.
    """

    def told(
        self, logits_BT: jax.Array, corrupted: CorruptedInputs, draws: Draws, guess: Guess
    ) -> tuple[jax.Array, jax.Array]:
        masked, cloze = draws.masked, guess.cloze
        is_drawn_BM = masked.weights_BM > 0
        log_q_BM = -losses.negative_log_likelihood(cloze.logits_BMV, guess.sampled_BM)
        log_q_BT = masking.write(cloze.log_q_BT, masked.positions_BM, log_q_BM, is_drawn_BM)
        # The share that is asked for, as in the original, not the one that rounding gives a row.
        share = self.config.masking.mask_prob
        logits_BT = logits_BT + log_q_BT + math.log(share / (1 - share))
        # A drawn token is one even where it is the text's own.
        labels_BT = masking.write(jnp.zeros_like(corrupted.is_replaced_BT), masked.positions_BM, 1, is_drawn_BM)
        return logits_BT, labels_BT
