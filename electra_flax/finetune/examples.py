"""Files of a task -> examples, in the layouts in which they are published. No row is lost without being counted."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from electra_flax.errors import UserError
from electra_flax.files import read_text
from electra_flax.finetune.task import SPLITS, Task
from electra_flax.text import without_halves

log = logging.getLogger("electra_flax")
T = TypeVar("T")


_SHOWN = 5  # places in a message


class TextExample(NamedTuple):
    """Of a classification or a regression."""

    id: str
    text: str
    pair: str
    """"" where there is one text."""
    label: str
    """As it is in the file; "" where nobody knows it."""


class TaggedExample(NamedTuple):
    """A sentence and its tags."""

    id: str
    text: str
    units: list[tuple[int, int]]
    """The characters [start, end) of each word, or each single character, that has a tag."""
    tags: list[str]
    """Of each unit, "B-TYPE", "I-TYPE" or "O"; empty where nobody knows them."""


class QuestionExample(NamedTuple):
    """A question about a context."""

    id: str
    question: str
    context: str
    answers: list[tuple[str, int]]
    """Each with the character at which it begins; none for a question that has no answer here."""


Example = TextExample | TaggedExample | QuestionExample


class Skipped(Counter[str]):
    """{why: rows that were left out}, and the places of the first ones."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def add(self, reason: str, place: str) -> None:
        self[reason] += 1
        if len(self.places) < _SHOWN:
            self.places.append(place.rpartition("/")[2])


class Split(NamedTuple):
    """What was read."""

    files: list[Path]
    examples: list[Any]
    skipped: Skipped
    """{why: rows that were left out}."""
    rows: int

    def summary(self) -> str:
        """In one line, for people."""
        said = f"{len(self.examples):,} of {self.rows:,} rows of {', '.join(path.name for path in self.files)}"
        reasons = ", ".join(f"{count:,} {why}" for why, count in sorted(self.skipped.items()))
        more = ", ..." if self.skipped.total() > len(self.skipped.places) else ""
        return f"{said} (left out: {reasons}: {', '.join(self.skipped.places)}{more})" if reasons else said


def find_files(task: Task, split: str, folder: Path) -> list[Path]:
    """The files of a split that are there; empty where there are none."""
    for names in getattr(task.files, split):
        paths = [folder / name for name in names.split()]
        if all(path.is_file() for path in paths):
            return paths
    return []


def read_split(task: Task, split: str, folder: Path) -> Split | None:
    """A split of a task, or None where it has no file there.

    Raises UserError, naming file and line, for what is not the task's layout.
    """
    assert split in SPLITS
    paths = find_files(task, split, folder)
    if not paths:
        return None
    return read_files(task, paths)


def without_labels(task: Task, path: Path) -> Task:
    """The task of a file that nobody need have labelled."""
    other = task.unlabelled
    if other.text and path.is_file() and other.text in next(_lines(path), (0, ""))[1].split("\t"):
        return dataclasses.replace(task, columns=other, has_header=True)
    return dataclasses.replace(task, columns=dataclasses.replace(task.columns, label=""))


def read_files(task: Task, paths: list[Path]) -> Split:
    """The examples of files of a task. Raises UserError as `read_split` does."""
    skipped = Skipped()
    examples: list[Any] = []
    rows = 0
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        begin = rows
        for example in _READERS[task.format](task, path, skipped):
            rows += 1
            if example is not None:
                examples.append(example)
        if rows == begin:
            raise UserError(f"{path}: has no rows: expected {task.title} in its {task.format} layout")
    if not examples:
        raise UserError(f"{paths[0]}: none of its {rows:,} rows can be used: {dict(skipped)}")
    return Split(paths, examples, skipped, rows)


# -------------------------------------------------------------------------------------------- texts with a label


def _tsv(task: Task, path: Path, skipped: Skipped) -> Iterator[TextExample | None]:
    lines = _lines(path)
    header: list[str] = []
    if task.has_header:
        header = next(lines, (0, ""))[1].split("\t")
    columns = task.columns
    places = {name: _place(name, header, path) for name in (columns.text, columns.pair, columns.label) if name}
    if columns.id in header:
        places[columns.id] = header.index(columns.id)
    for number, (line_number, line) in enumerate(lines):
        if not line:
            continue
        cells = line.split("\t")
        if header and any(cell.strip() for cell in cells[len(header) :]):
            raise UserError(
                f"{path}:{line_number}: {len(cells)} cells, but the header names {len(header)}: a tab within a text? "
                "Remove it"
            )
        if len(cells) <= max(places.values()):
            skipped.add(f"with {len(cells)} columns", f"{path.name}:{line_number}")
            yield None
            continue
        found = {name: cells[place].strip() for name, place in places.items()}
        yield _text_example(task, f"{path}:{line_number}", str(number), found, skipped)


