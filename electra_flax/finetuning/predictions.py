"""Outputs of a head -> labels, scores, tags and answers, and how good they are."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from electra_flax.finetuning import metrics
from electra_flax.finetuning.encoding import Answer, Row, best_answers, tags_of_units
from electra_flax.finetuning.examples import QuestionExample
from electra_flax.finetuning.task import Task

Outputs = dict[str, np.ndarray]


class Labelled(NamedTuple):
    """Of a text."""

    label: str
    """As it is in the files."""
    probabilities: list[float]
    """Of each label."""


class Answered(NamedTuple):
    """Of a question."""

    candidates: list[Answer]
    """Best first."""
    null_odds: float
    """By how much "no answer" is likelier than the best one."""

    def text(self, null_threshold: float) -> str:
        """Return the answer, "" where "no answer" is likelier by more than the threshold."""
        return self.candidates[0].text if self.candidates and self.null_odds <= null_threshold else ""


Prediction = Labelled | float | list[str] | Answered
"""Of a classification, a regression, a tagging, a question."""


def decode(
    task: Task,
    labels: Sequence[str],
    examples: Sequence[Any],
    rows: Sequence[Row],
    outputs: Sequence[Outputs],
    max_answer_length: int,
) -> list[Prediction]:
    """Return one prediction for each example; `outputs` are those of each row, of its own tokens."""
    if task.kind == "classification":
        return [_labelled(labels, output["logits"]) for output in outputs]
    if task.kind == "regression":
        return [float(np.clip(output["logits"], 0, task.largest_score)) for output in outputs]
    if task.kind == "tagging":
        return [
            tags_of_units(example.units, row.offsets, [labels[i] for i in output["logits"].argmax(axis=-1)])
            for example, row, output in zip(examples, rows, outputs, strict=True)
        ]
    of_example: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        of_example.setdefault(row.example, []).append(number)
    return [
        _answered(example, [rows[i] for i in of_example[n]], [outputs[i] for i in of_example[n]], max_answer_length)
        for n, example in enumerate(examples)
    ]


def _labelled(labels: Sequence[str], logits: np.ndarray) -> Labelled:
    exponential = np.exp(logits.astype(np.float64) - logits.max())
    return Labelled(labels[int(logits.argmax())], (exponential / exponential.sum()).tolist())


def _answered(example: QuestionExample, rows: list[Row], outputs: list[Outputs], longest: int) -> Answered:
    scores = [_score_matrix(output, len(row.input_ids)) for row, output in zip(rows, outputs, strict=True)]
    candidates = best_answers(example.context, rows, scores, longest)
    # Of several windows, the one that is least sure that there is no answer: the others may lie beside it.
    if "impossible" in outputs[0]:
        null_odds = min(float(output["impossible"]) for output in outputs)
    else:
        null = min(float(output["start"][0] + output["end"][0]) for output in outputs)
        null_odds = null - candidates[0].score if candidates else math.inf
    return Answered(candidates, null_odds)


def _score_matrix(output: Outputs, size: int) -> np.ndarray:
    """Return float32 [T, T], the score of the answer from a token to another."""
    if "start" in output:
        return output["start"][:size, None] + output["end"][None, :size]
    scores = np.full((size, size), -np.inf, np.float32)
    for first, start, lasts, ends in zip(
        output["start_top_index"], output["start_top_log_probs"], output["end_top_index"], output["end_top_log_probs"],
        strict=True,
    ):  # fmt: skip
        is_there = lasts < size
        if first < size:
            scores[first, lasts[is_there]] = start + ends[is_there]
    return scores


def best_null_threshold(task: Task, questions: Sequence[Any], predictions: Sequence[Any]) -> float:
    """Return the threshold of `Answered.text` with the best score; infinity where every question has an answer."""
    if all(question.answers for question in questions):
        return math.inf
    scorer = metrics.SCORERS[task.metrics[0]]
    expected = [[text for text, _ in question.answers] for question in questions]
    odds = np.asarray([prediction.null_odds for prediction in predictions])
    order = np.argsort(odds, kind="stable")
    answers = [prediction.text(math.inf) for prediction in predictions]
    with_answer = np.asarray([scorer([e], [a]) for e, a in zip(expected, answers, strict=True)])[order]
    without = np.asarray([scorer([e], [""]) for e in expected])[order]
    # The first n in the order of their odds are answered: the score of every n in one pass, for it is a mean over the
    # questions.
    totals = (
        np.concatenate([[0.0], np.cumsum(with_answer)]) + without.sum() - np.concatenate([[0.0], np.cumsum(without)])
    )
    count = int(totals.argmax())
    return float(odds[order][count - 1]) if count else float(odds.min()) - 1.0


def scores(
    task: Task,
    labels: Sequence[str],
    examples: Sequence[Any],
    predictions: Sequence[Any],
    null_threshold: float = math.inf,
) -> dict[str, float]:
    """Return {metric: value}, in the task's order."""
    expected: list[Any]
    found = list(predictions)
    if task.kind == "answers":
        expected = [[text for text, _ in example.answers] for example in examples]
        found = [prediction.text(null_threshold) for prediction in predictions]
    elif task.kind == "tagging":
        expected = [example.tags for example in examples]
    elif task.kind == "regression":
        expected = [float(example.label) for example in examples]
    else:
        expected = [example.label for example in examples]
        found = [prediction.label for prediction in predictions]
    return {
        name: metrics.binary_f1(expected, found, labels[-1]) if name == "f1" else metrics.SCORERS[name](expected, found)
        for name in task.metrics
    }
