"""pretrain: a run, until it is done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from electra_flax.config.loading import Overrides
    from electra_flax.config.schema import Config
    from electra_flax.runtime.interruption import Interruption
    from electra_flax.training.callbacks import Callbacks
    from electra_flax.training.inputs import FirstWeights
    from electra_flax.training.pretrain import Pretrained
    from electra_flax.training.probe import Probe


def pretrain(
    config: Config | str | Path,
    data: str | Path | Sequence[str | Path],
    workdir: str | Path,
    *,
    overrides: Overrides = (),
    init_from: str | FirstWeights | None = None,
    probe: str | Probe | None = None,
    callbacks: Callbacks | Sequence[Callbacks] = (),
    progress: bool = True,
    interruption: Interruption | None = None,
) -> Pretrained:
    """Train, or continue, the run in a workdir until its last step; return that and what was measured last.

    `config` is a Config, a preset's name or a YAML file; `overrides` are fields of it in place of others,
    {"training.num_steps": 20}. `data` are shards of electra-data shard (of a run of two phases two folders), `workdir`
    is the run: the same call continues it. Both may be on gs://. A new run begins with the weights of `init_from`, a
    source as the command has it (hf:DISC[,GEN], tf1:PREFIX, orbax:DIR, tiny-ko) or a Start, which says more of how.
    `probe` is TASK=DIR, a classification on which evaluations try the states. `callbacks` hear of metrics, evaluations
    and saves. With `progress`, records and a bar go to the standard error; the rest goes to the logger electra_flax.

    Raises UserError for what the caller can fix, Unavailable for what is away for now, RunError where the run itself
    fails. Ctrl-C raises KeyboardInterrupt, at once: the same call continues from the last save. The command gives an
    `interruption`, which saves first and raises Preempted, and has training.hang_minutes end its process.
    """
    from electra_flax.config.loading import resolved
    from electra_flax.finetuning.probe import TaskProbe
    from electra_flax.runtime import processes
    from electra_flax.runtime.console import progress_shown
    from electra_flax.runtime.interruption import Interruption
    from electra_flax.training.callbacks import Callbacks
    from electra_flax.weights.start import Start

    chosen = resolved(config, overrides)
    processes.use_cpu_where_there_is_nothing_else()
    from electra_flax.training import pretrain as training
    from electra_flax.weights.frozen import read_frozen

    with progress_shown(progress):
        return training.pretrain(
            chosen,
            [str(path) for path in ([data] if isinstance(data, str | Path) else data)],
            str(workdir),
            interruption or Interruption(None),
            Start(init_from) if isinstance(init_from, str) else init_from,
            TaskProbe.of(probe) if isinstance(probe, str) else probe,
            [callbacks] if isinstance(callbacks, Callbacks) else callbacks,
            read_frozen,
        )
