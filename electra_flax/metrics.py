"""Where numbers go: metrics.jsonl, TensorBoard and the console. Process 0 only."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import TracebackType

import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm


class MetricWriter:
    """Appends records to metrics.jsonl and TensorBoard; does nothing where `enabled` is false."""

    def __init__(self, workdir: Path, enabled: bool) -> None:
        self._jsonl = (workdir / "metrics.jsonl").open("a", encoding="utf-8") if enabled else None
        self._tensorboard = SummaryWriter(str(workdir / "tensorboard")) if enabled else None

    def write(self, step: int, split: str, metrics: dict[str, float]) -> None:
        if self._jsonl is None or self._tensorboard is None:
            return
        record = {"step": step, "split": split, "time": round(time.time(), 3), **metrics}
        self._jsonl.write(json.dumps(record) + "\n")
        self._jsonl.flush()
        for name, value in metrics.items():
            self._tensorboard.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        if self._jsonl is not None and self._tensorboard is not None:
            self._jsonl.close()
            self._tensorboard.close()


class MetricSums:
    """Adds up metric sums between two records; grad_norm and learning_rate are averaged over the steps."""

    def __init__(self) -> None:
        self.sums: dict[str, np.ndarray] = {}
        self.steps = 0

    def add(self, sums: dict[str, np.ndarray]) -> None:
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, np.float64(0)) + np.asarray(value, np.float64)
        self.steps += 1


class Progress:
    """A progress bar with loss, tokens per second and ETA; plain lines where the output is not a terminal."""

    def __init__(self, total: int, initial: int, enabled: bool) -> None:
        interactive = sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            initial=initial,
            disable=not enabled,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.2 if interactive else 20,
        )

    def advance(self) -> None:
        self._bar.update()

    def show(self, text: str) -> None:
        self._bar.set_postfix_str(text, refresh=False)

    def print(self, line: str) -> None:
        if not self._bar.disable:
            self._bar.write(line, file=sys.stderr)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
