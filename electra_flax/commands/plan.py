"""electra-flax plan."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated, Literal

from electra_flax.config.ranges import Range
from electra_flax.runtime.console import print_json, print_text
from electra_flax.runtime.flags import ConfigFile, Flag, Overridden


@dataclass(frozen=True, kw_only=True)
class Plan(Overridden):
    """Tell memory, predicted time and cost on a TPU that is not here.

    Compiles the very train step of a run for a TPU slice and prints what it needs and what it is predicted to take:
    memory per device (exact), seconds a step, days, dollars. Where it does not fit, it tries what makes it fit. Needs
    the TPU compiler (pip install 'electra-flax[tpu]') but no TPU. Minutes for a new program; results are cached.
    Fields are overridden by --section.field VALUE, as in pretrain.
    """

    config: ConfigFile
    """the configuration: a file of configs/, or your own"""
    topology: Annotated[str, "TYPE"]
    """accelerator type: v3-8, v4-8, v5litepod-8 ..."""
    batch: Annotated[int | None, Range(1, 2**24), "N"] = None
    """short for --training.batch_size N"""
    dtype: Literal["float32", "bfloat16"] | None = None
    """short for --training.compute_dtype"""
    price_per_hour: Annotated[float | None, Range(0, 10**6, "(]"), "USD"] = None
    """of the whole slice (default: a dated list)"""
    explain: Annotated[int | None, Range(1, 10_000), "N", Flag(nargs="?", const=20)] = None
    """list the N (20) costliest operations"""
    json: bool = False
    """print JSON instead of the table"""

    def run(self) -> None:
        from electra_flax.config.loading import load_config
        from electra_flax.planning.kernel_schedule import COMPILER_ENVIRONMENT

        short = {"--training.batch_size": self.batch, "--training.compute_dtype": self.dtype}
        given = [part for name, value in short.items() if value is not None for part in (name, str(value))]
        config = load_config(self.config, [*self.overrides, *given])
        os.environ.update(COMPILER_ENVIRONMENT)  # before JAX is imported
        from electra_flax.planning.plan import make_plan
        from electra_flax.planning.table import INDENT, report

        plans = [make_plan(phase, self.topology, self.price_per_hour, self.explain or 0) for phase in config.phases]
        if self.json:
            printed = [plan.to_dict() for plan in plans]
            print_json(printed if len(plans) > 1 else printed[0])
        else:
            print_text("\n\n".join(map(report, plans)), INDENT)
