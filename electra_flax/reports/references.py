"""Curves of runs that went well, which come with the product: what one's own curves are held against."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from electra_flax.errors import UserError
from electra_flax.training.history import History

# A folder each, as a workdir has them: config.yaml and metrics.jsonl, made by benchmarks/reference.py.
_FOLDER = Path(__file__).parent / "references"
NAMES = tuple(sorted(path.name for path in _FOLDER.iterdir() if path.is_dir()))


def read_reference(name: str) -> History:
    """Return the records of a run that comes with the product. Raises UserError where there is none of that name."""
    if name not in NAMES:
        raise UserError(f"--reference {name}: expected one of {', '.join(NAMES)}")
    return replace(History.read(str(_FOLDER / name)), name=f"reference {name}")


def beside(run: History, reference: History) -> dict[str, tuple[str, str]]:
    """Return {metric: (of the run, of the reference)} where both were evaluated last, "step" first; or nothing."""
    ours, theirs = ({each["step"]: each for each in run_.validation} for run_ in (run, reference))
    common = sorted(step for step in ours.keys() & theirs.keys() if step)
    if not common:
        return {}
    last, shown = common[-1], [each for each in run.subject.metrics if each.title]
    found = {
        each.title: (f"{ours[last][each.name]:.3f}", f"{theirs[last][each.name]:.3f}")
        for each in shown
        if each.name in ours[last] and each.name in theirs[last]
    }
    return {"step": (f"{last:,}", f"{last:,}"), **found}
