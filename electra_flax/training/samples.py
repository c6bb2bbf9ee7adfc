"""What the samples of a frozen generator depend on, and which of them a run needs (data/corrupted.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from electra_flax.config.loading import config_fields
from electra_flax.config.schema import Config
from electra_flax.data.corrupted import GENERATOR, PACKED_ROWS, Corrupted, Track
from electra_flax.errors import UserError
from electra_flax.training.fingerprint import fingerprint
from electra_flax.training.objectives.objective import Objective, batch_seeds
from electra_flax.training.packed_masking import max_predictions_per_row
from electra_flax.trees import Batch

_FIX = "set it to what the folder has, or write another with electra-flax corrupt"
# A discriminator's sizes and rates are not among them: many may learn from the same samples.
_FIELDS = (
    "model.vocab_size", "model.embedding_size", "model.max_position_embeddings", "model.type_vocab_size",
    "model.hidden_act", "model.layer_norm_eps", "generator.", "masking.", "objective.temperature",
    "objective.initial_temperature", "objective.disallow_correct", "data.max_seq_length", "data.shuffle_seed",
    "data.packing", "packing.", "training.batch_size", "training.num_steps", "training.seed", "training.compute_dtype",
    "long_phase.", "evaluation.seed", "evaluation.max_batches",
)  # fmt: skip
_NOT = ("generator.frozen", "generator.initialize_", "long_phase.gradient_accumulation_steps")


class Samples(NamedTuple):
    """Those of a phase."""

    folder: Corrupted
    train: Track
    held_out: Track

    def check(self, config: Config, objective: Objective, batch: Batch, start: int, step: int) -> None:
        """Raise UserError where a step's batch, or the places that it replaces, are not those that were written."""
        print_of = make_print(config, objective)
        written = self.folder.record(self.train, step - start)["prints"]
        if not np.array_equal(np.asarray(print_of(batch, step)), written):
            raise UserError(
                f"data.corrupted={config.data.corrupted}: at step {step + 1:,} other tokens, or other places, were "
                "written than this run has: write it again with electra-flax corrupt of this release and these shards"
            )


def make_print(config: Config, objective: Objective) -> Callable[[Batch, int], jax.Array]:
    """Return (batch, steps before it) -> a number for its tokens and one for the places it replaces, uint32 [2]."""

    def print_of(batch: Batch, step: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(config.training.seed), step)
        draws = objective.draw(batch, batch_seeds(key, batch), step)
        found: jax.Array = fingerprint((batch["input_ids"], draws.masked.positions_BM))
        return found

    compiled = jax.jit(print_of)
    return lambda batch, step: compiled(batch, np.int32(step))


def depends_on(
    config: Config, shards: str, packed_rows: Sequence[int], held_out: Sequence[int], generator: str
) -> dict[str, str]:
    """Return all that samples are a function of, by name.

    `shards` tells data apart, `held_out` are examples of each phase, `generator` is the sha256 of its weights.
    """
    fields = {
        name: str(value)
        for name, value in config_fields(config).items()
        if name.startswith(_FIELDS) and not name.startswith(_NOT)
    }
    more = {PACKED_ROWS: " ".join(map(str, packed_rows)), "held-out examples": " ".join(map(str, held_out))}
    return {GENERATOR: generator, **fields, "shards": shards, **more}


def tracks_of(config: Config, packed_rows: Sequence[int], held_out: Sequence[int]) -> list[tuple[Track, Track]]:
    """Return the training batches of each phase, and its evaluations'."""
    found = []
    for number, (phase, examples) in enumerate(zip(config.phases, held_out, strict=True)):
        ours, size = phase.config, phase.config.training.batch_size
        rows = packed_rows[number] if packed_rows else size
        columns, vocab = max_predictions_per_row(ours), ours.model.vocab_size
        # Evaluations give each example a row of its own, with the columns of the original where tokens are chosen.
        alone = columns if ours.masking.unit != "token" else ours.max_predictions_per_seq
        batches = min(-(-examples // size), ours.evaluation.max_batches)
        train = Track(f"train-{number}", phase.end - phase.start, rows, columns, vocab)
        found.append((train, Track(f"held_out-{number}", batches, size, alone, vocab)))
    return found


def samples_of(
    config: Config, corrupted: Corrupted, shards: str, packed_rows: Sequence[int], held_out: Sequence[int]
) -> list[Samples]:
    """Return each phase's. Raises UserError where the folder is another run's, or not done."""
    corrupted.check_same(depends_on(config, shards, packed_rows, held_out, corrupted.generator), _FIX)
    tracks = tracks_of(config, packed_rows, held_out)
    corrupted.check_written([track for both in tracks for track in both])
    return [Samples(corrupted, *both) for both in tracks]
