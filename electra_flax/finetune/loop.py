"""The fine-tuning of one seed, read from top to bottom."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from electra_flax.config.schema import CheckpointConfig, LoggingConfig
from electra_flax.errors import Preempted, RunError
from electra_flax.finetune.batches import epoch_batches
from electra_flax.finetune.data import Part, TaskData
from electra_flax.finetune.heads import Batch, Outputs
from electra_flax.finetune.predictions import Prediction, best_null_threshold, decode, scores
from electra_flax.finetune.step import Network, Steps, make_batch, predict_rows
from electra_flax.finetune.task import Task, Training
from electra_flax.model.electra import Params
from electra_flax.runtime import processes
from electra_flax.runtime.interruption import Interruption, Watchdog
from electra_flax.storage import guard
from electra_flax.storage.workdir import Workdir
from electra_flax.training.agreement import Agreement, Wishes
from electra_flax.training.checkpoint import Checkpoints
from electra_flax.training.metrics import MetricWriter, Progress

log = logging.getLogger("electra_flax")

_KEPT = CheckpointConfig(max_to_keep=1, keep_best=1)


class SeedResult(NamedTuple):
    """What became of one seed."""

    params: Params
    """The best checkpoint's, numpy float32."""
    step: int
    """Its step."""
    history: list[dict[str, Any]]
    """{"step", "epoch", "loss", metric: value on the examples that choose} of each evaluation."""
    predictions: list[Prediction]
    """Of the scored examples."""
    scores: dict[str, float]
    """Of the scored examples."""
    null_threshold: float
    """Of answers, chosen on the examples that choose."""
    seconds: float
    """Of training, without what an interrupted start had spent."""


