"""What a task's run learns from, is chosen by and is scored on."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from electra_flax.data.tokenizer import Casing, published_tokenizer
from electra_flax.data.vocabulary import Vocabulary
from electra_flax.errors import UserError
from electra_flax.finetuning.encoding import Row, encode, labels_of
from electra_flax.finetuning.splits import Split, any_tag, find_files, read_split
from electra_flax.finetuning.task import Task, Training
from electra_flax.formats import counted

log = logging.getLogger("electra_flax")


class Part(NamedTuple):
    """Examples and their rows."""

    name: str
    """Where they are from, for people."""
    examples: list[Any]
    rows: list[Row]


class TaskData(NamedTuple):
    """All that a run reads."""

    labels: list[str]
    train: Part
    choice: Part
    """Decides which checkpoint is the best."""
    scored: Part
    """Gives the result; is not looked at before the end, but under --published-protocol, where it is `choice`."""


def read_task_data(
    task: Task, folder: Path, training: Training, vocabulary: Vocabulary, casing: Casing, published_protocol: bool
) -> TaskData:
    """Read and encode the splits of a task. Raises UserError for files that are missing or of another layout."""
    labels, train, dev, test = read_splits(task, folder, f"--data {folder}")
    scored = test or dev
    assert scored is not None  # read_splits
    scored.check_ids()
    training_examples, choice = train.examples, Part("dev", dev.examples if dev else [], [])
    if published_protocol:
        choice = Part("the scored examples themselves", scored.examples, [])
    elif dev is None or test is None:
        training_examples, held_out = _hold_out(train, training.dev_fraction, task)
        choice = Part(f"{len(held_out):,} held-out training examples", held_out, [])
    tokenizer = published_tokenizer(vocabulary, casing)

    def part(name: str, examples: Sequence[Any]) -> Part:
        rows = encode(task, examples, labels, tokenizer, training)
        cut = sum(len(row.input_ids) == training.max_seq_length for row in rows)
        if cut and task.kind != "answers":
            log.info("%s: %s of %s examples fill max_seq_length=%d, longer ones are cut", name,
                     f"{cut:,}", f"{len(examples):,}", training.max_seq_length)  # fmt: skip
        return Part(name, list(examples), rows)

    scored_part = part("test" if test else "dev", scored.examples)
    return TaskData(
        labels,
        part("train", training_examples),
        scored_part._replace(name=choice.name) if published_protocol else part(choice.name, choice.examples),
        scored_part,
    )


def read_splits(task: Task, folder: Path, place: str) -> tuple[list[str], Split, Split | None, Split | None]:
    """Return labels, and what train, dev and test files hold, of which the last two are not both missing.

    Raises UserError, which calls the folder `place`.
    """
    train = _read(any_tag(task), "train", folder)
    if train is None:
        raise UserError(f"{place}: no training file of {task.title}: expected {_names(task, 'train')}")
    labels = labels_of(task, train.examples)
    # A label that nobody learned would be scored as another one: reading the other files refuses it.
    known = dataclasses.replace(task, labels={label: task.labels.get(label, label) for label in labels})
    dev, test = _read(known, "dev", folder), _read(known, "test", folder)
    if dev is None and test is None:
        raise UserError(
            f"{place}: no file to score {task.title} on: expected {_names(task, 'test') or _names(task, 'dev')}"
        )
    return labels, train, dev, test


def has_task(task: Task, folder: Path) -> bool:
    """Return whether a folder has what `read_task_data` needs."""
    return bool(find_files(task, "train", folder)) and any(find_files(task, split, folder) for split in ("dev", "test"))


def _read(task: Task, split: str, folder: Path) -> Split | None:
    found = read_split(task, split, folder)
    if found is not None:
        log.info("%s: %s", split, found.summary())
    return found


def _names(task: Task, split: str) -> str:
    return " or ".join(getattr(task.files, split))


def _hold_out(train: Split, fraction: float, task: Task) -> tuple[list[Any], list[Any]]:
    """Return the same part of the training examples in every run."""
    count = round(len(train.examples) * fraction)
    if not 0 < count < len(train.examples):
        fix = "lower dev_fraction: no training examples would be left" if count else "raise dev_fraction"
        raise UserError(
            f"{train.files[0]}: {task.title} has no dev file, and dev_fraction={fraction:g} of its "
            f"{counted(len(train.examples), 'training examples')} are {count}: "
            + (fix if len(train.examples) > 1 else "add examples, or a dev file")
        )
    order = np.random.default_rng(0).permutation(len(train.examples))
    return [train.examples[i] for i in sorted(order[count:])], [train.examples[i] for i in sorted(order[:count])]
