"""Masked-language modelling: the generator's loss, and the whole of it with objective.kind=masked_tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from electra_flax.config.schema import Config
from electra_flax.data.vocabulary import SpecialTokens
from electra_flax.model import electra, randomness
from electra_flax.model.attention import Attend
from electra_flax.training import losses, masking
from electra_flax.training.budget import share_at
from electra_flax.training.losses import Sums, Totals
from electra_flax.training.objectives.metrics import metrics_of
from electra_flax.training.objectives.objective import RowSeeds
from electra_flax.training.packed_masking import choose_packed, of_segment
from electra_flax.training.temperature import temperature_at
from electra_flax.trees import Batch, Params


class Draws(NamedTuple):
    """What is hidden, and the seeds of the rest."""

    masked: masking.MaskedInputs
    sample: jax.Array | masking.Slots
    dropout_B: jax.Array
    temperature_B: jax.Array | None = None
    """Of sampling, the same in all rows, where it changes with the step."""


@dataclass(frozen=True)
class Term:
    """A mean that is learned: the names of its sum, of what that is divided by, and of the metric."""

    total: str
    count: str
    metric: str


def segments_of(batch: Batch) -> electra.Segments | None:
    """Return what tells the examples of rows apart, where rows hold several."""
    return electra.Segments(batch["segments"], batch["places"]) if "segments" in batch else None


def _as_one_example(batch: Batch, seeds: RowSeeds) -> tuple[Batch, RowSeeds]:
    """Return rows of one example each as packed ones that hold no other."""
    place_BT = jax.lax.broadcasted_iota(jnp.int32, batch["input_ids"].shape, 1)
    packed = {**batch, "segments": batch["attention_mask"], "places": place_BT}
    return packed, RowSeeds(seeds.mask_B[:, None], seeds.sample_B[:, None], seeds.dropout_B)


@dataclass(frozen=True)
class MaskedTokens:
    """Guess the tokens that are hidden (docs/semantics.md, sections 5 and 6)."""

    config: Config
    special: SpecialTokens
    continuations: tuple[int, ...] = ()
    """Entries of the vocabulary that continue a word; none where masking.unit does not ask."""
    guessing: ClassVar[Term] = Term("generator_nll", "masked", "generator_loss")
    """What the generator learns."""

    @property
    def rows_together(self) -> int:
        return self.config.objective.rows_together

    def draw(self, batch: Batch, seeds: RowSeeds, step: jax.Array | None) -> Draws:
        share = share_at(self.config.masking, self.config.training.num_steps, step)
        with jax.named_scope("masking"):
            draws = self._draw(batch, seeds, share)
        temperature = temperature_at(self.config.objective, self.config.training.num_steps, step)
        if isinstance(temperature, jax.Array):
            return draws._replace(temperature_B=jnp.full_like(seeds.dropout_B, temperature, jnp.float32))
        return draws

    def _draw(self, batch: Batch, seeds: RowSeeds, share: float | jax.Array) -> Draws:
        if "segments" in batch:
            return self._draw_by_example(batch, seeds, share)
        if self.config.masking.unit != "token":
            return self._draw_by_example(*_as_one_example(batch, seeds), share)
        masked = masking.mask_inputs(
            seeds.mask_B, batch, share, self.config.masking, self.special, self.config.max_predictions_per_seq
        )
        return Draws(masked, seeds.sample_B, seeds.dropout_B)

    def _draw_by_example(self, batch: Batch, seeds: RowSeeds, share: float | jax.Array) -> Draws:
        score_BS, replace_BS = (randomness.fold_in(seeds.mask_B, number) for number in range(2))
        is_candidate_BT = masking.is_candidate(batch, self.special)
        chosen = choose_packed(score_BS, batch, share, is_candidate_BT, self.config, self.continuations)
        replace_BM = randomness.uniform_at(chosen.rank_BM, of_segment(replace_BS, chosen.segment_BM))
        becomes_mask_BM = replace_BM < self.config.masking.mask_token_prob
        masked = masking.hide(
            batch["input_ids"], chosen.positions_BM, chosen.weights_BM, becomes_mask_BM, self.special.mask
        )
        sample = masking.Slots(of_segment(seeds.sample_B, chosen.segment_BM), chosen.rank_BM)
        return Draws(masked, sample, seeds.dropout_B)

    def count(self, batch: Batch, draws: Draws) -> Sums:
        return losses.denominators(draws.masked.weights_BM, batch["attention_mask"])

    def sums(self, params: Params, batch: Batch, draws: Draws, attend: Attend, is_training: bool) -> Sums:
        return self.generate(params, batch, draws, attend, is_training)[0]

    def generate(
        self, params: Params, batch: Batch, draws: Draws, attend: Attend, is_training: bool
    ) -> tuple[Sums, jax.Array]:
        """Return the generator's sums, and an id sampled for each hidden position, int32 [B, M], without gradient."""
        masked = draws.masked
        logits_BMV = electra.apply_generator(
            self.config.architecture, params, masked.masked_ids_BT, batch["attention_mask"], batch["token_type_ids"],
            masked.positions_BM, draws.dropout_B if is_training else None, attend, segments_of(batch),
        )  # fmt: skip
        return self.sample(logits_BMV, draws)

    def sample(self, logits_BMV: jax.Array, draws: Draws) -> tuple[Sums, jax.Array]:
        """Return what `generate` does, for the generator's logits at the hidden positions."""
        masked, settings = draws.masked, self.config.objective
        temperature: float | jax.Array = settings.temperature
        if draws.temperature_B is not None:
            temperature = draws.temperature_B[:, None, None]
        with jax.named_scope("sampling"):
            sampled_BM = masking.sample_replacements(
                draws.sample, logits_BMV, masked.targets_BM, temperature, settings.disallow_correct
            )
        with jax.named_scope("generator_loss"):
            sums = losses.masked_lm_sums(logits_BMV, masked.targets_BM, masked.weights_BM, sampled_BM)
        return sums, sampled_BM

    def loss(self, sums: Sums, counts: Sums) -> jax.Array:
        """Return generator_weight times the mean over the positions that are guessed."""
        guessing = self.guessing
        return self.config.objective.generator_weight * losses.mean(sums[guessing.total], counts[guessing.count])

    def summarize(self, totals: Totals) -> dict[str, float]:
        found = {metric.name: metric.value(totals) for metric in metrics_of(self.config)}
        return {"loss": self._total(found), **found}

    def _total(self, found: dict[str, float]) -> float:
        return found[self.guessing.metric]
