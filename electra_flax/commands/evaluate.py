"""electra-flax evaluate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from electra_flax.commands.common import Devices
from electra_flax.config.ranges import MOST_INT32, Range
from electra_flax.runtime.console import print_json
from electra_flax.runtime.flags import Place


@dataclass(frozen=True, kw_only=True)
class Evaluate(Devices):
    """Print held-out metrics as JSON.

    Prints a checkpoint's metrics on the validation split as JSON; the masks never change.
    """

    workdir: Place
    """the run"""
    data: Place | None = None
    """other shards than the run's own"""
    step: Annotated[int | None, Range(0, MOST_INT32), "N"] = None
    """checkpoint (default: the newest)"""

    def run(self) -> None:
        self.use_devices()
        from electra_flax.training.evaluate import evaluate

        print_json(evaluate(self.workdir, self.data, self.step))
