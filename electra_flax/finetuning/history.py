"""A folder of finetune read back: what `report` shows of its seeds."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from electra_flax import formats
from electra_flax.errors import UserError
from electra_flax.files import read_json
from electra_flax.finetuning.result import RECORD_EVERY, RESULTS, seed_folder
from electra_flax.storage.workdir import Workdir
from electra_flax.training.history import History, Subject
from electra_flax.training.lines import METRICS
from electra_flax.training.objectives.metrics import Metric

_ANOTHER = "give a folder of electra-flax finetune"


def read_histories(given: str) -> list[History]:
    """Return the history of a run, or of each seed of a fine-tuning that has written numbers. Raises UserError."""
    work = Workdir(given).pull(without=("tensorboard/",))
    if (work.folder / "config.yaml").exists() or not (work.folder / "seeds").is_dir():
        return [History.read(given)]
    run = read_json(work.folder / "run.json", dict[str, Any], _ANOTHER)
    seeds = sorted(int(path.name) for path in (work.folder / "seeds").iterdir() if path.name.isdecimal())
    found = [seed_folder(work, seed) for seed in seeds]
    histories = [_history(work, folder, run) for folder in found if (folder / METRICS).exists()]
    if not histories:
        raise UserError(f"{work}: no metrics yet: wait for the first steps of a seed")
    return histories


def _history(work: Workdir, folder: Path, run: dict[str, Any]) -> History:
    task, training = run.get("task"), run.get("training")
    if not isinstance(task, dict) or not isinstance(training, dict):
        raise UserError(f"{work.folder / 'run.json'}: lacks task or training: {_ANOTHER}")
    metrics = (
        Metric("loss", lambda totals: float(totals["loss"]), "Loss", "mean over the steps since the record before"),
        *(Metric(name, lambda totals: 0.0, name.replace("_", " ")) for name in task.get("metrics", ())),
    )
    facts = {
        "task": str(task.get("title", "")),
        "model": str(run.get("model", "")),
        "batch x length": f"{training.get('batch_size')} x {training.get('max_seq_length')}",
        "learning rate": formats.shown(training.get("learning_rate")),
        "epochs": f"{training.get('epochs')}",
    }
    subject = Subject(0, RECORD_EVERY, float(training.get("hang_minutes", 30)), metrics, facts)
    found = History.of(work, folder, None, subject, [], (folder / RESULTS).exists())
    num_steps = found.starts[-1].get("of", found.step) if found.starts else found.step
    return replace(found, subject=subject._replace(num_steps=num_steps))
