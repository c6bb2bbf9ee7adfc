"""The fine-tuning of one seed: what is special about it in the loop, and the result that its best checkpoint gives."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from electra_flax import formats
from electra_flax.config.schema import CheckpointConfig, TrainingConfig
from electra_flax.errors import RunError
from electra_flax.finetuning.batches import epoch_batches
from electra_flax.finetuning.data import Part, TaskData
from electra_flax.finetuning.heads import Batch, Outputs
from electra_flax.finetuning.predictions import Prediction, best_null_threshold, decode, scores
from electra_flax.finetuning.result import RECORD_EVERY, SeedResult, seed_folder
from electra_flax.finetuning.step import Network, Steps, make_batch, predict_rows
from electra_flax.finetuning.task import Task, Training
from electra_flax.runtime.interruption import Interruption, Watchdog
from electra_flax.storage import guard
from electra_flax.storage.workdir import Workdir
from electra_flax.training.loop import Evaluation, Loop, Places, Rhythm, on_one_line
from electra_flax.training.losses import Sums, Totals
from electra_flax.training.metrics import RunNotes
from electra_flax.training.state import TrainState
from electra_flax.trees import Params

log = logging.getLogger("electra_flax")


class SeedNotes(RunNotes, total=False):
    """What a seed's checkpoint holds beside the state."""

    history: list[dict[str, Any]]
    losses: list[float]
    """Of the steps since the last evaluation."""


class Shared(NamedTuple):
    """What all seeds of a fine-tuning share."""

    task: Task
    training: Training
    data: TaskData
    network: Network
    steps: Steps


def finetune_seed(
    shared: Shared, begin: Params, seed: int, work: Workdir, interruption: Interruption, watchdog: Watchdog
) -> SeedResult:
    """Learn from `begin`, keep the best checkpoint in `work` and score it: the same in all processes.

    A start that was interrupted goes on from its last checkpoint. Raises RunError where the loss is not finite,
    Preempted where it was asked to stop and has saved.
    """
    started = time.perf_counter()
    task, _, data, network, steps = shared
    learner = Seed(shared, begin, seed, watchdog)
    folder = seed_folder(work, seed)
    folder.mkdir(parents=True, exist_ok=True)
    places = Places(folder, work.checkpoints / str(seed), functools.partial(guard.push, work))
    params, step = _learn(learner, places, interruption, watchdog)
    # Chosen where the checkpoint was: on the scored examples it would flatter the score.
    threshold = learner.threshold_of(learner.predict(data.choice, params)) if task.kind == "answers" else math.inf
    predictions = learner.predict(data.scored, params)
    return SeedResult(
        jax.device_get(params), step, learner.history, predictions,
        scores(task, data.labels, data.scored.examples, predictions, threshold), threshold,
        time.perf_counter() - started,
    )  # fmt: skip


def _learn(learner: Seed, places: Places, interruption: Interruption, watchdog: Watchdog) -> tuple[Params, int]:
    """Return the best checkpoint's parameters and its step; the last state is gone by then."""
    with Loop(learner, places, interruption, watchdog) as loop:
        loop.run()
        # Of equally good ones not all are kept.
        kept = [found for found in learner.history if found["step"] in loop.checkpoints.steps]
        best = max(kept, key=learner.score_of)
        return loop.checkpoints.restore_params(learner.shapes.params, best["step"]), best["step"]


