"""What a fine-tuned model says of texts and files."""

import logging
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from electra_flax.config.schema import MeshConfig
from electra_flax.data.tokenizer import Casing, published_tokenizer
from electra_flax.data.vocabulary import Vocabulary
from electra_flax.errors import UserError
from electra_flax.files import read_json
from electra_flax.finetuning.encoding import encode
from electra_flax.finetuning.examples import Example, QuestionExample, TaggedExample, TextExample
from electra_flax.finetuning.heads import Batch, Outputs, make_head
from electra_flax.finetuning.layouts import characters_of
from electra_flax.finetuning.metrics import entities
from electra_flax.finetuning.predictions import Answered, Labelled, Prediction, decode
from electra_flax.finetuning.publish import SETTINGS, Recipe, predictions_file
from electra_flax.finetuning.splits import read_files, without_labels
from electra_flax.finetuning.step import Network, apply, make_predict_step, predict_rows
from electra_flax.finetuning.task import Task
from electra_flax.model.sharding import make_mesh
from electra_flax.runtime.console import json_text
from electra_flax.trees import flat, nested
from electra_flax.weights.hugging_face import ModelFolder
from electra_flax.weights.shapes import architecture_of

log = logging.getLogger("electra_flax")

_BATCH = 32
_FIX = "expected the file that electra-flax finetune wrote with these weights; copy the folder again"


def predict(folder: Path, texts: Sequence[str], file: Path | None, as_json: bool) -> Iterator[str]:
    """Yield lines to print: of each text, or the whole of a file of the task in the layout that its authors want.

    Raises UserError where the folder is none of finetune, and for texts that do not fit its task.
    """
    tuned = FineTuned(folder)
    if file is not None:
        split = read_files(without_labels(tuned.task, file), [file])
        split.check_ids()
        if split.skipped:
            log.warning("%s", split.summary())
        examples = split.examples
        predictions = tuned.predict(examples)
        if not as_json:
            yield predictions_file(tuned.task, examples, predictions, tuned.null_threshold)[1].rstrip("\n")
            return
    else:
        examples = [_example(tuned.task, str(number), text) for number, text in enumerate(texts)]
        predictions = tuned.predict(examples)
    found = [tuned.describe(example, one) for example, one in zip(examples, predictions, strict=True)]
    if as_json:
        yield json_text(found)
        return
    for one in found:
        yield _line(one)


