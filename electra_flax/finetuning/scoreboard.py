"""All tasks whose data is there, as one table, beside KoELECTRA's published scores."""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from matplotlib.figure import Figure

from electra_flax import formats
from electra_flax.errors import UserError
from electra_flax.files import write_whole
from electra_flax.finetuning.data import has_task
from electra_flax.finetuning.publish import to_json
from electra_flax.finetuning.result import Finetuned, Statistics
from electra_flax.finetuning.run import Request, finetune
from electra_flax.finetuning.task_files import load_task, task_names
from electra_flax.pictures import to_png
from electra_flax.runtime import processes
from electra_flax.runtime.interruption import Interruption
from electra_flax.storage.workdir import Workdir

log = logging.getLogger("electra_flax")

# Order of the published table; others follow by name.
_FIRST = ("nsmc", "naver-ner", "paws", "kornli", "korsts", "question-pair", "korquad", "hate-speech")
_SHORT = {
    "accuracy": "acc", "entity_f1": "F1", "macro_f1": "F1", "spearman": "spearman", "pearson": "pearson",
    "korquad_exact_match": "EM", "korquad_f1": "F1", "exact_match": "EM", "answer_f1": "F1", "matthews": "MCC",
    "f1": "F1", "f1_at_3": "F1", "entity_macro_f1": "entity F1", "character_macro_f1": "char F1",
    "klue_rouge_w": "ROUGE-W", "klue_exact_match": "EM",
}  # fmt: skip


class Protocol(NamedTuple):
    """How every task is fine-tuned: the last fields of a Request."""

    preset: str
    overrides: Sequence[str]
    seeds: Sequence[int]
    published_protocol: bool
    random_weights: bool


def scoreboard(
    models: Sequence[str],
    data: Sequence[str],
    names: Sequence[str],
    out: str,
    protocol: Protocol,
    interruption: Interruption,
) -> str:
    """Fine-tune each model on each task that is found; write out/table.md, .json and .png; return the table.

    Processes but 0 return "". Raises UserError where no task is found, or one that was named is not.
    """
    folders = find_tasks(data, names)
    for name, folder in folders.items():
        log.info("%s: %s", name, folder)
    rows: dict[str, dict[str, Finetuned]] = {}
    for number, model in enumerate(models):
        rows[model] = {}
        for name, folder in folders.items():
            log.info("--- %s, %s", model, load_task(name).title)
            request = Request(name, model, folder, f"{out}/model-{number}/{name}", *protocol)
            rows[model][name] = finetune(request, interruption)
    if not processes.is_main():
        return ""
    table, work = _markdown(rows, list(folders), protocol), Workdir(out)
    write_whole(work.folder / "table.md", table)
    plain = {model: {name: asdict(results) for name, results in row.items()} for model, row in rows.items()}
    write_whole(work.folder / "table.json", to_json(plain))
    write_whole(work.folder / "table.png", _picture(rows, list(folders)))
    work.push()
    return table


def find_tasks(data: Sequence[str], names: Sequence[str]) -> dict[str, Path]:
    """Return {task: folder with its files}, in the table's order."""
    given = dict(entry.split("=", 1) for entry in data if "=" in entry)
    roots = [Path(entry) for entry in data if "=" not in entry]
    for root in roots:
        if not root.is_dir():
            raise UserError(f"--data {root}: no such folder")
    found: dict[str, Path] = {}
    rest = [name for name in task_names() if name not in _FIRST]
    for name in [*_FIRST, *rest, *(name for name in given if name not in task_names())]:
        places = [Path(given[name])] if name in given else []
        places += [place for root in roots for place in (root / name, *sorted((root / name).glob("*/")))]
        task = load_task(name)
        if folder := next((place for place in places if has_task(task, place)), None):
            found[name] = folder
    if missing := [name for name in (*names, *given) if name not in found]:
        files = " and ".join(load_task(missing[0]).files.train)
        raise UserError(f"--tasks {missing[0]}: its files ({files} and others) are not in --data {', '.join(data)}")
    found = {name: folder for name, folder in found.items() if not names or name in names}
    if not found:
        raise UserError(
            f"--data {', '.join(data)}: no files of a task: expected a folder named as a task "
            f"({', '.join(_FIRST)} ...) with its training file and one to score"
        )
    return found