class Seed:
    """One seed of a task, as the loop learns it."""

    notes_type = SeedNotes
    # Two checkpoints at most lie on the disk: the last to go on from, the best to be the result. Evaluations choose, so
    # none may be left out, not even by a run that is asked to stop.
    rhythm = Rhythm(
        CheckpointConfig(max_to_keep=1, keep_best=1), TrainingConfig.max_skipped_steps, needs_every_evaluation=True
    )
    start = 0
    shown: tuple[str, ...] = ("loss", "tokens_per_sec")

    def __init__(self, shared: Shared, begin: Params, seed: int, watchdog: Watchdog) -> None:
        self._task, training, self._data, self._network, self._steps = shared
        self._training, self._begin, self._seed, self._watchdog = training, begin, seed, watchdog
        self.mesh, self.shapes = self._network.mesh, self._steps.shapes
        num_rows = len(self._data.train.rows)
        self._per_epoch = training.steps_per_epoch(num_rows)
        self.end = self.total = training.num_steps(num_rows)
        evaluations = training.evaluations or training.epochs
        # Of more evaluations than steps, the first would come before anything is learned.
        self._evaluated_at = {max(1, round(self.end * (i + 1) / evaluations)) for i in range(evaluations)}
        self.history: list[dict[str, Any]] = []
        self._losses: list[float] = []

    def fresh(self) -> TrainState:
        head = self._network.head.init(jax.random.key(self._seed))
        return self._steps.init({**self._begin, **jax.device_get(head)})

    def prepare(self, state: TrainState, is_fresh: bool) -> None:
        """Compile nothing yet: batches have several lengths, and each is compiled when it comes."""
        if not is_fresh:
            log.info("seed %d: continuing from step %s", self._seed, f"{int(state.step):,}")

    def batches(self, step: int) -> Iterator[Batch]:
        rows, size = self._data.train.rows, self._training.batch_size
        while True:
            # An epoch's order depends on seed and epoch alone: a run that goes on is given the rest of it.
            epoch, place = divmod(step, self._per_epoch)
            for indices in epoch_batches(rows, size, self._seed, epoch)[place:]:
                yield make_batch(self._network, rows, indices, size, self._training.max_seq_length)
                step += 1

    def least_seconds(self, step: int) -> float | None:
        return None

    def advance(self, step: int, state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        return self._steps.train(state, batch, np.uint32(self._seed))

    def add(self, step: int, sums: dict[str, np.ndarray]) -> None:
        if not sums["skipped"]:  # of a step that was not finite: its loss would make the mean of all of them none
            self._losses.append(float(sums["loss"]))

    def summarize(self, totals: Totals) -> dict[str, float]:
        return {"loss": float(totals["loss"] / totals["steps"])}

    def records(self, step: int) -> bool:
        return step % RECORD_EVERY == 0 or self.evaluates(step)

    def evaluates(self, step: int) -> bool:
        return step in self._evaluated_at

    def saves(self, step: int) -> bool:
        return step in self._evaluated_at  # the loop saves every ten minutes besides

    def evaluate(self, step: int, params: Params) -> Evaluation | None:
        """Return scores on the examples that choose. Raises RunError where no step since the last time was finite."""
        if not self._losses:
            raise RunError(self._diverged(f"no step before {step:,} was finite"))
        loss, self._losses = float(np.mean(self._losses)), []
        choice = self._data.choice
        predictions = self.predict(choice, params)
        found = scores(self._task, self._data.labels, choice.examples, predictions, self.threshold_of(predictions))
        epoch = step / self._per_epoch
        self.history.append({"step": step, "epoch": epoch, "loss": loss, **found})
        known = {name: value for name, value in found.items() if math.isfinite(value)}
        line = f"seed {self._seed} epoch {epoch:.2f}: loss {formats.number(loss)}, {on_one_line(found, found)}"
        return Evaluation(known, line, -self.score_of(found))

    def score_of(self, found: dict[str, Any]) -> float:
        """Return by what one evaluation is better than another: no number, as of a constant's correlation, is worst."""
        score: float = found[self._task.metrics[0]]
        return score if math.isfinite(score) else -1.0  # the least that a correlation can be

    def was_evaluated(self, step: int) -> bool:
        return bool(self.history) and self.history[-1]["step"] == step

    def is_enough(self) -> bool:
        """Return whether so many evaluations brought nothing better."""
        values = [self.score_of(found) for found in self.history]
        patience = self._training.patience
        return bool(patience and values) and len(values) - 1 - int(np.argmax(values)) >= patience

    def notes(self) -> dict[str, Any]:
        return {"history": self.history, "losses": self._losses}

    def restore(self, notes: dict[str, Any]) -> None:
        self.history, self._losses = list(notes.get("history", [])), list(notes.get("losses", []))

    def explain_not_finite(self, first: int, last: int, state: TrainState, batch: Batch) -> str:
        del state, batch
        return self._diverged(f"no finite step from {first:,} to {last:,}, twice")

    def _diverged(self, what: str) -> str:
        return f"seed {self._seed}: {what}: lower learning_rate={self._training.learning_rate:g}"

    def predict(self, part: Part, params: Params) -> list[Prediction]:
        """Return what the model says of all examples of a part, in their order."""

        def step(params: Params, batch: Batch) -> Outputs:
            self._watchdog.alive("predicting")  # a large dev set may take longer than hang_minutes
            return self._steps.predict(params, batch)

        training = self._training
        outputs = predict_rows(self._network, step, params, part.rows, training.batch_size, training.max_seq_length)
        return decode(self._task, self._data.labels, part.examples, part.rows, outputs, training.max_answer_length)

    def threshold_of(self, predictions: list[Prediction]) -> float:
        """Return from which score a question has no answer, as the examples that choose have it; else infinity."""
        if self._task.kind != "answers":
            return math.inf
        return best_null_threshold(self._task, self._data.choice.examples, predictions)
