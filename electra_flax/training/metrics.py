"""Where numbers go: metrics.jsonl, TensorBoard and the console. Process 0 only."""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from typing_extensions import TypedDict

from electra_flax.config.loading import config_fields
from electra_flax.config.schema import Config
from electra_flax.files import parse_lines, read_bytes, read_text
from electra_flax.runtime import status
from electra_flax.runtime.console import columns, is_progress_shown, write_line
from electra_flax.runtime.progress_bar import Bar
from electra_flax.training import events
from electra_flax.training.lines import METRICS, Record
from electra_flax.training.losses import Totals
from electra_flax.training.objectives.metrics import Metric

log = logging.getLogger("electra_flax")

Summarize = Callable[[Totals], dict[str, float]]
Purpose = Literal["input", "evaluation", "save"]
"""What a window's time goes to beside the steps themselves."""

STEP_METRICS = (
    Metric("grad_norm", lambda totals: float(totals["grad_norm"]), "Gradient norm", "before clipping",
           is_logarithmic=True),
    Metric("learning_rate", lambda totals: float(totals["learning_rate"]), "Learning rate"),
    Metric("generator_grad_norm", lambda totals: float(totals["generator_grad_norm"]), "Generator's gradient norm",
           "before clipping; the other one is the discriminator's", is_logarithmic=True),
    Metric("generator_learning_rate", lambda totals: float(totals["generator_learning_rate"]),
           "Generator's learning rate"),
)  # fmt: skip
"""What steps have beside their objective's: sums over the steps, divided by their number; the generator's own where it
has an optimizer of its own."""


class MetricWriter:
    """Appends records to metrics.jsonl and TensorBoard; does nothing where `enabled` is false.

    Records after `start`, which a run that was killed had made beyond its last checkpoint, are taken back, and that of
    `start`'s evaluation where the checkpoint did not hear of it. A full disk does not end the run: what could not be
    written is tried again with the next record.
    """

    def __init__(self, workdir: Path, config: Config | None, start: int, is_evaluated: bool, enabled: bool) -> None:
        self._enabled = enabled
        if not enabled:
            return
        self._jsonl = _GrowingFile(workdir / METRICS)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self._tensorboard = _GrowingFile(workdir / "tensorboard" / name)
        self._tensorboard.write(events.version_event())
        self._wandb = _open_wandb(workdir, config) if config and config.logging.wandb_project else None
        self.go_back(start, is_evaluated)

    def write(self, step: int, split: str, metrics: dict[str, float]) -> None:
        if not self._enabled:
            return
        record = {"step": step, "split": split, "time": round(time.time(), 3), **metrics}
        self._jsonl.write(json.dumps(record).encode() + b"\n")
        named = {f"{split}/{name}": value for name, value in metrics.items()}
        self._tensorboard.write(events.scalars_event(step, named))
        status.tell(step=step, **{split: metrics})
        if self._wandb is not None:
            self._wandb.log({"step": step, **named})  # not as wandb's own step, which cannot go back when the run does

    def go_back(self, step: int, is_evaluated: bool) -> None:
        """Take back the records of later steps."""
        if self._enabled:
            self._jsonl.cut(lambda line: _is_before(line, step, is_evaluated))
            self._tensorboard.write(events.restart_event(step))

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._enabled:
            self._jsonl.close()
            self._tensorboard.close()
            if self._wandb is not None:
                self._wandb.finish()


class _GrowingFile:
    """Keeps what a full disk refuses, for the next write."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        self._path, self._unwritten = path, b""
        self._file = path.open("ab", buffering=0)

    def write(self, data: bytes) -> None:
        self._unwritten += data
        try:
            self._unwritten = self._unwritten[self._file.write(self._unwritten) or 0 :]
        except OSError as error:
            log.warning("%s cannot be written (%s); tried again with the next record", self._path.name, error.strerror)

    def cut(self, is_kept: Callable[[bytes], bool | None]) -> None:
        """Drop the first line that is not kept and all after it.

        One of which nobody knows (None) stays where a line that is kept follows.
        """
        # The tail is cut off in place: writing the file anew could lose it on a full disk.
        self._unwritten = b""
        size = end = 0
        for line in read_bytes(self._path).splitlines(keepends=True):
            kept = is_kept(line)
            if kept is False:
                break
            size += len(line)
            end = size if kept else end
        self._file.truncate(end)

    def close(self) -> None:
        self._file.close()


def _open_wandb(workdir: Path, config: Config) -> Any:
    import wandb

    known = workdir / "wandb_run"
    if not known.exists():
        known.write_text(secrets.token_hex(8))
    run = wandb.init(
        project=config.logging.wandb_project,
        id=read_text(known),
        resume="allow",
        dir=str(workdir),
        config=config_fields(config),
        settings=wandb.Settings(console="off", silent=True),
    )
    run.define_metric("*", step_metric="step")
    return run


def _is_before(line: bytes, start: int, is_evaluated: bool) -> bool | None:
    """Return whether a record is of an earlier step than `start`.

    None of a line that cannot be read: cut off when the process was killed, or damaged.
    """
    found, _ = parse_lines(line, Record)
    if not found:
        return None
    (record,) = found
    return record.step < start or (record.step == start and (record.split == "train" or is_evaluated))


class WindowNotes(TypedDict):
    """A window that a checkpoint interrupted, for JSON, which keeps every digit."""

    sums: dict[str, float | list[float]]
    steps: int
    skipped: int


class RunNotes(TypedDict, total=False):
    """What a run's checkpoint holds beside the state."""

    window: WindowNotes
    evaluated: bool


