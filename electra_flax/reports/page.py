"""One HTML page about one run or several: curves, speed, interruptions, checkpoints, what the discriminator sees."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from electra_flax.config.schema import MeshConfig
from electra_flax.data.shards import DataFolder
from electra_flax.data.vocabulary import Vocabulary
from electra_flax.errors import UserError
from electra_flax.files import check_place, write_all
from electra_flax.reports.doctor import Finding, diagnose
from electra_flax.reports.replaced import Detection, detect_in, most_suspicious
from electra_flax.training.charts import LEARNING, SPEED, draw
from electra_flax.training.history import History

_NUM_EXAMPLES = 6


def write_report(workdirs: Sequence[str], out: Path) -> list[Path]:
    """Writes the page `out` and its charts as PNGs beside it; returns what was written.

    Raises UserError where a workdir is none, or `out` cannot be written.
    """
    try:
        check_place(out)  # before the work
    except UserError as error:
        raise UserError(f"--out {error}") from None
    runs = [History.read(workdir) for workdir in workdirs]
    charts = {"learning": draw(runs, LEARNING), "speed": draw(runs, SPEED)}
    sections = [_run_section(run) for run in runs]
    page = _PAGE.format(
        title=html.escape(", ".join(run.name for run in runs)),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        summary=_summary(runs),
        learning=_image(charts["learning"], "curves of training and held-out metrics"),
        speed=_image(charts["speed"], "throughput and input wait"),
        runs="\n".join(sections),
    )
    files: dict[str, str | bytes] = {out.name: page, **{f"{out.stem}-{name}.png": png for name, png in charts.items()}}
    try:
        write_all(out.parent, files)
    except UserError as error:
        raise UserError(f"--out {error}") from None
    return [out.parent / name for name in files]


def _image(png: bytes, text: str) -> str:
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _summary(runs: Sequence[History]) -> str:
    rows: dict[str, list[str]] = {}
    for run in runs:
        config, left = run.config, run.seconds_left
        stopped = run.stopped_at
        state = f"at step {run.step if stopped is None else stopped:,} of {config.training.num_steps:,}"
        state = "done" if run.is_done else state if stopped is None else f"stopped {state}"
        if not run.is_done and left is not None:
            state += f", {timedelta(seconds=round(left))} to go at this speed"
        last = run.validation[-1] if run.validation else {}
        values = {
            "state": state,
            "devices": str(run.starts[-1].get("devices", "")) if run.starts else "",
            "discriminator": f"{config.model.num_hidden_layers} layers of {config.model.hidden_size}",
            "generator": f"{config.generator.num_hidden_layers} layers of {config.generator.hidden_size}",
            "batch x length": ", then ".join(
                f"{phase.config.training.batch_size} x {phase.config.data.max_seq_length}" for phase in config.phases
            ),
            "learning rate": f"{config.optimizer.learning_rate:g}",
            "tokens a second": _number(run.recent("tokens_per_sec"), ",.0f"),
            "MFU": _number(run.recent("mfu"), ".1%"),
            "held-out loss": _number(last.get("loss"), ".3f"),
            "held-out generator accuracy": _number(last.get("generator_accuracy"), ".1%"),
            "held-out discriminator AUC": _number(last.get("discriminator_auc"), ".3f"),
            "steps skipped": f"{sum(record.get('skipped_steps', 0) for record in run.train):,}",
        }
        for name, value in values.items():
            rows.setdefault(name, []).append(value)
    head = "".join(f"<th>{html.escape(run.name)}</th>" for run in runs)
    body = "".join(
        f"<tr><th>{name}</th>{''.join(f'<td>{html.escape(value)}</td>' for value in values)}</tr>"
        for name, values in rows.items()
        if any(values)
    )
    return f"<table><tr><th></th>{head}</tr>{body}</table>"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _run_section(run: History) -> str:
    return f"""<section><h2>{html.escape(run.name)}</h2>
