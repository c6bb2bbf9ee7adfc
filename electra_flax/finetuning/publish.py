"""A fine-tuned model as a folder that transformers loads, its predictions, and pictures of what it confuses."""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix

from electra_flax.config.architecture import ModelConfig
from electra_flax.data.tokenizer import Casing, save_tokenizer
from electra_flax.data.vocabulary import Vocabulary
from electra_flax.files import replaced, write_whole
from electra_flax.finetuning.data import TaskData
from electra_flax.finetuning.examples import Example
from electra_flax.finetuning.predictions import Answered, Labelled, Prediction
from electra_flax.finetuning.result import SeedResult
from electra_flax.finetuning.task import Task, Training
from electra_flax.pictures import to_png
from electra_flax.trees import flat
from electra_flax.weights.hugging_face import CONFIG, hugging_face_config
from electra_flax.weights.tensor_files import MSGPACK, SAFETENSORS, write_msgpack, write_safetensors

SETTINGS = "finetune.json"
_LONGEST_NAME = 24  # in a picture
ARCHITECTURES = {
    "classification": "ElectraForSequenceClassification",
    "regression": "ElectraForSequenceClassification",
    "tagging": "ElectraForTokenClassification",
    "answers": "ElectraForQuestionAnswering",
}


@dataclass(frozen=True)
class Recipe:
    """What is needed to apply a fine-tuned model again: finetune.json."""

    task: Task
    training: Training
    labels: list[str]
    null_threshold: float | None
    """None: every question is answered."""


def write_model(
    folder: Path,
    task: Task,
    training: Training,
    sizes: ModelConfig,
    vocabulary: Vocabulary,
    casing: Casing,
    labels: Sequence[str],
    result: SeedResult,
    recipe: Recipe,
) -> None:
    """Write config.json, weights for PyTorch and Flax, tokenizer, finetune.json. Raises UserError where it cannot."""
    parameters = flat(result.params)
    shapes = {name: value.shape for name, value in parameters.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, write in ((SAFETENSORS, write_safetensors), (MSGPACK, write_msgpack)):
        with replaced(folder / name) as path:
            write(path, shapes, parameters.__getitem__, np.dtype("float32"))
    architecture = ARCHITECTURES[task.kind] if training.head == "huggingface" else "ElectraModel"
    names = [task.labels.get(label, label) for label in labels] or ["score"]
    settings = hugging_face_config(sizes, architecture, vocabulary.special.pad, "float32")
    if task.kind != "answers":
        settings["id2label"] = {str(number): name for number, name in enumerate(names)}
        settings["label2id"] = {name: number for number, name in enumerate(names)}
    problem = {"classification": "single_label_classification", "regression": "regression"}.get(task.kind)
    settings |= {"problem_type": problem} if problem else {}
    write_whole(folder / CONFIG, to_json(settings))
    save_tokenizer(vocabulary, casing, folder, sizes.max_position_embeddings)
    write_whole(folder / SETTINGS, to_json(dataclasses.asdict(recipe)))


def predictions_file(
    task: Task, examples: Sequence[Example], predictions: Sequence[Prediction], null_threshold: float
) -> tuple[str, str]:
    """Return name and content of predictions, in the task's own layout."""
    if task.kind == "answers":
        pairs = zip(examples, predictions, strict=True)
        answers = {e.id: p.text(null_threshold) for e, p in pairs if isinstance(p, Answered)}
        return task.submission or "predictions.json", to_json(answers)
    if task.kind == "tagging":
        lines = [" ".join(tags) for tags in predictions if isinstance(tags, list)]
        return task.submission or "predictions.txt", "\n".join(lines) + "\n"
    rows = [f"{_cell(e.id)}\t{_cell(as_text(p))}" for e, p in zip(examples, predictions, strict=True)]
    return task.submission or "predictions.tsv", "\n".join(["index\tprediction", *rows]) + "\n"


def _cell(text: str) -> str:
    """Return a cell: JSON's texts may hold what ends one."""
    return text.translate(str.maketrans("\t\n\r", "   "))


def as_text(prediction: Prediction) -> str:
    """Return the prediction of a text."""
    return prediction.label if isinstance(prediction, Labelled) else f"{prediction:.4f}"


def confusion_picture(task: Task, data: TaskData, result: SeedResult) -> bytes:
    """Return a PNG: expected against predicted labels, tags or scores; of answers, how long they are."""
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axis = figure.subplots()
    examples, predictions = data.scored.examples, result.predictions
    if task.kind in ("classification", "tagging"):
        wanted, found, labels = _labels(task, data, result)
        counts = confusion_matrix(wanted, found, labels=labels)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        names = [_short(task.labels.get(label, label)) for label in labels]
        axis.set_xticks(range(len(labels)), names, rotation=90 if len(labels) > 4 or len("".join(names)) > 40 else 0)
        axis.set_yticks(range(len(labels)), names)
        if len(labels) <= 8:
            for row, column in np.ndindex(counts.shape):
                color = "white" if shares[row, column] > 0.5 else "black"
                axis.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", color=color)
        axis.set_xlabel("predicted")
        axis.set_ylabel("expected")
    elif task.kind == "regression":
        axis.scatter([float(e.label) for e in examples], predictions, s=6, alpha=0.4)
        axis.set_xlabel("expected")
        axis.set_ylabel("predicted")
    else:
        expected = [len(example.answers[0][0]) if example.answers else 0 for example in examples]
        answers = [p.text(result.null_threshold) for p in predictions if isinstance(p, Answered)]
        axis.scatter(expected, list(map(len, answers)), s=6, alpha=0.4)
        axis.set_xlabel("characters of the expected answer")
        axis.set_ylabel("characters of the predicted answer")
    axis.set_title(f"{task.title}, {data.scored.name}", loc="left", fontsize=11, fontweight="bold")
    return to_png(figure)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 3] + "..."


def _labels(task: Task, data: TaskData, result: SeedResult) -> tuple[list[str], list[str], list[str]]:
    if task.kind == "classification":
        expected = [example.label for example in data.scored.examples]
        return expected, [as_text(prediction) for prediction in result.predictions], data.labels
    # Tags without B and I: which type is taken for which.
    expected = [tag[2:] or "O" for example in data.scored.examples for tag in example.tags]
    found = [tag[2:] or "O" for tags in result.predictions if isinstance(tags, list) for tag in tags]
    return expected, found, sorted({*expected, *found})


def finite(values: dict[str, float]) -> dict[str, float | None]:
    """Return the values with null for those that are not finite: JSON has no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def to_json(value: Any) -> str:
    """Return JSON as all of fine-tuning's files have it."""
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
