"""plan: a run on a TPU that is not here."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from electra_flax.config.loading import Overrides
    from electra_flax.config.schema import Config
    from electra_flax.planning.table import Plan


def plan(
    config: Config | str | Path,
    topology: str,
    *,
    overrides: Overrides = (),
    price_per_hour: float | None = None,
    explain: int = 0,
    fill: float | None = None,
    long_fill: float | None = None,
    progress: bool = True,
) -> tuple[Plan, ...]:
    """Return, for each phase of a run (nearly always one), what it needs and is predicted to take on a TPU slice.

    One that contrasts sequences from some step on (objective.contrast_from) is two: the steps before, and from it on.
    Compiles the run's own train step, without a TPU but with its compiler (pip install 'electra-flax[tpu]'): minutes
    for a new program, kept for the next time. `config` and `overrides` are as of `pretrain`, `topology` is v3-8, v4-8,
    v5litepod-8 and so on, `price_per_hour` is that of the whole slice in dollars (None: of a dated list). `explain`
    lists so many of the costliest operations. `fill` is the share of the rows of --data that would hold tokens without
    packing, `long_fill` of those of --long-data: 1 minus the padding_rate of electra-data inspect. Raises UserError
    where the compiler is not usable.
    """
    from electra_flax.config.loading import resolved
    from electra_flax.planning.kernel_schedule import LIBRARY_ENVIRONMENT
    from electra_flax.runtime.console import progress_shown

    phases = resolved(config, overrides).phases
    with _set(LIBRARY_ENVIRONMENT), progress_shown(progress):
        from electra_flax.runtime import processes

        processes.use_cpu_where_there_is_nothing_else()
        from electra_flax.planning.plan import make_plan

        fills = (fill, long_fill)
        return tuple(
            make_plan(part, topology, price_per_hour, explain, fill)
            for phase, fill in zip(phases, fills, strict=False)
            for part in phase.parts
        )


@contextmanager
def _set(variables: Mapping[str, str]) -> Iterator[None]:
    """Have these environment variables inside the `with`, where they are not set otherwise."""
    missing = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)