def _place(name: str, header: list[str], path: Path) -> int:
    if name.isdigit():
        return int(name)
    if name not in header:
        shown = ", ".join(header)[:200] or "empty"
        raise UserError(f"{path}: has no column {name}; its header is: {shown}: the file of another task?")
    return header.index(name)


def _json(task: Task, path: Path, skipped: Skipped) -> Iterator[TextExample | None]:
    columns = task.columns
    nulls: list[str] = []
    for number, (place, row) in enumerate(_json_rows(path)):
        found = {}
        for name in filter(None, (columns.text, columns.pair, columns.label)):
            value: Any = row
            for part in name.split("."):
                if not isinstance(value, dict) or part not in value:
                    there = ", ".join(row)[:200] if isinstance(row, dict) else json.dumps(row)[:40]
                    raise UserError(f"{place} has no {name}; it has {there}: the file of another task?")
                value = value[part]
            if isinstance(value, dict | list):
                raise UserError(f"{place}: {name} is {json.dumps(value)[:40]}, expected text or a number")
            if value is None:
                nulls.append(f"{place}: {name}")
            found[name] = without_halves(str(value)).strip()
        found[columns.id] = without_halves(str(row.get(columns.id, number)))
        yield None if nulls else _text_example(task, place, str(number), found, skipped)
    if nulls:
        raise UserError(f"{nulls[0]} is null, one of {len(nulls):,}: remove these rows, or say what they are")


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(place for people, value) of a list's members, or of each line but blank ones."""
    text = read_text(path).strip()
    if text.startswith("["):
        for number, row in enumerate(_parsed(text, path), start=1):
            yield f"{path}: row {number}", row
        return
    for number, line in enumerate(text.split("\n"), start=1):  # texts hold other separators
        if line.strip():
            yield f"{path}:{number}", _parsed(line, f"{path}:{number}")


def _parsed(text: str, where: object) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: a number of too many digits too
        raise UserError(f"{where}: not JSON ({str(error)[:100]}): copy it again") from None


def _text_example(task: Task, place: str, number: str, found: dict[str, str], skipped: Skipped) -> TextExample | None:
    columns = task.columns
    texts = [found[name] for name in (columns.text, columns.pair) if name]
    label = found.get(columns.label, "")
    if not all(texts):
        skipped.add("with an empty text", place)
    elif bad := next((text for text in texts if text in task.skipped_texts), ""):
        skipped.add(f'with the text "{bad}"', place)
    elif label in task.skipped_labels:
        skipped.add(f'with the label "{label}"', place)
    else:
        if columns.label:
            _check_label(task, place, label)
        return TextExample(found.get(columns.id, number), texts[0], texts[1] if columns.pair else "", label)
    return None


def _check_label(task: Task, place: str, label: str) -> None:
    if task.kind == "regression":
        try:
            is_score = 0 <= float(label) <= task.largest_score
        except ValueError:
            is_score = False
        if not is_score:
            raise UserError(
                f'{place}: {task.columns.label} is "{label[:40]}", expected a number from 0 to {task.largest_score:g}'
            )
    elif not label or (task.labels and label not in task.labels):
        expected = ", ".join(task.labels) or "a label"
        raise UserError(f'{place}: {task.columns.label} is "{label[:40]}", expected one of {expected}')


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines and their numbers from 1. Only LF ends a line: texts hold other separators."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        yield number, line.rstrip("\r")


# ------------------------------------------------------------------------------------------------------------- tags


def _naver_ner(task: Task, path: Path, skipped: Skipped) -> Iterator[TaggedExample | None]:
    """word word ... TAB tag tag ...; tags as TYPE-B, TYPE-I, O."""
    del task, skipped
    for number, (line_number, line) in enumerate(_lines(path)):
        if not line:
            continue
        words, _, tags = (part.split() for part in line.partition("\t"))
        if not words or len(words) != len(tags):
            raise UserError(
                f"{path}:{line_number}: {len(words)} words and {len(tags)} tags: expected words, a tab and as many tags"
            )
        yield _tagged(str(number), words, [_prefixed(tag, f"{path}:{line_number}") for tag in tags])


def _conll(task: Task, path: Path, skipped: Skipped) -> Iterator[TaggedExample | None]:
    """A word a line, its tag the last of the columns; an empty line ends a sentence."""
    del task, skipped
    words: list[str] = []
    tags: list[str] = []
    count = 0
    for line_number, line in [*_lines(path), (0, "")]:
        cells = line.split()
        if cells and cells[0] != "-DOCSTART-":
            if len(cells) < 2:
                raise UserError(f"{path}:{line_number}: expected a word and its tag, got {line[:40]}")
            words.append(cells[0])
            tags.append(_prefixed(cells[-1], f"{path}:{line_number}"))
        elif words:
            yield _tagged(str(count), words, tags)
            count, words, tags = count + 1, [], []


def _tagged(number: str, words: list[str], tags: list[str]) -> TaggedExample:
    units, begin = [], 0
    for word in words:
        units.append((begin, begin + len(word)))
        begin += len(word) + 1
    return TaggedExample(number, " ".join(words), units, tags)


