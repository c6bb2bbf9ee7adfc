"""What the fine-tuning of a seed gives, and where it is kept."""

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


def seed_folder(work: Workdir, seed: int) -> Path:
    """Return the folder of what is kept of a seed."""
    return work.folder / "seeds" / str(seed)
