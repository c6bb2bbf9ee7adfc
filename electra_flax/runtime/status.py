"""How a run is, as a JSON file for whoever started it: at the place that ELECTRA_FLAX_STATUS names, if it is set."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from electra_flax.errors import UserError
from electra_flax.files import write_whole

VARIABLE = "ELECTRA_FLAX_STATUS"
log = logging.getLogger("electra_flax")
_told: dict[str, Any] = {}
_warned: set[str] = set()


def begin(step: int, total: int) -> None:
    """Tell that a part of a run (a phase, a seed) is compiled; where this start began is told once."""
    began = _told.get("began", step)
    _told.clear()
    tell(state="compiling", began=began, step=step, of=total)


def tell(**news: Any) -> None:
    """Add to what the file says, and replace it in one piece; process 0 alone does. A full disk does not end the run.

    began: the step that this start continues from; step, of how many; state: the last event ("compiling", then those of
    events.jsonl); train, validation: the metrics of the last record; seconds_left: at the speed of that.
    """
    path = os.environ.get(VARIABLE)
    if not path:
        return
    _told.update(news)
    if rate := _told.get("train", {}).get("steps_per_sec"):
        _told["seconds_left"] = round((_told["of"] - _told["step"]) / rate)
    try:
        write_whole(Path(path), json.dumps(_told) + "\n")
    except UserError as error:
        if str(error) not in _warned:  # once, not at each record
            log.warning("%s=%s", VARIABLE, error)
        _warned.add(str(error))
