"""What a fine-tuning gives, a seed and all of them, and where it is kept."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from electra_flax.config.schema import LoggingConfig
from electra_flax.finetuning.predictions import Prediction
from electra_flax.storage.workdir import Workdir
from electra_flax.trees import Params

RESULTS = "results.json"
RECORD_EVERY = LoggingConfig.every_steps


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


@dataclass(frozen=True)
class SeedScores:
    """results.json of a seed. Of scores, None stands for what is no number, as a correlation with a constant."""

    seed: int
    scores: dict[str, float | None]
    chosen_step: int
    chosen_by: dict[str, float | None]
    """The scores of the examples that choose, at that step."""
    seconds: float
    history: list[dict[str, int | float | None]]


@dataclass(frozen=True)
class Statistics:
    """A metric over the seeds; no mean where a seed has no value."""

    mean: float | None
    deviation: float | None
    """Sample standard deviation, of two seeds or more."""
    values: list[float | None]


@dataclass(frozen=True)
class Finetuned:
    """results.json of all seeds. Metrics and seeds are those of process 0; others have none."""

    task: str
    """As tables name it."""
    metrics: dict[str, Statistics]
    model: str
    random_weights: bool
    scored: str
    """Which examples, and how many."""
    chosen_by: str
    """Which examples chose the checkpoints."""
    published_protocol: bool
    best_seed: int | None
    """Whose model lies in the folder itself."""
    seeds: list[SeedScores]


def seed_folder(work: Workdir, seed: int) -> Path:
    """Return the folder of what is kept of a seed."""
    return work.folder / "seeds" / str(seed)