<h3>What numbers say</h3>{_findings(diagnose(run))}
<div class="columns"><div><h3>Interruptions and checkpoints</h3>{_timeline(run)}</div>
<div><h3>The discriminator on held-out text</h3>{_confusion(run)}</div></div>
<h3>What it sees</h3>{_examples(run)}</section>"""


def _findings(findings: Sequence[Finding]) -> str:
    if not findings:
        return '<p class="good">Nothing stands out.</p>'
    items = "".join(
        f"<li><b>{html.escape(found.problem)}</b><br>{html.escape(found.advice)}</li>" for found in findings
    )
    return f"<ul>{items}</ul>"


def _timeline(run: History) -> str:
    rows = []
    for event in run.events:
        if event["event"] == "save":
            continue
        details = {key: value for key, value in event.items() if key not in ("event", "step", "time")}
        shown = ", ".join(f"{key} {value}" for key, value in details.items())
        when = datetime.fromtimestamp(event["time"], UTC).strftime("%Y-%m-%d %H:%M:%S")
        rows.append((when, event["event"], f"{event['step']:,}", shown))
    hidden = max(0, len(rows) - 40)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(part)}</td>' for part in row)}</tr>" for row in rows[-40:])
    saves = sum(event["event"] == "save" for event in run.events)
    kept = ", ".join(f"{step:,}" for step in run.checkpoints) or "none"
    earlier = f"<p>{hidden} earlier ones left out.</p>" if hidden else ""
    return (
        f"<table><tr><th>UTC</th><th>event</th><th>step</th><th></th></tr>{body}</table>{earlier}"
        f"<p>{saves:,} checkpoints written; there now: {kept}.</p>"
    )


def _confusion(run: History) -> str:
    """From accuracy, recall and the rate of replaced tokens follow the four cells."""
    record = next((record for record in reversed(run.validation) if "replaced_rate" in record), None)
    if record is None:
        return "<p>No held-out metrics yet.</p>"
    replaced, accuracy = record["replaced_rate"], record["discriminator_accuracy"]
    found = record["discriminator_recall"] * replaced
    kept = accuracy - found
    cells = ((found, replaced - found), (1 - replaced - kept, kept))

    def cell(share: float) -> str:
        return f'<td class="cell" style="background: rgba(31, 111, 178, {min(share, 1):.2f})">{share:.2%}</td>'

    return (
        f"<table><tr><th>step {record['step']:,}, of all tokens</th><th>flagged</th><th>let pass</th></tr>"
        f"<tr><th>replaced</th>{cell(cells[0][0])}{cell(cells[0][1])}</tr>"
        f"<tr><th>original</th>{cell(cells[1][0])}{cell(cells[1][1])}</tr></table>"
    )


def _examples(run: History) -> str:
    try:
        detections = _detections(run)
    except UserError as error:
        return f"<p>Not shown: {html.escape(str(error))}</p>"
    legend = (
        "<p>Of each example's n replaced tokens, which are among its n most suspicious? "
        '<span class="found">found</span> <span class="missed">missed</span> '
        '<span class="alarm">false alarm</span>; the original in brackets; a token under the pointer shows its '
        "probability.</p>"
    )
    return legend + "".join(f'<p class="example">{_marked(detection)}</p>' for detection in detections)


def _detections(run: History) -> list[Detection]:
    # These bring JAX up, which a page without examples does not need.
    from electra_flax.data.pipeline import open_split
    from electra_flax.model.sharding import make_mesh
    from electra_flax.storage.staging import stage
    from electra_flax.training.checkpoint import Checkpoints
    from electra_flax.training.step import abstract_state

    config = run.config.phases[run.config.phase_of(run.step)].config
    if len(config.architecture.parts) < 2:
        raise UserError("this run has no generator and discriminator")
    shards = stage(run.work.read_data_path(run.config.phase_of(run.step)), without="train")
    examples = open_split(config, DataFolder.open(shards, without="train"), "validation")
    if not len(examples):
        raise UserError("the shards have no validation split")
    params = Checkpoints(run.work.checkpoints).restore(abstract_state(config), make_mesh(MeshConfig())).params
    rows = examples.read(range(min(_NUM_EXAMPLES, len(examples))))
    vocabulary = Vocabulary.read(run.work.folder / "tokenizer/vocab.txt")
    return detect_in(str(run.work), rows, vocabulary, config.architecture, params)


def _marked(detection: Detection) -> str:
    suspicious = set(most_suspicious(detection).tolist())
    parts = []
    for i, (token, original) in enumerate(zip(detection.corrupted, detection.original, strict=True)):
        glue = "" if token.startswith("##") or i == 0 else " "
        text = html.escape(token.removeprefix("##"))
        kind = ""
        if detection.is_replaced[i]:
            kind = "found" if i in suspicious else "missed"
        elif i in suspicious:
            kind = "alarm"
        title = f"{detection.probability[i]:.1%} replaced"
        shown = (
            f'<span class="{kind}" title="{title}">{text}</span>' if kind else f'<span title="{title}">{text}</span>'
        )
        if detection.is_replaced[i]:
            shown += f"<small>({html.escape(original.removeprefix('##'))})</small>"
        parts.append(glue + shown)
    return "".join(parts)


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, "Noto Sans KR", sans-serif; color: #1c2733; max-width: 1080px; margin: 2rem auto;
  padding: 0 1rem; }}
h1 {{ font-size: 1.6rem; margin-bottom: 0; }} h2 {{ border-bottom: 2px solid #1f6fb2; padding-top: 1rem; }}
h3 {{ margin: 1.2rem 0 .4rem; font-size: 1.05rem; }} .made {{ color: #66727f; margin-top: .2rem; }}
table {{ border-collapse: collapse; }} th, td {{ text-align: left; padding: .25rem .8rem .25rem 0;
  border-bottom: 1px solid #e3e8ee; vertical-align: top; font-weight: normal; }}
tr > th:first-child {{ color: #55616d; }} img {{ width: 100%; height: auto; }}
.columns {{ display: flex; flex-wrap: wrap; gap: 1rem 3rem; }} .cell {{ text-align: center; padding: .6rem 1.2rem; }}
.example {{ line-height: 1.9; border-left: 3px solid #e3e8ee; padding-left: .8rem; overflow-wrap: anywhere; }}
.found, .missed, .alarm {{ border-radius: 3px; padding: 0 .15rem; font-weight: 600; }}
.found {{ background: #cfeed8; color: #14612f; }} .missed {{ background: #fdeeba; color: #7a5a00; }}
.alarm {{ background: #fbd5d0; color: #96281b; }} small {{ color: #77828d; }} .good {{ color: #14612f; }}
</style></head><body>
<h1>{title}</h1><p class="made">ELECTRA pretraining with electra-flax; page made {made}</p>
{summary}
<h2>Learning</h2>{learning}
<h2>Speed</h2>{speed}
{runs}
</body></html>
"""
