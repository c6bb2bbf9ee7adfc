"""What a workdir tells about its run: configuration, records, events, checkpoints. Read by `report` and `doctor`."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from orbax.checkpoint.utils import checkpoint_steps

from electra_flax.config.schema import Config
from electra_flax.errors import UserError
from electra_flax.files import parse_lines, read_bytes
from electra_flax.storage.workdir import Workdir
from electra_flax.training.lines import METRICS, Event, Record
from electra_flax.training.objectives.metrics import HEALTH_METRICS, Metric, metrics_of

Line = TypeVar("Line", Record, Event)


class Subject(NamedTuple):
    """What is said of a run where it is shown: of pretraining, or of the fine-tuning of one seed."""

    num_steps: int
    record_every: int
    hang_minutes: float
    metrics: tuple[Metric, ...]
    """What its charts show."""
    facts: dict[str, str]
    """Rows of the report's table."""

    @classmethod
    def of(cls, config: Config) -> Subject:
        """Return that of a run of pretraining."""
        batches = (f"{each.config.training.batch_size} x {each.config.data.max_seq_length}" for each in config.phases)
        architecture = config.architecture
        sizes = {part: architecture.sizes_of(part) for part in architecture.parts}
        if architecture.has_two_towers:
            sizes["each of two towers"] = architecture.generator_sizes
        facts = {
            **{part: f"{each.num_hidden_layers} layers of {each.hidden_size}" for part, each in sizes.items()},
            "batch x length": ", then ".join(batches),
            "learning rate": f"{config.optimizer.learning_rate:g}",
        }
        training, record_every = config.training, config.logging.every_steps
        metrics = (*metrics_of(config), *HEALTH_METRICS)
        return cls(training.num_steps, record_every, training.hang_minutes, metrics, facts)


@dataclass(frozen=True)
class History:
    """Records are those of metrics.jsonl: {"step", "time", "loss", ...}."""

    name: str
    work: Workdir
    config: Config | None
    """None: a fine-tuning."""
    subject: Subject
    train: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    events: list[dict[str, Any]] = field(default_factory=list)
    checkpoints: list[int] = field(default_factory=list)
    is_done: bool = False
    unreadable: dict[str, int] = field(default_factory=dict)
    """{file: lines that are left out}."""

    @classmethod
    def read(cls, given: str) -> History:
        """Read a run's files.

        Raises UserError where `given` is not the workdir of a run, or the run wrote no numbers yet.
        """
        work = Workdir(given).pull(without=("tensorboard/",))
        config = work.read_config()
        steps = sorted(checkpoint_steps(work.checkpoints)) if work.checkpoints.is_dir() else []
        return cls.of(work, work.folder, config, Subject.of(config), steps, (work.folder / "DONE").exists())

    @classmethod
    def of(
        cls, work: Workdir, folder: Path, config: Config | None, subject: Subject, checkpoints: list[int], is_done: bool
    ) -> History:
        """Return what the files of `folder` tell. Raises UserError where there are no numbers yet."""
        name = f"{work}/{folder.relative_to(work.folder)}" if folder != work.folder else str(work)
        records, lost_records = _json_lines(folder / METRICS, Record)
        if not records:
            lost = f", {lost_records} lines cannot be read" if lost_records else ""
            raise UserError(f"{name}: no metrics yet ({METRICS}{lost}): wait for the first steps of the run")
        events, lost_events = _json_lines(folder / "events.jsonl", Event)
        return cls(
            name, work, config, subject,
            [record for record in records if record["split"] == "train"],
            [record for record in records if record["split"] == "validation"],
            events, checkpoints, is_done,
            {name: lost for name, lost in ((METRICS, lost_records), ("events.jsonl", lost_events)) if lost},
        )  # fmt: skip

    @property
    def step(self) -> int:
        last: int = max(record["step"] for record in [*self.train, *self.validation])
        return last

    @property
    def packed(self) -> str:
        """Return how the rows of its last start were packed, "" where each example had its own."""
        last = self.starts[-1] if self.starts else {}
        if "packed_rows" not in last:
            return ""
        return f"{last['packed_rows']:,} rows a step, {last['packed_fill']:.1%} full"

    @property
    def starts(self) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == "start"]

    def recent(self, name: str, count: int = 20) -> float | None:
        """Return the mean of a training metric over the last records that have it."""
        values = [record[name] for record in self.train if name in record][-count:]
        return sum(values) / len(values) if values else None

    @property
    def stopped_at(self) -> int | None:
        """Return at which step it ended before its last one, None for a run that is done or goes on.

        As it said, or it was killed and so is silent for longer than the watchdog of a run allows.
        """
        if self.is_done:
            return None
        if self.events and self.events[-1]["event"] == "stop":
            step: int = self.events[-1]["step"]
            return step
        last = max(record["time"] for record in [*self.train, *self.validation, *self.events])
        rate = self.recent("steps_per_sec")
        between = self.subject.record_every / rate if rate else 0.0  # two signs of life
        return self.step if time.time() - last > 60 * self.subject.hang_minutes + between else None

    @property
    def seconds_left(self) -> float | None:
        """Return how long it still takes at the speed of its last steps, where it goes on."""
        rate = self.recent("steps_per_sec") if self.stopped_at is None else None
        return (self.subject.num_steps - self.step) / rate if rate else None


def _json_lines(path: Path, kind: type[Line]) -> tuple[list[dict[str, Any]], int]:
    """Return the lines, and how many of them cannot be read; the last one may be being written."""
    data = read_bytes(path) if path.exists() else b""
    found, unreadable = parse_lines(data, kind)
    _, unfinished = parse_lines(data[data.rfind(b"\n") + 1 :], kind)
    return [line.model_dump() for line in found], unreadable - unfinished