class FineTuned:
    """A folder of finetune."""

    def __init__(self, folder: Path) -> None:
        path = folder / SETTINGS
        if not path.exists():
            raise UserError(f"--model {folder}: has no {SETTINGS}: expected a folder of electra-flax finetune")
        recipe = read_json(path, Recipe, _FIX)
        self.task, self.training, self.labels = recipe.task, recipe.training, recipe.labels
        self.null_threshold = math.inf if recipe.null_threshold is None else recipe.null_threshold
        weights = ModelFolder.open(str(folder))
        sizes = weights.config
        longest, positions = self.training.max_seq_length, sizes.max_position_embeddings
        if longest > positions:
            raise UserError(f"{path}: max_seq_length={longest}, but the model has {positions} positions: {_FIX}")
        head = make_head(self.task, self.training.head, sizes, len(self.labels), dropout=0.0)
        vocabulary = Vocabulary.read(folder / "vocab.txt")
        self._tokenizer = published_tokenizer(vocabulary, Casing.read(folder))
        names = [*(name for name in weights.shapes if name.startswith("electra/")), *weights.unused]
        self._params = nested({name: jnp.asarray(weights.read(name)) for name in names})
        _check_head(path, flat(jax.eval_shape(head.init, jax.random.key(0))), flat(self._params))
        mesh = make_mesh(MeshConfig())
        encoder, is_tagging = architecture_of(weights.shapes, sizes, None), self.task.kind == "tagging"
        self._network = Network(encoder, head, mesh, vocabulary.special.pad, is_tagging)

    def outputs(self, batch: Batch) -> Outputs:
        """Return what the head makes of a batch of any size."""
        return apply(self._network, self._params, batch)

    def predict(self, examples: Sequence[Example]) -> list[Prediction]:
        """Return one prediction for each example."""
        rows = encode(self.task, examples, self.labels, self._tokenizer, self.training)
        batch_size = -(-_BATCH // self._network.mesh.size) * self._network.mesh.size  # each device has as many rows
        step = make_predict_step(self._network)
        outputs = predict_rows(self._network, step, self._params, rows, batch_size, self.training.max_seq_length)
        return decode(self.task, self.labels, examples, rows, outputs, self.training.max_answer_length)

    def describe(self, example: Example, prediction: Prediction) -> dict[str, Any]:
        """Return it for JSON."""
        if isinstance(example, QuestionExample) and isinstance(prediction, Answered):
            candidates = [answer._asdict() for answer in prediction.candidates[:5]]
            answer = prediction.text(self.null_threshold)
            return {"question": example.question, "answer": answer, "candidates": candidates}
        if isinstance(example, TaggedExample) and isinstance(prediction, list):
            found = [
                {"text": example.text[example.units[first][0] : example.units[last][1]], "type": kind,
                 "start": example.units[first][0], "end": example.units[last][1]}
                for kind, first, last in sorted(entities(prediction), key=lambda entity: entity[1])
            ]  # fmt: skip
            return {"text": example.text, "entities": found}
        assert isinstance(example, TextExample)
        texts = {"text": example.text, **({"pair": example.pair} if example.pair else {})}
        if isinstance(prediction, Labelled):
            names = [self.task.labels.get(label, label) for label in self.labels]
            probabilities = dict(zip(names, prediction.probabilities, strict=True))
            label = self.task.labels.get(prediction.label, prediction.label)
            return {**texts, "label": label, "probabilities": probabilities}
        return {**texts, "score": prediction}


def _check_head(path: Path, expected: dict[str, Any], found: dict[str, Any]) -> None:
    """Raise UserError where the head that finetune.json describes is not the one beside it."""
    for name, value in expected.items():
        if name not in found or found[name].shape != value.shape:
            there = f"of {list(found[name].shape)}" if name in found else "missing"
            raise UserError(
                f"{path}: its task and labels need the tensor {name} of {list(value.shape)}, which is {there} in the "
                f"weights beside it: {_FIX}"
            )


def _example(task: Task, number: str, line: str) -> Example:
    if task.kind == "tagging":
        is_by_character = task.format == "klue-ner"  # a character is what carries a tag
        units = characters_of(line) if is_by_character else [word.span() for word in re.finditer(r"\S+", line)]
        return TaggedExample(number, line, units, [])
    text, tab, pair = line.partition("\t")
    has_two = task.kind == "answers" or bool(task.columns.pair)
    if has_two != bool(tab) or not text.strip() or (has_two and not pair.strip()):
        expected = {True: "two texts with a tab between them", False: "one text, without a tab"}[has_two]
        if task.kind == "answers":
            expected = "a question, a tab and its context"
        raise UserError(f'"{line[:40]}": {task.title} needs {expected}')
    return QuestionExample(number, text, pair, []) if task.kind == "answers" else TextExample(number, text, pair, "")


def _line(found: dict[str, Any]) -> str:
    """Return it for people."""
    if "answer" in found:
        return f"{found['answer'] or '(no answer)'}\t{found['question']}"
    if "entities" in found:
        return "  ".join(f"{one['text']} ({one['type']})" for one in found["entities"]) + f"\t{found['text']}"
    texts = "\t".join(found[name] for name in ("text", "pair") if name in found)
    if "score" in found:
        return f"{found['score']:.3f}\t{texts}"
    return f"{found['label']} {found['probabilities'][found['label']]:.3f}\t{texts}"