def summary(results: Finetuned) -> str:
    """Return one result in a line."""
    return f"{results.task}: " + ", ".join(f"{name} {_cell([found])}" for name, found in results.metrics.items())


def _cell(metrics: Sequence[Statistics]) -> str:
    """Return means and deviations in percent, as tables have them."""
    return " / ".join(
        "n/a" if found.mean is None
        else f"{100 * found.mean:.2f}" + ("" if found.deviation is None else f" ± {100 * found.deviation:.2f}")
        for found in metrics
    )  # fmt: skip


def _published() -> Any:
    return yaml.safe_load((resources.files("electra_flax.finetuning") / "published.yaml").read_text())


def _markdown(rows: dict[str, dict[str, Finetuned]], names: Sequence[str], protocol: Protocol) -> str:
    published = _published()
    tasks = map(load_task, names)
    heads = [f"**{task.title}**<br/>({'/'.join(_SHORT[metric] for metric in task.metrics)})" for task in tasks]
    lines = ["| | " + " | ".join(heads) + " |", "| :--- |" + " :---: |" * len(heads)]
    for model, results in zip(formats.labels(list(rows)), rows.values(), strict=True):
        cells = [_cell(list(results[name].metrics.values())) for name in names]
        shown = f"{model}, random weights" if protocol.random_weights else model
        lines.append(f"| **{shown}** | " + " | ".join(cells) + " |")
    if any(name in published["scores"][next(iter(published["scores"]))] for name in names):
        for model, scores in published["scores"].items():
            lines.append(f"| {model} (published) | " + " | ".join(str(scores.get(name, "")) for name in names) + " |")
    seeds = len(protocol.seeds)
    how = formats.counted(seeds, "seeds") + (", mean ± standard deviation" if seeds > 1 else "")
    chosen = "on the scored examples themselves" if protocol.published_protocol else "on dev examples"
    notes = [f"Percent; {how}; the best checkpoint is chosen {chosen}."]
    if any("(published)" in line for line in lines):
        notes.append(published["note"])
    return "\n".join(lines) + "\n\n" + " ".join(notes) + "\n"


def _picture(rows: dict[str, dict[str, Finetuned]], names: Sequence[str]) -> bytes:
    """Return a PNG: the first metric of each task, a bar for each model, published scores as marks."""
    published = _published()["scores"]
    figure = Figure(figsize=(max(6.0, 1.5 * len(names)), 4.2), layout="constrained")
    axis = figure.subplots()
    width = 0.8 / max(1, len(rows))
    for number, (model, results) in enumerate(zip(formats.labels(list(rows)), rows.values(), strict=True)):
        found = [next(iter(results[name].metrics.values())) for name in names]
        places = [i + (number - (len(rows) - 1) / 2) * width for i in range(len(names))]
        heights = [100 * (one.mean or 0.0) for one in found]
        axis.bar(places, heights, width * 0.9, yerr=[100 * (one.deviation or 0.0) for one in found], label=model)
    for model, scores in published.items():
        first = {name: float(str(scores[name]).split(" / ")[-1]) for name in names if name in scores}
        if first:
            axis.plot([names.index(name) for name in first], list(first.values()), "_", markersize=14,
                      label=f"{model} (published)")  # fmt: skip
    axis.set_xticks(range(len(names)), [load_task(name).title for name in names], fontsize=8.5)
    axis.set_ylabel("percent")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", alpha=0.25)
    axis.legend(fontsize=7, frameon=False, ncols=2)
    return to_png(figure)