class MetricSums:
    """Metric sums between two records, and of how many steps."""

    def __init__(self) -> None:
        self.sums: dict[str, np.ndarray] = {}
        self.steps = 0

    def add(self, sums: dict[str, np.ndarray]) -> None:
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, np.float64(0)) + np.asarray(value, np.float64)
        self.steps += 1


class Window:
    """What happened since the last record: metric sums, time, and where it went.

    `notes` are those of a window that a checkpoint interrupted: the averages are those of a run that was not.
    """

    def __init__(self, notes: WindowNotes | None = None) -> None:
        self.totals = MetricSums()
        self.skipped = 0
        if notes:
            self.totals.sums = {name: np.asarray(value, np.float64) for name, value in notes["sums"].items()}
            self.totals.steps, self.skipped = notes["steps"], notes["skipped"]
        self._steps_before, self._tokens_before = self.steps, self._tokens
        self._seconds: dict[Purpose, float] = {"input": 0.0, "evaluation": 0.0, "save": 0.0}
        self._begin = time.perf_counter()

    @property
    def steps(self) -> int:
        return self.totals.steps + self.skipped

    def add(self, sums: dict[str, np.ndarray]) -> bool:
        """Add a step; return whether it counts. One that is not finite would spoil the averages."""
        counts = not sums["skipped"]
        if counts:
            self.totals.add(sums)
        else:
            self.skipped += 1
        return counts

    def notes(self) -> WindowNotes:
        sums = {name: value.tolist() for name, value in self.totals.sums.items()}
        return {"sums": sums, "steps": self.totals.steps, "skipped": self.skipped}

    @property
    def _tokens(self) -> float:
        return float(self.totals.sums.get("tokens", np.float64(0)))

    @contextmanager
    def spending(self, purpose: Purpose) -> Iterator[None]:
        """Count the time inside the `with`, also where it ends by an exception, as that of a purpose."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[purpose] += time.perf_counter() - begin

    def metrics(self, summarize: Summarize, peak_per_step: float | None) -> dict[str, float]:
        """Return averages over the window.

        `peak_per_step` is how long a step takes at least: its operations at peak rate.
        """
        found: dict[str, float] = {}
        if self.totals.steps:
            found = summarize(self.totals.sums)
            for metric in STEP_METRICS:
                if metric.name in self.totals.sums:
                    found[metric.name] = metric.value(self.totals.sums) / self.totals.steps
        training = time.perf_counter() - self._begin - self._seconds["evaluation"] - self._seconds["save"]
        steps = self.steps - self._steps_before
        found |= {
            "tokens_per_sec": (self._tokens - self._tokens_before) / training,
            "steps_per_sec": steps / training,
            "input_wait": self._seconds["input"] / training,
            "checkpoint_seconds": self._seconds["save"],
            "skipped_steps": self.skipped,
        }
        if peak_per_step is not None:
            found["mfu"] = peak_per_step * steps / training
        return found


def last_held_out(folder: Path) -> dict[str, float]:
    """Return the newest record of held-out metrics in a run's folder, {} where there is none."""
    path = folder / METRICS
    records = parse_lines(read_bytes(path), Record)[0] if path.exists() else []
    held_out = [record for record in records if record.split == "validation"]
    return dict(held_out[-1].__pydantic_extra__) if held_out else {}


class Progress(Bar):
    """The loop's bar, with loss, tokens per second and ETA, and what is printed beside it."""

    def __init__(self, total: int, initial: int, enabled: bool) -> None:
        self._enabled, self._is_shown = enabled, enabled and is_progress_shown()
        of_terminal = columns if self._is_shown else None
        super().__init__(total, "training", "steps", scaled=False, initial=initial, delay=0.0, columns=of_terminal)

    def print(self, line: str) -> None:
        if self._is_shown:
            write_line(line)

    def warn(self, line: str) -> None:
        """Print it too; where nothing is shown it is logged."""
        if self._is_shown:
            write_line(f"WARNING: {line}")
        elif self._enabled:
            log.warning("%s", line)
