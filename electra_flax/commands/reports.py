"""electra-flax report, doctor and plan: about a run, after it and before."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from electra_flax.commands.common import Devices
from electra_flax.config.ranges import Range
from electra_flax.errors import UserError, escaped
from electra_flax.formats import counted
from electra_flax.runtime.console import print_json, print_line, print_text
from electra_flax.runtime.flags import ConfigName, File, Flag, Overridden, Place

if TYPE_CHECKING:
    from electra_flax.reports.doctor import Finding


class Report(Devices):
    """Write an HTML page about one or more runs.

    Writes a self-contained HTML page, and its charts as PNG files: metrics, speed, interruptions, checkpoints, the
    discriminator's confusion matrix, examples, and the findings of doctor. Repeat --workdir to compare runs. Add
    --reference to compare with a run that went well.
    """

    example = "electra-flax report --workdir runs/ko --out report.html"

    workdir: Annotated[tuple[Place, ...], Flag(action="append")]
    """folder of a run, or of finetune"""
    reference: Annotated[str | None, "NAME"] = None
    """a run that ships with the package, drawn beside yours: tiny_ko, demo or demo_continue (those of make demo)"""
    out: File = Path("report.html")
    """page to write"""

    def run(self) -> None:
        self.use_devices()
        from electra_flax.reports.page import write_report

        for path in write_report(self.workdir, self.out, self.reference):
            print_line(path)


class Doctor(Overridden, Devices):
    """Find problems of a run or a configuration, and say what to change.

    Checks the metrics of a run (--workdir), or a configuration before its first step (--config, with --data and
    --workdir as for pretrain): lists everything that pretrain would refuse, and what else looks wrong. Override a field
    with --section.field VALUE.
    """

    example = "electra-flax doctor --workdir runs/ko\nelectra-flax doctor --config koelectra_small_v3 --data shards"
    epilog = "exit codes: 0 no findings; 1 findings, or an error that you can fix; others: electra-flax --help"

    workdir: Place | None = None
    """folder of a run, or of finetune"""
    config: ConfigName | None = None
    """a preset (see electra-flax configs), or your YAML file"""
    data: Place | None = None
    """shards from electra-data shard"""
    long_data: Place | None = None
    """shards of the second phase (long_phase.steps)"""
    json: bool = False
    """print JSON"""

    def run(self) -> int:
        found, where = self._of_run() if self.config is None else (self._of_config(self.config), "")
        if self.json:
            print_json([finding._asdict() for finding in found])
        else:
            for finding in found:
                print_text(f"- {escaped(finding.problem)}")
                print_text(f"  {escaped(finding.advice)}", indent=0)
            if not found:
                print(f"no findings{where}")
        return 1 if found else 0

    def _of_run(self) -> tuple[list[Finding], str]:
        """Return what is wrong with a run, and how much of it there is to judge by."""
        from electra_flax.finetuning.history import read_histories
        from electra_flax.reports.doctor import diagnose

        if self.workdir is None:
            raise UserError("doctor: give a run (--workdir DIR) or a configuration (--config NAME|YAML)")
        if self.data or self.long_data or self.overrides:
            raise UserError("--data, --long-data and fields need --config NAME|YAML")
        runs = read_histories(self.workdir)
        where = f" in {counted(max(run.step for run in runs), 'steps')}"
        return [found for run in runs for found in diagnose(run)], where

    def _of_config(self, path: Path) -> list[Finding]:
        from electra_flax.config.loading import load_config

        config = load_config(path, self.overrides)
        self.use_devices()
        from electra_flax.reports.doctor import diagnose_config, diagnose_refusals
        from electra_flax.training.inputs import examine

        if self.long_data and not self.data:
            raise UserError(f"--long-data {self.long_data}: give --data, the shards of the first phase, too")
        paths = [each for each in (self.data, self.long_data) if each]
        refused, manifest = examine(config, paths, self.workdir)
        return [*diagnose_refusals(refused), *diagnose_config(config, manifest)]


class Plan(Overridden):
    """Predict memory, time and cost of a run on a TPU slice.

    Compiles the run's train step for a TPU slice and prints memory per device (exact), and predicted step time, days
    and dollars. If it does not fit, tries changes that make it fit. Needs the TPU compiler (pip install
    'electra-flax[tpu]') but no TPU. A new program takes minutes to compile; results are cached. Override a field with
    --section.field VALUE, as in pretrain.
    """

    example = "electra-flax plan --config koelectra_base_v3 --topology v3-8"

    config: ConfigName
    """a preset (see electra-flax configs), or your YAML file"""
    topology: Annotated[str, "TYPE"]
    """accelerator type: v3-8, v4-8, v5litepod-8 ..."""
    batch: Annotated[int | None, Range(1, 2**24), "N"] = None
    """short for --training.batch_size N"""
    dtype: Literal["float32", "bfloat16"] | None = None
    """short for --training.compute_dtype"""
    price_per_hour: Annotated[float | None, Range(0, 10**6, "(]"), "USD"] = None
    """price of the whole slice (default: a dated price list)"""
    fill: Annotated[float | None, Range(0, 1, "(]"), "F"] = None
    """share of rows that would hold tokens without packing, as electra-data inspect says: tokens a second without
    padding; needed where rows are packed"""
    long_fill: Annotated[float | None, Range(0, 1, "(]"), "F"] = None
    """the same of the second phase"""
    explain: Annotated[int | None, Range(1, 10_000), "N", Flag(nargs="?", const=20)] = None
    """list the N costliest operations (20 without N)"""
    json: bool = False
    """print JSON"""

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
