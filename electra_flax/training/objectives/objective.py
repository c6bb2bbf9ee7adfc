"""What an objective is: draws, losses as sums and counts, and what these amount to.

The step (training/step.py) asks for them in this order: `draw` for the whole batch, `count` what losses are divided by,
`sums` of each slice of the batch, and the `loss` of sums and counts.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax

from electra_flax.config.schema import Config
from electra_flax.data.vocabulary import SpecialTokens
from electra_flax.model import randomness
from electra_flax.model.attention import Attend
from electra_flax.training.losses import Sums, Totals
from electra_flax.trees import Batch, Params

Draws = Any
"""A tree of arrays with B rows: all that is random in a batch."""


class RowSeeds(NamedTuple):
    """A step's randomness: one int32 seed a row of the global batch for each use.

    Of packed rows, `mask_B` and `sample_B` are [B, S]: one a row's example.
    """

    mask_B: jax.Array
    sample_B: jax.Array
    dropout_B: jax.Array


def batch_seeds(key: jax.Array, batch: Batch) -> RowSeeds:
    """Return the seeds of a global batch: those of an example of packed rows depend on the key and its number alone."""
    rows = row_seeds(key, batch["input_ids"].shape[0])
    if "examples" not in batch:
        return rows
    seeds_BS = randomness.random_bits(batch["examples"], randomness.row_seeds(key, 1)[None])
    return RowSeeds(randomness.fold_in(seeds_BS, 0), randomness.fold_in(seeds_BS, 1), rows.dropout_B)


def row_seeds(key: jax.Array, num_rows: int) -> RowSeeds:
    """Return the seeds of a global batch; those of a row depend on the key and its place alone."""
    seeds_B = randomness.row_seeds(key, num_rows)
    return RowSeeds(*(randomness.fold_in(seeds_B, number) for number in range(3)))


class Objective(Protocol):
    """Built from a run's configuration, the ids of its special tokens, and those that continue a word; hashable."""

    def __init__(self, config: Config, special: SpecialTokens, continuations: tuple[int, ...]) -> None: ...

    @property
    def rows_together(self) -> int:
        """How many consecutive rows of a batch, from its first on, its slices hold whole."""

    def draw(self, batch: Batch, seeds: RowSeeds, step: jax.Array | None) -> Draws:
        """Return all that is random, for the whole batch: slices of it are those of the batch.

        `step` is how many were made before; None: an evaluation.
        """

    def count(self, batch: Batch, draws: Draws) -> Sums:
        """Return what sums are divided by, known before any slice of the batch is computed."""

    def sums(self, params: Params, batch: Batch, draws: Draws, attend: Attend, is_training: bool) -> Sums:
        """Return float32 sums over a slice of the batch, with dropout where it `is_training`."""

    def loss(self, sums: Sums, counts: Sums) -> jax.Array:
        """Return the loss, of which the gradient is taken."""

    def summarize(self, totals: Totals) -> dict[str, float]:
        """Return "loss" and all metrics of the kind (metrics.py)."""


class OfTwoModels(Objective, Protocol):
    """One whose models can take turns: a generator, and a discriminator of what it sampled."""

    def generate(
        self, params: Params, batch: Batch, draws: Draws, attend: Attend, is_training: bool
    ) -> tuple[Sums, jax.Array]:
        """Return the generator's part of the sums, and what it samples, rows of the batch."""

    def discriminator_sums(
        self, params: Params, batch: Batch, draws: Draws, sampled_BM: jax.Array, attend: Attend, is_training: bool
    ) -> Sums:
        """Return the other part, for samples."""

    def generator_loss(self, sums: Sums, counts: Sums) -> jax.Array:
        """Return the generator's part of the loss, for its part of the sums."""

    def discriminator_loss(self, sums: Sums, counts: Sums) -> jax.Array:
        """Return the discriminator's."""
