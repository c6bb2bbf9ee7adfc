"""Held-out metrics, with masks and samples that are the same at every evaluation, and the health of states."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from electra_flax.config.schema import Config
from electra_flax.data.corrupted import More, no_more
from electra_flax.data.pipeline import evaluation_batches, open_split, read_vocabulary
from electra_flax.data.shards import DataFolder, ShardedExamples
from electra_flax.data.vocabulary import SpecialTokens
from electra_flax.errors import UserError
from electra_flax.model.attention import Attend
from electra_flax.model.attention_choice import choose_attention
from electra_flax.model.sharding import check_batch, make_mesh
from electra_flax.storage.bucket import is_remote
from electra_flax.storage.staging import stage
from electra_flax.storage.workdir import Workdir
from electra_flax.training import identity
from electra_flax.training.checkpoint import Checkpoints
from electra_flax.training.first_values import token_frequency
from electra_flax.training.frozen import ReadFrozen
from electra_flax.training.health import LEAST_ROWS, make_read_states, state_sums
from electra_flax.training.initial_state import abstract_state
from electra_flax.training.metrics import MetricSums
from electra_flax.training.objectives import make_objective
from electra_flax.training.objectives.metrics import health_of
from electra_flax.training.objectives.objective import Objective
from electra_flax.training.probe import Probe, Prober, ProbeRows
from electra_flax.training.step import make_eval_step
from electra_flax.trees import Batch, Params


class HeldOut:
    """The held-out examples of a phase, and all that is measured on them.

    Each example has a row of its own, also where training packs them: the numbers are those of any other run.
    """

    def __init__(
        self,
        config: Config,
        objective: Objective,
        examples: ShardedExamples,
        mesh: Mesh,
        attend: Attend,
        probe_rows: ProbeRows | None,
        *frozen: Params,
        more: More = no_more,
    ) -> None:
        self._config, self._objective, self._examples, self._mesh = config, objective, examples, mesh
        self._frozen, self._more = frozen, more
        self._eval_step = make_eval_step(config, objective, mesh, attend)
        self._read_states = make_read_states(config.architecture, mesh, attend)
        self._prober = Prober(probe_rows, config, mesh, self._read_states) if probe_rows else None

    def __len__(self) -> int:
        return len(self._examples)

    def metrics(self, params: Params) -> dict[str, float]:
        """Return the objective's metrics over the validation split, by token (not means of batch means), and health."""
        config, total = self._config, MetricSums()
        key = jax.random.key(config.evaluation.seed)
        for number, batch in enumerate(self._batches(config.evaluation.max_batches, self._more)):
            sums = self._eval_step(params, batch, jax.random.fold_in(key, number), *self._frozen)
            total.add(jax.tree.map(np.asarray, sums))
        few = -(-LEAST_ROWS // config.training.batch_size)
        health = state_sums(self._read_states, params, self._batches(few)).sums
        if self._prober:
            health |= self._prober.sums(params)
        return self._objective.summarize(total.sums) | health_of(health)

    def _batches(self, most: int, more: More = no_more) -> Iterator[Batch]:
        return evaluation_batches(self._config, self._examples, self._mesh, most, more)


def evaluate(
    given: str, data_path: str | None, step: int | None, probe: Probe | None, read_frozen: ReadFrozen
) -> dict[str, float]:
    """Return held-out metrics of a checkpoint. Raises UserError where there is no checkpoint or no validation split.

    `given` is the workdir; the shards are those of the phase in which the checkpoint was made, or `data_path`.
    What `probe` adds is of that phase's length; `read_frozen` finds a generator that the run does not train.
    """
    work = Workdir(given).pull()
    config = work.read_config().online()  # of any shards, with the generator's own loss
    mesh = make_mesh(config.mesh)
    state = Checkpoints(work.checkpoints).restore(abstract_state(config), mesh, step)
    phase = config.phase_of(int(state.step))
    config = config.phases[phase].config
    place = data_path or work.read_data_path(phase)
    data = DataFolder.open(stage(place, config.data.staging_folder, without="train"), without="train")
    vocabulary = read_vocabulary(config, data)
    examples = open_split(config, data, "validation")
    if not len(examples):
        raise UserError(
            f"{data.path}: no validation split: make shards with electra-data shard --validation-fraction 0.01"
        )
    check_batch(config.training.batch_size, 1, mesh)
    length = config.data.max_seq_length
    rows = probe.rows(vocabulary, identity.casing(data, vocabulary), length) if probe else None
    attend = choose_attention(config.architecture, length, mesh)
    objective = make_objective(config, vocabulary.special, vocabulary.continuations)
    frozen = read_frozen(config, vocabulary)
    identity.check_frozen(work, frozen.sha256 if frozen else "")
    held_out = HeldOut(
        config, objective, examples, mesh, attend, rows, *([frozen.place(config, mesh)] if frozen else [])
    )
    metrics = held_out.metrics(state.params)
    if config.architecture.has_generator_head and not is_remote(place):  # on gs:// the training shards stay there
        train = open_split(config, DataFolder.open(data.path), "train")
        metrics["frequency_loss"] = frequency_loss(config, train, examples, vocabulary.special)
    return {"step": int(state.step), "examples": len(examples), **metrics}


def frequency_loss(config: Config, train: ShardedExamples, held_out: ShardedExamples, special: SpecialTokens) -> float:
    """Return how many nats a held-out token costs whoever knows how often each occurs in training, and no context.

    A generator below it guesses from context. Of the examples that are evaluated; [CLS] and [SEP] are left out.
    """
    frequency_V = token_frequency(train, config.model.vocab_size, special)
    evaluated = held_out.read(range(min(len(held_out), config.evaluation.max_batches * config.training.batch_size)))
    ids_BT, mask_BT, _ = np.moveaxis(evaluated, 1, 0)
    is_guessed_BT = (mask_BT == 1) & (ids_BT != special.cls) & (ids_BT != special.sep)
    return float(-np.log(frequency_V[ids_BT[is_guessed_BT]]).mean())
