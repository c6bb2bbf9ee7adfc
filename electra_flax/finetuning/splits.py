"""Files of a task -> examples. No row is lost without being counted."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from electra_flax.errors import UserError
from electra_flax.finetuning.examples import QuestionExample, Skipped
from electra_flax.finetuning.layouts import LAYOUTS, lines_of
from electra_flax.finetuning.squad import read_squad
from electra_flax.finetuning.task import SPLITS, Task
from electra_flax.formats import counted

_READERS = {**LAYOUTS, "squad": read_squad}


class Split(NamedTuple):
    """What was read."""

    files: list[Path]
    examples: list[Any]
    skipped: Skipped
    """{why: rows that were left out}."""
    rows: int

    def summary(self) -> str:
        """Return it in one line, for people."""
        said = (
            f"{len(self.examples):,} of {counted(self.rows, 'rows')} of {', '.join(path.name for path in self.files)}"
        )
        reasons = ", ".join(f"{count:,} {why}" for why, count in sorted(self.skipped.items()))
        more = ", ..." if self.skipped.total() > len(self.skipped.places) else ""
        return f"{said} (skipped: {reasons}: {', '.join(self.skipped.places)}{more})" if reasons else said

    def check_ids(self) -> None:
        """Raise UserError where two questions have one id: a submission has one answer for each id."""
        ids = Counter(example.id for example in self.examples if isinstance(example, QuestionExample))
        if twice := [name for name, count in ids.items() if count > 1]:
            raise UserError(
                f"{self.files[0]}: {counted(len(twice), 'ids')} of several questions, the first {twice[0]}: "
                "predictions have one answer for each id: give each question its own"
            )


def find_files(task: Task, split: str, folder: Path) -> list[Path]:
    """Return the files of a split that are there; empty where there are none."""
    for names in getattr(task.files, split):
        paths = [folder / name for name in names.split()]
        if all(path.exists() for path in paths):
            return paths
    return []


def read_split(task: Task, split: str, folder: Path) -> Split | None:
    """Return a split of a task, or None where it has no file there.

    Raises UserError, naming file and line, for what is not the task's layout.
    """
    assert split in SPLITS
    paths = find_files(task, split, folder)
    if not paths:
        return None
    return read_files(task, paths)


def without_labels(task: Task, path: Path) -> Task:
    """Return the task of a file that nobody need have labelled."""
    other = task.unlabelled
    if other.text and path.is_file() and other.text in next(lines_of(path), (0, ""))[1].split("\t"):
        return dataclasses.replace(task, columns=other, has_header=True)
    return dataclasses.replace(any_tag(task), columns=dataclasses.replace(task.columns, label=""))


def any_tag(task: Task) -> Task:
    """Return the task as its training file is read: whatever tags there are, for `labels` only names some of them."""
    return dataclasses.replace(task, labels={}) if task.kind == "tagging" else task


def read_files(task: Task, paths: list[Path]) -> Split:
    """Return the examples of files of a task. Raises UserError as `read_split` does."""
    skipped = Skipped()
    examples: list[Any] = []
    rows = 0
    for path in paths:
        begin = rows
        for example in _READERS[task.format](task, path, skipped):
            rows += 1
            if example is not None:
                examples.append(example)
        if rows == begin:
            raise UserError(f"{path}: has no rows: expected {task.title} in the format {task.format}")
    if not examples:
        raise UserError(f"{paths[0]}: none of its rows can be used: {Split(paths, [], skipped, rows).summary()}")
    return Split(paths, examples, skipped, rows)
