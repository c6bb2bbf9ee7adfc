"""One HTML page about one run or several: curves, speed, interruptions, checkpoints, what the discriminator sees."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from electra_flax import formats
from electra_flax.data.shards import DataFolder
from electra_flax.data.vocabulary import Vocabulary
from electra_flax.errors import UserError
from electra_flax.files import check_place, write_all
from electra_flax.finetuning.history import read_histories
from electra_flax.reports.doctor import diagnose
from electra_flax.reports.references import beside, read_reference
from electra_flax.reports.replaced import Detection, detect_in, most_suspicious
from electra_flax.training.charts import SPEED, draw, learning_panels
from electra_flax.training.history import History

_NUM_EXAMPLES = 6
# Names of runs and folders, tokens and events are others' words: all that is put into the page is escaped.
_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)


def write_report(workdirs: Sequence[str], out: Path, reference_name: str | None = None) -> list[Path]:
    """Write the page `out` and its charts as PNGs beside it; return what was written.

    Raises UserError where a workdir is none, no reference has that name, or `out` cannot be written.
    """
    reference = read_reference(reference_name) if reference_name else None
    try:
        check_place(out)  # before the work
    except UserError as error:
        raise UserError(f"--out {error}") from None
    runs = [run for workdir in workdirs for run in read_histories(workdir)]
    places = [run.name for run in runs]
    runs = [replace(run, name=name) for run, name in zip(runs, formats.labels(places), strict=True)]
    charts = {"learning": draw(runs, learning_panels(runs), reference), "speed": draw(runs, SPEED)}
    page = _TEMPLATES.get_template("page.html").render(
        title=", ".join(run.name for run in runs),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        summary=_summary(runs),
        charts={name: base64.b64encode(png).decode() for name, png in charts.items()},
        runs=[_section(run, place, reference) for run, place in zip(runs, places, strict=True)],
    )
    files: dict[str, str | bytes] = {out.name: page, **{f"{out.stem}-{name}.png": png for name, png in charts.items()}}
    try:
        write_all(out.parent, files)
    except UserError as error:
        raise UserError(f"--out {error}") from None
    return [out.parent / name for name in files]


def _summary(runs: Sequence[History]) -> dict[str, list[str]]:
    """Return {row: a cell for each run}."""
    rows: dict[str, list[str]] = {}
    for number, run in enumerate(runs):
        left, stopped = run.seconds_left, run.stopped_at
        state = f"at step {run.step if stopped is None else stopped:,} of {run.subject.num_steps:,}"
        state = "done" if run.is_done else state if stopped is None else f"stopped {state}"
        if not run.is_done and left is not None:
            state += f", {formats.duration(left)} to go at this speed"
        last = run.validation[-1] if run.validation else {}
        values = {
            "state": state,
            "devices": str(run.starts[-1].get("devices", "")) if run.starts else "",
            **run.subject.facts,
            "packed": run.packed,
            "tokens/s": _number(run.recent("tokens_per_sec"), ",.0f"),
            "MFU": _number(run.recent("mfu"), ".1%"),
            "held-out loss": _number(last.get("loss"), ".3f"),
            **{
                f"held-out {each.title[:1].lower()}{each.title[1:]}": _number(last.get(each.name), ".3f")
                for each in run.subject.metrics
                if each.title and each.name != "loss"
            },
            "steps skipped": f"{sum(record.get('skipped_steps', 0) for record in run.train):,}",
        }
        for name, value in values.items():
            rows.setdefault(name, [""] * number).append(value)
        for cells in rows.values():
            cells += [""] * (number + 1 - len(cells))
    return {name: values for name, values in rows.items() if any(values)}


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _section(run: History, place: str, reference: History | None = None) -> dict[str, Any]:
    """Return what the template says of a run."""
    examples, not_shown = [], ""
    try:
        examples = [_marked(detection) for detection in _detections(run)]
    except UserError as error:
        not_shown = str(error)
    return {
        "name": run.name,
        "place": place,
        "reference": reference.name if reference else "",
        "beside": beside(run, reference) if reference else {},
        "findings": diagnose(run),
        "events": [_event(event) for event in run.events if event["event"] != "save"],
        "saves": f"{sum(event['event'] == 'save' for event in run.events):,}",
        "kept": ", ".join(f"{step:,}" for step in run.checkpoints) or "none",
        "has_discriminator": run.config is not None and "discriminator" in run.config.architecture.parts,
        "confusion": _confusion(run),
        "examples": examples,
        "not_shown": not_shown,
    }


def _event(event: dict[str, Any]) -> tuple[str, str, str, str]:
    details = ", ".join(
        f"{key} {formats.shown(value)}" for key, value in event.items() if key not in ("event", "step", "time")
    )
    when = datetime.fromtimestamp(event["time"], UTC).strftime("%Y-%m-%d %H:%M:%S")
    return when, event["event"], f"{event['step']:,}", details


def _confusion(run: History) -> dict[str, Any] | None:
    """Return the four cells that follow from accuracy, recall and the rate of replaced tokens."""
    record = next((record for record in reversed(run.validation) if "replaced_rate" in record), None)
    if record is None:
        return None
    replaced, accuracy = record["replaced_rate"], record["discriminator_accuracy"]
    found = record["discriminator_recall"] * replaced
    kept = accuracy - found
    rows = {"replaced": (found, replaced - found), "original": (1 - replaced - kept, kept)}
    return {"step": f"{record['step']:,}", "rows": rows}


def _detections(run: History) -> list[Detection]:
    # These bring JAX up, which a page without examples does not need.
    from electra_flax.data.pipeline import open_split
    from electra_flax.storage.staging import stage
    from electra_flax.training.checkpoint import Checkpoints
    from electra_flax.training.initial_state import abstract_state

    if run.config is None:
        raise UserError("a fine-tuned model replaces no tokens")
    phase = run.config.phase_of(run.step)
    config = run.config.phases[phase].config
    if config.architecture.has_two_towers:
        raise UserError("examples are shown of a generator that fills hidden tokens in, which two towers do not")
    for part in ("discriminator", "generator"):
        if part not in config.architecture.parts:
            raise UserError(f"this run has no {part}")
    shards = stage(run.work.read_data_path(phase), without="train")
    examples = open_split(config, DataFolder.open(shards, without="train"), "validation")
    if not len(examples):
        raise UserError("the shards have no validation split")
    checkpoints = Checkpoints(run.work.checkpoints)
    params = checkpoints.restore_params(abstract_state(config).params, checkpoints.existing(None))
    rows = examples.read(range(min(_NUM_EXAMPLES, len(examples))))
    vocabulary = Vocabulary.read(run.work.folder / "tokenizer/vocab.txt")
    return detect_in(str(run.work), rows, vocabulary, config.architecture, params)


def _marked(detection: Detection) -> list[dict[str, str]]:
    suspicious = set(most_suspicious(detection).tolist())
    parts = []
    for i, (token, original) in enumerate(zip(detection.corrupted, detection.original, strict=True)):
        kind = "alarm" if i in suspicious else ""
        if detection.is_replaced[i]:
            kind = "found" if i in suspicious else "missed"
        parts.append({
            "glue": "" if token.startswith("##") or i == 0 else " ",
            "text": token.removeprefix("##"),
            "kind": kind,
            "title": f"{detection.probability[i]:.1%} replaced",
            "original": original.removeprefix("##") if detection.is_replaced[i] else "",
        })  # fmt: skip
    return parts
