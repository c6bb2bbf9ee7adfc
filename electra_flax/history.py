"""What a workdir tells about its run: configuration, records, events, checkpoints. Read by `report` and `doctor`."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orbax.checkpoint.utils import checkpoint_steps

from electra_flax.config import Config
from electra_flax.errors import UserError
from electra_flax.workdir import Workdir


@dataclass(frozen=True)
class History:
    """Records are those of metrics.jsonl: {"step", "time", "loss", ...}."""

    name: str
    work: Workdir
    config: Config
    train: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    events: list[dict[str, Any]] = field(default_factory=list)
    checkpoints: list[int] = field(default_factory=list)
    is_done: bool = False

    @classmethod
    def read(cls, given: str) -> History:
        """Raises UserError where `given` is not the workdir of a run, or the run wrote no numbers yet."""
        work = Workdir(given).pull(without=("tensorboard/",))
        config = work.read_config()
        records = _json_lines(work.folder / "metrics.jsonl")
        if not records:
            raise UserError(f"{work}: no numbers there yet (metrics.jsonl); let the run make some steps")
        return cls(
            str(work), work, config,
            [record for record in records if record["split"] == "train"],
            [record for record in records if record["split"] == "validation"],
            _json_lines(work.folder / "events.jsonl"), sorted(checkpoint_steps(work.checkpoints)),
            (work.folder / "DONE").exists(),
        )  # fmt: skip

    @property
    def step(self) -> int:
        return max(record["step"] for record in [*self.train, *self.validation])

    @property
    def starts(self) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == "start"]

    def recent(self, name: str, count: int = 20) -> float | None:
        """The mean of a training metric over the last records that have it."""
        values = [record[name] for record in self.train if name in record][-count:]
        return sum(values) / len(values) if values else None

    @property
    def stopped_at(self) -> int | None:
        """At which step it ended before its last one: as it said, or it was killed and so is silent for longer than
        the watchdog of a run allows. None for a run that is done or goes on."""
        if self.is_done:
            return None
        if self.events and self.events[-1]["event"] == "stop":
            return self.events[-1]["step"]
        last = max(record["time"] for record in [*self.train, *self.validation, *self.events])
        rate = self.recent("steps_per_sec")
        between = self.config.logging.every_steps / rate if rate else 0.0  # two signs of life
        return self.step if time.time() - last > 60 * self.config.training.hang_minutes + between else None

    @property
    def seconds_left(self) -> float | None:
        """At the speed of its last steps, where it goes on."""
        rate = self.recent("steps_per_sec") if self.stopped_at is None else None
        return (self.config.training.num_steps - self.step) / rate if rate else None


def _json_lines(path: Path) -> list[dict[str, Any]]:
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:  # being written, or cut off when the process was killed
            continue
    return found
