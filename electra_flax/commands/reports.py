"""electra-flax report, doctor and plan: about a run, after it and before."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from electra_flax.commands.common import Devices
from electra_flax.config.ranges import Range
from electra_flax.errors import UserError, escaped
from electra_flax.runtime.console import print_json, print_line, print_text
from electra_flax.runtime.flags import ConfigName, File, Flag, Overridden, Place

if TYPE_CHECKING:
    from electra_flax.reports.doctor import Finding


class Report(Devices):
    """Write one HTML page about one run or several.

    Writes one self-contained HTML page, and its charts as PNGs: curves, speed, interruptions, checkpoints, the
    discriminator's confusion, examples of what it finds, and what doctor has to say. Give --workdir several times to
    compare runs, and --reference for what is normal: curves of a run that went well, of the same text and preset.
    """

    workdir: Annotated[tuple[Place, ...], Flag(action="append")]
    """a run, or a folder of finetune"""
    reference: Annotated[str | None, "NAME"] = None
    """a run that comes with the product, drawn beside yours: tiny_ko"""
    out: File = Path("report.html")
    """page"""

    def run(self) -> None:
        self.use_devices()
        from electra_flax.reports.page import write_report

        for path in write_report(self.workdir, self.out, self.reference):
            print_line(path)


class Doctor(Overridden, Devices):
    """Tell what is wrong with a run or a configuration, and what to change.

    Looks at the numbers of a run (--workdir), or at a configuration before its first step (--config, with --data and
    --workdir as for pretrain): everything that pretrain would refuse, all at once, and what else stands out and what
    to change. Fields are overridden by --section.field VALUE.
    """

    epilog = "exit codes: 0 nothing found; 1 something found, or you can fix it; the others as those of pretrain"

    workdir: Place | None = None
    """a run, or a folder of finetune"""
    config: ConfigName | None = None
    """a preset (electra-flax configs lists them), or your YAML file; a file of that name comes first"""
    data: Place | None = None
    """shards of electra-data shard"""
    long_data: Place | None = None
    """shards of the second phase (long_phase.steps)"""
    json: bool = False
    """print JSON"""

    def run(self) -> int:
        found = self._of_run() if self.config is None else self._of_config(self.config)
        if self.json:
            print_json([finding._asdict() for finding in found])
        else:
            for finding in found:
                print_text(f"- {escaped(finding.problem)}")
                print_text(f"  {escaped(finding.advice)}", indent=0)
            if not found:
                print("nothing stands out")
        return 1 if found else 0

    def _of_run(self) -> list[Finding]:
        from electra_flax.finetuning.history import read_histories
        from electra_flax.reports.doctor import diagnose

        if self.workdir is None:
            raise UserError("doctor needs a run (--workdir DIR) or a configuration (--config YAML)")
        if self.data or self.long_data or self.overrides:
            raise UserError("--data, --long-data and fields belong to --config YAML, which is not given")
        return [found for run in read_histories(self.workdir) for found in diagnose(run)]

    def _of_config(self, path: Path) -> list[Finding]:
        from electra_flax.config.loading import load_config

        config = load_config(path, self.overrides)
        self.use_devices()
        from electra_flax.reports.doctor import diagnose_config, diagnose_refusals
        from electra_flax.training.inputs import examine

        if self.long_data and not self.data:
            raise UserError(f"--long-data {self.long_data} is of the second phase: give --data, of the first, too")
        paths = [each for each in (self.data, self.long_data) if each]
        refused, manifest = examine(config, paths, self.workdir)
        return [*diagnose_refusals(refused), *diagnose_config(config, manifest)]


class Plan(Overridden):
    """Tell memory, predicted time and cost on a TPU that is not here.

    Compiles the very train step of a run for a TPU slice and prints what it needs and what it is predicted to take:
    memory per device (exact), seconds a step, days, dollars. Where it does not fit, it tries what makes it fit. Needs
    the TPU compiler (pip install 'electra-flax[tpu]') but no TPU. Minutes for a new program; results are cached.
    Fields are overridden by --section.field VALUE, as in pretrain.
    """

    config: ConfigName
    """a preset (electra-flax configs lists them), or your YAML file; a file of that name comes first"""
    topology: Annotated[str, "TYPE"]
    """accelerator type: v3-8, v4-8, v5litepod-8 ..."""
    batch: Annotated[int | None, Range(1, 2**24), "N"] = None
    """short for --training.batch_size N"""
    dtype: Literal["float32", "bfloat16"] | None = None
    """short for --training.compute_dtype"""
    price_per_hour: Annotated[float | None, Range(0, 10**6, "(]"), "USD"] = None
    """of the whole slice (default: a dated list)"""
    fill: Annotated[float | None, Range(0, 1, "(]"), "F"] = None
    """share of rows that would hold tokens without packing, as electra-data inspect says: tokens a second without
    padding; needed where rows are packed"""
    long_fill: Annotated[float | None, Range(0, 1, "(]"), "F"] = None
    """the same of the second phase"""
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
        from electra_flax.api.plans import plan
        from electra_flax.planning.table import INDENT, report

        plans = plan(
            config, self.topology, price_per_hour=self.price_per_hour, explain=self.explain or 0, fill=self.fill,
            long_fill=self.long_fill,
        )  # fmt: skip
        if self.json:
            printed = [dataclasses.asdict(each) for each in plans]
            print_json(printed if len(plans) > 1 else printed[0])
        else:
            print_text("\n\n".join(map(report, plans)), INDENT)
