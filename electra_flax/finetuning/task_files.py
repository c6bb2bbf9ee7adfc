"""Tasks, each a YAML file, the product's own in `tasks/`, a user's anywhere; hyperparameters lie in `presets.yaml`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import yaml

from electra_flax.config.architecture import ModelConfig
from electra_flax.config.loading import fields_from, load_fields
from electra_flax.errors import UserError
from electra_flax.finetuning.task import Task, Training

_HELP = "electra-flax finetune --help"
_FOLDER = resources.files("electra_flax.finetuning")


def task_names() -> list[str]:
    """Return the names of tasks that come with the product."""
    return sorted(path.name.removesuffix(".yaml") for path in (_FOLDER / "tasks").iterdir() if ".yaml" in path.name)


def load_task(name: str) -> Task:
    """Return one of the product's tasks, or of a user's YAML file. Raises UserError."""
    if name.endswith((".yaml", ".yml")):
        if not Path(name).exists():
            raise UserError(f"--task {name}: no such file")
        return load_fields(Task, name, (), _HELP)
    if name not in task_names():
        raise UserError(
            f"--task {name}: unknown task: expected one of {', '.join(task_names())}, or a YAML file of your own "
            "(docs/finetuning.md)"
        )
    with resources.as_file(_FOLDER / "tasks" / f"{name}.yaml") as path:
        return load_fields(Task, path, (), _HELP)


def load_training(name: str, task: Task, preset: str, sizes: ModelConfig, overrides: Sequence[str]) -> Training:
    """Return hyperparameters of a task for a model: the preset's, the task's own, the user's. Raises UserError."""
    presets = yaml.safe_load((_FOLDER / "presets.yaml").read_text())
    preset = preset or task.preset
    if preset not in presets:
        raise UserError(f"--preset {preset}: expected one of {', '.join(presets)}")
    chosen = presets[preset]
    size = "large" if sizes.num_hidden_layers > 12 else "base" if sizes.hidden_size > 256 else "small"
    values = dict(chosen["all"])
    for key in (size, task.kind, Path(name).stem, f"{size} {Path(name).stem}"):
        values |= chosen.get(key, {})
    if preset == task.preset:
        values |= task.training
    return fields_from(Training, values, overrides, f"--task {name}", _HELP)
