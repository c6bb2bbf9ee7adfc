"""Texts of a task on which pretraining tries its states (training/probe.py), read as fine-tuning reads them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from electra_flax.data.tokenizer import Casing, published_tokenizer
from electra_flax.data.vocabulary import Vocabulary
from electra_flax.errors import UserError
from electra_flax.finetuning.data import read_splits
from electra_flax.finetuning.encoding import text_rows
from electra_flax.finetuning.splits import Split
from electra_flax.finetuning.task import Task
from electra_flax.finetuning.task_files import load_task
from electra_flax.training.probe import Labelled, ProbeRows

_MOST = 1000
"""Texts of each kind: an accuracy is then known to about 1.5 percent."""


class TaskProbe(NamedTuple):
    """TASK=DIR, a classification."""

    source: str
    task: Task
    folder: Path

    @classmethod
    def of(cls, given: str) -> TaskProbe:
        """Raise UserError where `given` names no classification."""
        name, _, folder = given.partition("=")
        if not name or not folder:
            raise UserError(f"--probe {given}: expected TASK=DIR, as nsmc=data/nsmc")
        try:
            task = load_task(name)
        except UserError as error:
            raise UserError(f"--probe {given}: {error}") from None
        if task.kind != "classification":
            raise UserError(f"--probe {given}: {task.title} is of kind {task.kind}: give a classification, as nsmc")
        return cls(given, task, Path(folder))

    def rows(self, vocabulary: Vocabulary, casing: Casing, longest: int) -> ProbeRows:
        """Return texts of the training file, and of dev, or of test where there is none.

        Raises UserError for files that are missing or of another layout.
        """
        labels, train, dev, test = read_splits(self.task, self.folder, f"--probe {self.source}")
        scored = dev or test
        assert scored is not None  # read_splits
        if len(labels) < 2:
            raise UserError(
                f"--probe {self.source}: all texts of {train.files[0]} have one label: expected two or more"
            )
        numbers = {label: number for number, label in enumerate(labels)}
        tokenizer = published_tokenizer(vocabulary, casing)

        def labelled(split: Split) -> Labelled:
            chosen = np.sort(np.random.default_rng(0).permutation(len(split.examples))[:_MOST])
            texts = [split.examples[number] for number in chosen]
            rows = list(text_rows(self.task, texts, 0, numbers, tokenizer, longest))
            features = np.zeros((len(rows), 3, longest), np.int32)
            features[:, 0] = vocabulary.special.pad
            for place, row in zip(features, rows, strict=True):
                size = len(row.input_ids)
                place[:, :size] = row.input_ids, np.ones(size, np.int32), row.token_type_ids
            return Labelled(features, np.asarray([row.target for row in rows], np.int32))

        return ProbeRows(labelled(train), labelled(scored))