def finetune_seed(
    task: Task,
    training: Training,
    data: TaskData,
    network: Network,
    steps: Steps,
    begin: Params,
    seed: int,
    work: Workdir,
    interruption: Interruption,
    watchdog: Watchdog,
) -> SeedResult:
    """Learns from `begin`, keeps the best checkpoint in `work` and scores it: the same in all processes.

    A start that was interrupted goes on from its last evaluation. Raises RunError where the loss is not finite,
    Preempted where it was asked to stop and has saved.
    """
    started = time.perf_counter()
    rows, longest = data.train.rows, training.max_seq_length
    per_epoch = training.steps_per_epoch(len(rows))
    num_steps = training.num_steps(len(rows))
    evaluations = training.evaluations or training.epochs
    evaluated_at = {round(num_steps * (i + 1) / evaluations) for i in range(evaluations)}

    # ------------------------------------------------------------------------- state: newest checkpoint, or fresh
    state = steps.init({**begin, **jax.device_get(network.head.init(jax.random.key(seed)))})
    watchdog.alive("reading the checkpoint")
    checkpoints = Checkpoints(work.checkpoints / str(seed), _KEPT)
    history: list[dict[str, Any]] = []
    losses: list[float] = []
    if restored := checkpoints.restore_newest(steps.shapes, network.mesh):
        state, notes = restored
        history, losses = notes["history"], notes["losses"]
        log.info("seed %d: continuing from step %d", seed, int(state.step))
    step = int(state.step)
    records = seed_folder(work, seed)
    records.mkdir(parents=True, exist_ok=True)
    was_evaluated = bool(history) and history[-1]["step"] == step
    writer = MetricWriter(records, None, step, was_evaluated, enabled=processes.is_main())

    def predict_step(params: Params, batch: Batch) -> Outputs:
        watchdog.alive("predicting")
        return steps.predict(params, batch)

    def predict(part: Part, params: Params) -> list[Prediction]:
        outputs = predict_rows(network, predict_step, params, part.rows, training.batch_size, longest)
        return decode(task, data.labels, part.examples, part.rows, outputs, training.max_answer_length)

    def threshold_of(predictions: list[Prediction]) -> float:
        return best_null_threshold(task, data.choice.examples, predictions) if task.kind == "answers" else math.inf

    def save(score: float | None = None) -> None:
        watchdog.alive("saving")
        notes = {"history": history, "losses": losses}
        problem = processes.first_problem(guard.push(work))  # the numbers are never behind the weights
        check(problem or checkpoints.save(state, notes, None if score is None else -score))

    def check(problem: str) -> None:
        if problem:
            raise RunError(f"{work}: a checkpoint could not be written ({problem}): make room and start again")

    # ------------------------------------------------------------------------------------------------------- loop
    def record(step: int, sums: dict[str, jax.Array], sent: Any) -> bool:
        """Takes the numbers of a step, which is done when they are here: whether some process is asked to stop."""
        losses.append(float(sums["loss"]))
        watchdog.alive(f"step {step + 1}")
        if step % every == 0 or step in evaluated_at:
            recent = float(np.mean(losses[-every:]))  # at most those since the last evaluation
            writer.write(step, "train", _known({"loss": recent, "grad_norm": float(sums["grad_norm"])}))
        return agreement.receive(sent).stop

    every = LoggingConfig().every_steps
    interruption.saves = True
    agreement = Agreement(network.mesh)
    pending: tuple[int, dict[str, jax.Array], Any] | None = None
    with Progress(num_steps, step, enabled=processes.is_main()) as progress:
        while step < num_steps and not _is_enough(history, task, training.patience):
            epoch, place = divmod(step, per_epoch)
            if place == 0 or pending is None:
                batches = epoch_batches(rows, training.batch_size, seed, epoch)
            batch = make_batch(network, rows, batches[place], training.batch_size, longest)
            state, sums = steps.train(state, batch, np.uint32(seed))
            sent = agreement.send(Wishes(save=False, stop=interruption.requested))
            step += 1
            # Step k's loss is read after step k + 1 is dispatched: the device never waits for the host.
            stops = pending is not None and record(*pending)
            pending = step, sums, sent
            progress.update()
            is_evaluated = step in evaluated_at
            if is_evaluated or stops:
                stops |= record(*pending)
                pending = None
            if is_evaluated:
                loss, losses = float(np.mean(losses)), []
                if not math.isfinite(loss):
                    raise RunError(
                        f"seed {seed}: the loss is not finite before step {step}: lower learning_rate="
                        f"{training.learning_rate:g}"
                    )
                predictions = predict(data.choice, state.params)
                found = scores(task, data.labels, data.choice.examples, predictions, threshold_of(predictions))
                history.append({"step": step, "epoch": step / per_epoch, "loss": loss, **found})
                writer.write(step, "validation", _known(found))
                progress.print(f"seed {seed} epoch {step / per_epoch:.2f}: loss {loss:.4f}, {_shown(found)}")
                save(_comparable(found[task.metrics[0]]))
            if stops:
                if not is_evaluated:
                    save()
                check(checkpoints.wait())
                raise Preempted(f"asked to stop: saved at step {step} of {num_steps}; the same command continues")

    # ---------------------------------------------------------------------------------------------------- the end
    writer.close()
    check(checkpoints.wait())
    interruption.saves = False
    kept = [found for found in history if found["step"] in checkpoints.steps]  # of equally good ones not all are
    best = max(kept, key=lambda found: _comparable(found[task.metrics[0]]))
    state = checkpoints.restore(steps.shapes, network.mesh, best["step"])
    checkpoints.close()
    threshold = threshold_of(predict(data.choice, state.params)) if task.kind == "answers" else math.inf
    predictions = predict(data.scored, state.params)
    params = jax.device_get(state.params)
    return SeedResult(
        params, best["step"], history, predictions,
        scores(task, data.labels, data.scored.examples, predictions, threshold), threshold,
        time.perf_counter() - started,
    )  # fmt: skip


def _is_enough(history: list[dict[str, Any]], task: Task, patience: int) -> bool:
    """Whether so many evaluations brought nothing better."""
    values = [_comparable(found[task.metrics[0]]) for found in history]
    return bool(patience and values) and len(values) - 1 - int(np.argmax(values)) >= patience


def seed_folder(work: Workdir, seed: int) -> Path:
    """What is kept of a seed."""
    return work.folder / "seeds" / str(seed)


def _known(values: dict[str, float]) -> dict[str, float]:
    """Without those that are no number."""
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _comparable(score: float) -> float:
    """A score that is not a number, as a correlation with a constant, is the worst."""
    return score if math.isfinite(score) else -1.0


def _shown(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in found.items())