def _klue_ner(task: Task, path: Path, skipped: Skipped) -> Iterator[TaggedExample | None]:
    """A character and its tag a line, spaces included; "## id TAB sentence" before each sentence.

    The tags of spaces are not used: KLUE's scorer has none.
    """
    del task, skipped
    name, characters, tags = "", "", list[str]()
    for line_number, line in [*_lines(path), (0, "")]:
        if line.startswith("## "):
            name = line[3:].partition("\t")[0]
        elif line:
            character, tab, tag = line.partition("\t")
            if len(character) != 1 or not tab:
                raise UserError(f"{path}:{line_number}: expected a character, a tab and its tag, got {line[:40]}")
            characters += character
            tags.append(_prefixed(tag, f"{path}:{line_number}"))
        elif characters:
            units = characters_of(characters)
            yield TaggedExample(name, characters, units, [tags[begin] for begin, _ in units])
            characters, tags = "", []


def characters_of(text: str) -> list[tuple[int, int]]:
    """The units of a text in which each character but a space has a tag."""
    return [(i, i + 1) for i, character in enumerate(text) if character != " "]


def _prefixed(tag: str, place: str) -> str:
    """PER-B, as Naver's has it, as B-PER."""
    if tag in ("O", "-"):
        return "O"
    if match := re.fullmatch(r"([BI])-(.+)|(.+)-([BI])", tag):
        return f"{match[1] or match[4]}-{match[2] or match[3]}"
    raise UserError(f'{place}: the tag "{tag[:40]}" is none of O, B-TYPE, I-TYPE, TYPE-B, TYPE-I')


# ---------------------------------------------------------------------------------------------------------- answers


def _squad(task: Task, path: Path, skipped: Skipped) -> Iterator[QuestionExample | None]:
    del task
    whole = _parsed(read_text(path), path)
    lost, moved = list[str](), list[str]()
    for number, article in enumerate(_member(whole, "data", list, str(path))):
        where = f"{path}: data[{number}]"
        for paragraph in _member(article, "paragraphs", list, where):
            context = without_halves(_member(paragraph, "context", str, where))
            for question in _member(paragraph, "qas", list, where):
                name = _name_of(question, where)
                place = f"{path}: question {name}"
                asked = without_halves(_member(question, "question", str, place))
                answers = []
                for answer in _answers_of(question, place):
                    text = without_halves(_member(answer, "text", str, place))
                    said = _member(answer, "answer_start", int, place)
                    begin = _nearest(context, text, said)
                    if begin is None:
                        lost.append(name)
                    else:
                        moved += [name] if begin != said else []
                        answers.append((text, begin))
                if asked.strip():
                    yield QuestionExample(name, asked, context, answers)
                else:
                    skipped.add("with an empty question", f"question {name}")
                    yield None
    if lost:
        raise UserError(
            f"{path}: {len(lost):,} answers are not in their contexts, the first of question {lost[0]}: mend or remove "
            "these questions"
        )
    if moved:
        log.warning(
            "%s: %d answers do not stand where answer_start says (counted in UTF-16?), the first of question %s: the "
            "nearest place in the context is taken", path.name, len(moved), moved[0],
        )  # fmt: skip


def _member(value: Any, name: str, kind: type[T], where: str) -> T:
    """value[name]. Raises UserError where that is not there, or of another kind."""
    word = {list: "a list", str: "text", int: "a number"}[kind]
    if not isinstance(value, dict):
        raise UserError(
            f"{where}: found {json.dumps(value)[:40]}, expected an object with {name}: not in the layout of SQuAD"
        )
    if not isinstance(value.get(name), kind) or isinstance(value.get(name), bool):
        found = f"is {json.dumps(value[name])[:40]}" if name in value else f"is missing from {', '.join(value)[:80]}"
        raise UserError(f"{where}: {name} {found}, expected {word}: not in the layout of SQuAD and KorQuAD 1")
    return value[name]


def _name_of(question: Any, where: str) -> str:
    names = question if isinstance(question, dict) else {}
    found = names.get("id", names.get("guid"))
    if not isinstance(found, str | int):
        raise UserError(f"{where}: a question without an id: not in the layout of SQuAD and KorQuAD 1")
    return str(found)


def _answers_of(question: dict[str, Any], place: str) -> list[Any]:
    if question.get("is_impossible") or not ({"answers", "answer"} & question.keys()):
        return []
    return _member(question, "answers", list, place)


def _nearest(context: str, text: str, begin: int) -> int | None:
    """Where `text` stands, as near to `begin` as may be."""
    if not text:
        return None
    places = [match.start() for match in re.finditer(f"(?={re.escape(text)})", context)]
    return min(places, key=lambda place: abs(place - begin), default=None)


_READERS = {
    "tsv": _tsv, "json": _json, "naver-ner": _naver_ner, "klue-ner": _klue_ner, "conll": _conll, "squad": _squad,
}  # fmt: skip
