"""The loop that pretraining and fine-tuning run: advance, record, evaluate, save, go back.

A `Learner` says what is special: its steps, its batches, what it measures. All processes run the same loop and do the
same things at the same steps, because what one of them wants is agreed on behind each step (agreement.py).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from electra_flax import formats
from electra_flax.config.schema import CheckpointConfig, Config
from electra_flax.errors import Preempted, Problem, RunError, Unavailable, UserError
from electra_flax.runtime import processes, status
from electra_flax.runtime.interruption import Interruption, Watchdog
from electra_flax.storage.workdir import Events
from electra_flax.training.agreement import Agreement, Wishes
from electra_flax.training.callbacks import Callbacks
from electra_flax.training.checkpoint import Checkpoints
from electra_flax.training.faults import SaveClock, SkippedSteps
from electra_flax.training.losses import Sums, Totals
from electra_flax.training.metrics import MetricWriter, Progress, Window
from electra_flax.training.state import TrainState
from electra_flax.trees import Params

log = logging.getLogger("electra_flax")


class Evaluation(NamedTuple):
    """What was measured on held-out examples."""

    metrics: dict[str, float]
    """As they are written down."""
    shown: str
    """As the console says them."""
    cost: float
    """Of which the best checkpoint has least."""


class Rhythm(NamedTuple):
    """How the loop saves and goes back."""

    checkpoint: CheckpointConfig
    max_skipped_steps: int
    """In a row, before the loop goes back to the last checkpoint."""
    needs_every_evaluation: bool = False
    """Whether the result is the best checkpoint: each evaluation is made, also when asked to stop, and saved, or the
    run ends."""


class Learner(Protocol):
    """What a loop trains: a phase of pretraining, a seed of fine-tuning."""

    rhythm: Rhythm
    mesh: Mesh
    shapes: TrainState
    """Of a state's arrays."""
    start: int
    """The step after which it begins; an earlier one has another learner."""
    end: int
    """The last step."""
    total: int
    """Steps of the whole run, of which this may be a phase."""
    notes_type: Any
    """What its checkpoints hold beside the state."""
    shown: tuple[str, ...]
    """The metrics on the console, in this order."""

    def fresh(self) -> TrainState:
        """Return the state to begin with where there is no checkpoint. Raises UserError."""

    def prepare(self, state: TrainState, is_fresh: bool) -> None:
        """Compile; called once, before the first step."""

    def batches(self, step: int) -> Iterator[Any]:
        """Return the endless batches after a step."""

    def least_seconds(self, step: int) -> float | None:
        """Return how long a step takes at least at the devices' peak rate, where that is known."""

    def advance(self, step: int, state: TrainState, batch: Any) -> tuple[TrainState, Sums]:
        """Make the one after `step`; sums hold "tokens", "grad_norm", "learning_rate", "skipped", and its own."""

    def add(self, step: int, sums: dict[str, np.ndarray]) -> None:
        """Take note of a step's numbers."""

    def summarize(self, totals: Totals) -> dict[str, float]:
        """Return the metrics of the steps since the last record."""

    def records(self, step: int) -> bool: ...

    def evaluates(self, step: int) -> bool: ...

    def saves(self, step: int) -> bool: ...

    def evaluate(self, step: int, params: Params) -> Evaluation | None:
        """Measure; None where nothing is held out."""

    def was_evaluated(self, step: int) -> bool:
        """Return whether a checkpoint that does not say so was evaluated."""

    def is_enough(self) -> bool:
        """Return whether it ends before its last step."""

    def notes(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the learner itself."""

    def restore(self, notes: dict[str, Any]) -> None:
        """Take back what `notes` returned; {} of a fresh start."""

    def explain_not_finite(self, first: int, last: int, state: TrainState, batch: Any) -> str:
        """Return what is said when steps stayed not finite after going back."""


class Places(NamedTuple):
    """Where a run is kept."""

    folder: Path
    """Of metrics, events and TensorBoard."""
    checkpoints: epath.Path
    push: Callable[[], None]
    """Brings the small files to where the run is. Raises UserError."""


class _Pending(NamedTuple):
    """A step that was dispatched, and whose numbers were not read."""

    step: int
    sums: Sums
    wishes: Any


class Loop:
    """The steps of one learner, from its newest checkpoint to its end; a context, which closes what it writes."""

    def __init__(
        self,
        learner: Learner,
        places: Places,
        interruption: Interruption,
        watchdog: Watchdog,
        callbacks: Sequence[Callbacks] = (),
    ) -> None:
        """Set up what watches over a run. Raises UserError where no checkpoint of those that are there can be read."""
        self.learner, self.places, self.interruption, self.watchdog = learner, places, interruption, watchdog
        self._callbacks, self._is_telling = callbacks if processes.is_main() else (), False
        self._began = time.perf_counter()
        watchdog.alive("reading the checkpoint")
        self.checkpoints = Checkpoints(places.checkpoints, learner.rhythm.checkpoint, learner.notes_type)
        self._restore()
        self.start = self.step
        self._last: tuple[dict[str, Any], float | None] = {}, None  # what was saved beside the state
        self._writer: MetricWriter | None = None
        self._pending: _Pending | None = None

    def __enter__(self) -> Loop:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What ends it from outside, in a program that goes on, must not leave a save behind that is under way.
        if error is None or isinstance(error, Preempted | KeyboardInterrupt) or self._is_telling:
            self.checkpoints.close()

    def _restore(self) -> None:
        restored = self.checkpoints.restore_newest(self.learner.shapes, self.learner.mesh)
        self.is_fresh = restored is None
        self.state, notes = restored or (self.learner.fresh(), {})
        self.step = int(self.state.step)
        self.window = Window(notes.get("window"))
        self.learner.restore(notes)
        self._is_evaluated = bool(notes.get("evaluated", self.learner.was_evaluated(self.step)))

    def run(self, config: Config | None = None, **begun: Any) -> None:
        """Make the steps that are left.

        `begun` are details of the start event, `config` is that of a run that may write to Weights & Biases. Raises
        RunError when the run itself fails, Preempted when it was asked to stop and has saved.
        """
        learner, is_main = self.learner, processes.is_main()
        place = (
            "before the first step" if self.is_fresh else f"at step {self.step:,} of {learner.total:,}, which is saved"
        )
        processes.end_if_asked(self.interruption.requested, place)
        self.watchdog.alive("compiling")
        if is_main:
            status.begin(self.step, learner.total)
        learner.prepare(self.state, self.is_fresh)
        processes.end_if_asked(self.interruption.requested, place)
        self.interruption.saves = True
        self._agreement = Agreement(learner.mesh)
        self._clock = SaveClock(learner.rhythm.checkpoint.every_minutes)
        self._faults = SkippedSteps(learner.rhythm.max_skipped_steps)
        self._events = Events(self.places.folder, enabled=is_main)
        self._events.add(
            "start", self.step, devices=f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            processes=jax.process_count(), of=learner.total, **begun,
        )  # fmt: skip
        writer = MetricWriter(self.places.folder, config, self.step, self._is_evaluated, enabled=is_main)
        with writer as self._writer, Progress(learner.end, self.step, enabled=is_main) as self._progress:
            self._steps()
        self._finish()

    # ------------------------------------------------------------------------------------------------------- the steps

    def _steps(self) -> None:
        learner, needs_all = self.learner, self.learner.rhythm.needs_every_evaluation
        if learner.evaluates(self.step) and not self._is_evaluated:
            self._evaluate()
        self._batches = learner.batches(self.step)
        while self.step < learner.end and not learner.is_enough():
            wishes, batch = self._advance()
            # `wishes` were sent a step ago and are the same in all processes, which so evaluate and save at the same
            # step: each of both is a program that all of them must enter.
            evaluates = learner.evaluates(self.step) or self.step == learner.end
            saves = learner.saves(self.step) or self.step == learner.end or wishes.save or wishes.stop
            if evaluates or saves:
                self._settle()
            if self._faults.too_many:
                self._go_back(batch)
                continue
            # A machine that is about to be taken away leaves no time for an evaluation: the next start makes it.
            may_wait = wishes.stop and self.step < learner.end and not needs_all
            self._is_evaluated = evaluates and not may_wait
            cost = self._evaluate() if self._is_evaluated else None
            # After skipped steps no save, but at an end: the way back must lead to before what went wrong.
            must_save = wishes.stop or self.step == learner.end or (cost is not None and needs_all)
            if saves and (must_save or not self._faults.in_a_row):
                self._save(cost)
            if wishes.stop:
                return

    def _advance(self) -> tuple[Wishes, Any]:
        """Dispatch a step, and read the numbers of the one before: the devices never wait for the host."""
        try:
            with self.window.spending("input"):
                batch = next(self._batches)
        except Unavailable:
            raise
        except UserError as error:  # the data were sound at the start
            raise RunError(f"{error} (at step {self.step + 1:,}; run the same command to continue)") from None
        self.state, sums = self.learner.advance(self.step, self.state, batch)
        own = Wishes(save=processes.is_main() and self._clock.is_due(), stop=self.interruption.requested)
        sent = self._agreement.send(own)
        self.step += 1
        # Only now the numbers of the step before: while the host reads and writes them, the devices have work.
        if self.step == self.start + 1:
            jax.block_until_ready(sums)
            self._progress.print(
                f"first step done {formats.duration(time.perf_counter() - self._began)} after the start"
            )
        wishes = self._settle()
        self._pending = _Pending(self.step, sums, sent)
        self._progress.update()
        return wishes, batch

    def _settle(self) -> Wishes:
        """Read the numbers of the step that is pending, which is done when they are here."""
        pending, self._pending = self._pending, None
        if pending is None:
            return Wishes(save=False, stop=False)
        sums = jax.tree.map(np.asarray, pending.sums)
        self._faults.add(pending.step, not self.window.add(sums))
        self.learner.add(pending.step, sums)
        self.watchdog.alive(f"step {pending.step + 1}")
        if self.learner.records(pending.step) or pending.step == self.learner.end:
            self._record(pending.step)
        return self._agreement.receive(pending.wishes)

    def _record(self, step: int) -> None:
        learner = self.learner
        metrics = self.window.metrics(learner.summarize, learner.least_seconds(step))
        self._write(step, "train", metrics)
        self._tell(lambda each: each.on_metrics(step, dict(metrics)))
        self._progress.print(f"step {step:,} train: {on_one_line(metrics, learner.shown)}")
        self._progress.note(on_one_line({"loss": np.nan, **metrics}, ("loss", "tokens_per_sec")))
        self.window = Window()
        try:
            self.checkpoints.check()
        except Problem as problem:
            self._warn_of_save(step, problem)

    def _write(self, step: int, split: str, metrics: dict[str, float]) -> None:
        assert self._writer is not None  # only inside `run`
        self._writer.write(step, split, metrics)

    def _tell(self, event: Callable[[Callbacks], None]) -> None:
        self._is_telling = True
        for each in self._callbacks:
            event(each)
        self._is_telling = False

    def _evaluate(self) -> float | None:
        """Measure and write down; the cost."""
        self.watchdog.alive(f"the evaluation of step {self.step}")
        with self.window.spending("evaluation"):
            found = self.learner.evaluate(self.step, self.state.params)
        if found is None:
            return None
        self._write(self.step, "validation", found.metrics)
        self._tell(lambda each: each.on_evaluation(self.step, dict(found.metrics)))
        self._progress.print(f"step {self.step:,} held-out: {found.shown}")
        return found.cost

    def _save(self, cost: float | None) -> None:
        """Start a save; the numbers are brought to where the run is before it, so they are never behind the weights."""
        self.watchdog.alive(f"saving step {self.step}")
        notes = {"window": self.window.notes(), "evaluated": self._is_evaluated, **self.learner.notes()}
        self._last = notes, cost
        try:
            with self.window.spending("save"):
                with processes.together():
                    self.places.push()
                self.checkpoints.save(self.state, *self._last)
        except (Problem, UserError) as problem:
            self._warn_of_save(self.step, problem)
            return
        self._clock.saved()
        self._events.add("save", self.step)
        self._tell(lambda each: each.on_save(self.step))

    def _warn_of_save(self, step: int, problem: Exception) -> None:
        """Record a failed save at the step at which it is known, which the loop may have passed."""
        self._clock.failed()
        self._events.add("save failed", step, reason=str(problem))
        if self.learner.rhythm.needs_every_evaluation:
            raise RunError(
                f"a checkpoint could not be written ({problem}): free some disk space; the same command continues"
            )
        kept = ", ".join(f"{step:,}" for step in self.checkpoints.steps) or "none yet"
        self._progress.warn(
            f"a checkpoint could not be written ({problem}); intact are those of steps: {kept}; training "
            "continues and will try again"
        )

    def _go_back(self, batch: Any) -> None:
        """Return to the last checkpoint. Raises RunError where that does not help."""
        end, first = self.step, self._faults.first
        if not self._faults.go_back(end):
            raise RunError(self.learner.explain_not_finite(first, end, self.state, batch))
        with suppress(Problem):  # an older checkpoint will do
            self.checkpoints.wait()
        self._restore()
        self._pending = None  # its numbers are of a step that is made again
        if self.step < self.learner.start:  # only where the newest checkpoints are damaged
            raise RunError(
                f"no finite step from {first:,} to {end:,}; the same command continues from step {self.step:,}"
            )
        self._batches = self.learner.batches(self.step)
        assert self._writer is not None
        self._writer.go_back(self.step, self._is_evaluated)
        self._progress.go_back(self.step)
        self._events.add("back", end, to=self.step, reason=f"no finite step from {first}")
        self._progress.warn(f"no finite step from {first:,} to {end:,}; going back to step {self.step:,}")

    # --------------------------------------------------------------------------------------------------------- the end

    def _finish(self) -> None:
        learner = self.learner
        self.watchdog.alive("the last save")
        try:
            self.checkpoints.finish(self.state, *self._last)
        except Problem as problem:
            saved = self.checkpoints.steps
            raise RunError(
                f"the checkpoint of step {self.step:,} could not be written ({problem}): free some disk space, then "
                f"the same command continues from step {saved[-1] if saved else 0:,}"
            ) from None
        self.interruption.saves = False
        is_asked = self.step < learner.end and not learner.is_enough()
        self._events.add("done" if self.step == learner.total or learner.is_enough() else "stop", self.step)
        if is_asked:
            raise Preempted(
                f"stopped as asked: saved at step {self.step:,} of {learner.total:,}; the same command continues"
            )


def on_one_line(metrics: dict[str, float], names: Iterable[str]) -> str:
    """Return those of the metrics that are there, as the console shows them."""
    return ", ".join(_shown(name, metrics[name]) for name in names if name in metrics)


def _shown(name: str, value: float) -> str:
    if name == "tokens_per_sec":
        return formats.rate(value, "tokens")
    return f"MFU {value:.1%}" if name == "mfu" else f"{name} {formats.number(value)}"
