"""Charts of runs: what report and model cards show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from electra_flax.errors import escaped
from electra_flax.pictures import to_png
from electra_flax.training.history import History
from electra_flax.training.metrics import STEP_METRICS

_COLORS = ("#1f6fb2", "#d1622b", "#2e8b57", "#8553a3", "#b8860b", "#555555")


class Panel(NamedTuple):
    """One chart: a metric of the training records, and of the held-out ones where they have it."""

    title: str
    metric: str
    note: str
    is_log: bool = False


SPEED = (
    Panel("Tokens a second", "tokens_per_sec", "over all devices, padding left out"),
    Panel("Waiting for input", "input_wait", "share of the time; under 0.01 is good"),
)


def learning_panels(runs: Sequence[History]) -> list[Panel]:
    """Return a panel for each metric with a title that any of the runs has, in the order of their objectives."""
    metrics = [metric for run in runs for metric in (*run.subject.metrics, *STEP_METRICS)]
    there = {name for run in runs for record in (*run.train, *run.validation) for name in record}
    panels = [
        Panel(each.title, each.name, each.note, each.is_logarithmic)
        for each in metrics
        if each.title and each.name in there
    ]
    return list(dict.fromkeys(panels))


def draw(runs: Sequence[History], panels: Sequence[Panel], reference: History | None = None) -> bytes:
    """Return a PNG with a panel for each metric, in it a line for each run, and a dashed one for the reference."""
    rows = max(-(-len(panels) // 2), 1)
    figure = Figure(figsize=(12, 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.remove()
    for axis, panel in zip(axes, panels, strict=False):
        if reference:
            # Held-out where there is any: two runs' training records differ by their batches too.
            points = _points(reference.validation, panel.metric) or _points(reference.train, panel.metric)
            if points:
                axis.plot(*zip(*points, strict=True), "--", color="#888888", linewidth=1.3, label=reference.name)
        for run, color in zip(runs, _COLORS * len(runs), strict=False):
            train, held_out = _points(run.train, panel.metric), _points(run.validation, panel.metric)
            name = escaped(run.name) if len(runs) > 1 else ""
            if train:
                axis.plot(
                    *zip(*train, strict=True), color=color, alpha=0.75, linewidth=1.1, label=f"{name} train".strip()
                )
            if held_out:
                axis.plot(*zip(*held_out, strict=True), "o--", color=color, markersize=4, linewidth=0.8,
                          markerfacecolor="white", label=f"{name} held-out".strip())  # fmt: skip
            for start in run.starts[1:]:
                axis.axvline(start["step"], color=color, alpha=0.25, linewidth=0.8, linestyle=":")
        axis.set_title(panel.title, loc="left", fontsize=11, fontweight="bold")
        axis.set_xlabel(panel.note, fontsize=8.5, color="#555555")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if panel.is_log:
            axis.set_yscale("log")
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8, frameon=False)
    return to_png(figure)


def _points(records: Sequence[dict[str, Any]], metric: str) -> list[tuple[int, float]]:
    """Return the metric by step, of the records that have it."""
    return [(record["step"], record[metric]) for record in records if metric in record]
