"""Held-out metrics, with masks and samples that are the same at every evaluation."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh
from scipy.stats import entropy

from electra_flax.config.schema import Config
from electra_flax.data.pipeline import evaluation_batches, open_split, read_vocabulary
from electra_flax.data.shards import DataFolder, ShardedExamples
from electra_flax.data.vocabulary import SpecialTokens
from electra_flax.errors import UserError
from electra_flax.model.attention_choice import choose_attention
from electra_flax.model.sharding import check_batch, make_mesh
from electra_flax.storage.staging import stage
from electra_flax.storage.workdir import Workdir
from electra_flax.training.checkpoint import Checkpoints
from electra_flax.training.initial_state import abstract_state
from electra_flax.training.losses import Sums
from electra_flax.training.metrics import MetricSums
from electra_flax.training.objectives import make_objective
from electra_flax.training.objectives.objective import Objective
from electra_flax.training.step import make_eval_step
from electra_flax.trees import Batch, Params

EvalStep = Callable[[Params, Batch, jax.Array], Sums]


def held_out_metrics(
    config: Config,
    objective: Objective,
    eval_step: EvalStep,
    params: Params,
    examples: ShardedExamples,
    mesh: Mesh,
) -> dict[str, float]:
    """Return the objective's metrics over the validation split, by token (not means of batch means)."""
    total = MetricSums()
    key = jax.random.key(config.evaluation.seed)
    batches = evaluation_batches(config, examples, mesh, config.evaluation.max_batches)
    for number, batch in enumerate(batches):
        sums = eval_step(params, batch, jax.random.fold_in(key, number))
        total.add(jax.tree.map(np.asarray, sums))
    return objective.summarize(total.sums)


def evaluate(given: str, data_path: str | None, step: int | None) -> dict[str, float]:
    """Return held-out metrics of a checkpoint. Raises UserError where there is no checkpoint or no validation split.

    `given` is the workdir; the shards are those of the phase in which the checkpoint was made, or `data_path`.
    """
    work = Workdir(given).pull()
    config = work.read_config()
    mesh = make_mesh(config.mesh)
    state = Checkpoints(work.checkpoints).restore(abstract_state(config), mesh, step)
    phase = config.phase_of(int(state.step))
    config = config.phases[phase].config
    data = DataFolder.open(stage(data_path or work.read_data_path(phase), without="train"), without="train")
    vocabulary = read_vocabulary(config, data)
    examples = open_split(config, data, "validation")
    if not len(examples):
        raise UserError(
            f"{data.path}: no validation split; make shards with electra-data shard --validation-fraction 0.01"
        )
    check_batch(config.training.batch_size, 1, mesh)
    attend = choose_attention(config.architecture, config.data.max_seq_length, mesh)
    objective = make_objective(config, vocabulary.special)
    eval_step = make_eval_step(objective, mesh, attend)
    metrics = held_out_metrics(config, objective, eval_step, state.params, examples, mesh)
    if config.architecture.has_generator_head:
        metrics["frequency_entropy"] = frequency_entropy(config, examples, vocabulary.special)
    return {"step": int(state.step), "examples": float(len(examples)), **metrics}


def frequency_entropy(config: Config, examples: ShardedExamples, special: SpecialTokens) -> float:
    """Return how many nats a token the best guess has that looks at no context, in the examples that are evaluated.

    It knows how often each token occurs in these very examples: a generator below it guesses from context.
    """
    evaluated = examples.read(range(min(len(examples), config.evaluation.max_batches * config.training.batch_size)))
    ids_BT, mask_BT, _ = np.moveaxis(evaluated, 1, 0)
    count_V = np.bincount(ids_BT[mask_BT == 1], minlength=config.model.vocab_size)
    count_V[[special.cls, special.sep]] = 0
    return float(entropy(count_V))
