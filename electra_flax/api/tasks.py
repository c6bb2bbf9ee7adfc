"""finetune: what a model is worth on a task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from electra_flax.config.loading import Overrides
    from electra_flax.finetuning.result import Finetuned
    from electra_flax.runtime.interruption import Interruption


def finetune(
    task: str | Path,
    model: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    seeds: Sequence[int] = (0,),
    preset: str = "",
    random_weights: bool = False,
    published_protocol: bool = False,
    overrides: Overrides = (),
    progress: bool = True,
    interruption: Interruption | None = None,
    **hyperparameters: object,
) -> Finetuned:
    """Fine-tune a model on a task with each seed, write the best one's folder to `out`, return the scores.

    `task` is a name (electra-flax finetune --help lists them) or a YAML file, `model` is as `load` takes it, `data` the
    folder with the task's files, `out` a folder or gs://. Hyperparameters are the preset's ("" is the task's own) with
    `hyperparameters` in their place: epochs=3, learning_rate=1e-4; or `overrides`, as the command has them.
    `random_weights`, `published_protocol`, `progress` and `interruption`: as the command's flags, and as of `pretrain`.

    The same call continues an interrupted one. Raises what `pretrain` raises.
    """
    from electra_flax.config.loading import as_flags
    from electra_flax.runtime import processes
    from electra_flax.runtime.console import progress_shown
    from electra_flax.runtime.interruption import Interruption

    processes.use_cpu_where_there_is_nothing_else()
    from electra_flax.finetuning import run

    request = run.Request(
        str(task), str(model), Path(data), str(out), preset, [*as_flags(overrides), *as_flags(hyperparameters)],
        tuple(seeds), published_protocol, random_weights,
    )  # fmt: skip
    with progress_shown(progress):
        return run.finetune(request, interruption or Interruption(None))
