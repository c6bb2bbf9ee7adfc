"""Rows of texts and sentences of tagged words, in the layouts in which they are published -> examples."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from electra_flax.errors import UserError
from electra_flax.files import read_text
from electra_flax.finetuning.examples import Skipped, TaggedExample, TextExample
from electra_flax.finetuning.task import Task
from electra_flax.formats import counted
from electra_flax.text import without_halves


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield lines and their numbers from 1, but for blank ones at the end.

    Only LF ends a line, for texts hold other separators; CR does in a file that has no LF at all.
    """
    yield from enumerate(_split_lines(read_text(path)), start=1)


def _split_lines(text: str) -> list[str]:
    text = text.rstrip("\r\n")
    return [line.rstrip("\r") for line in text.split("\n" if "\n" in text else "\r")] if text else []


def parsed(text: str, where: object) -> Any:
    """Return parsed JSON. Raises UserError for what is none, NaN and Infinity too."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:  # ValueError: a number of too many digits too
        raise UserError(f"{where}: not JSON ({str(error)[:100]}): copy it again") from None


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _tsv(task: Task, path: Path, skipped: Skipped) -> Iterator[TextExample | None]:
    lines = list(lines_of(path))
    header = lines.pop(0)[1].split("\t") if task.has_header and lines else []
    columns = task.columns
    places = {name: _place(name, header, path) for name in (columns.text, columns.pair, columns.label) if name}
    if columns.id in header:
        places[columns.id] = _place(columns.id, header, path)
    most = len(header) or _usual_width(lines)
    for number, (line_number, line) in enumerate(lines):
        place = f"{path}:{line_number}"
        cells = line.split("\t")
        # One tab more within a text would move every cell after it, the label too, and train all the same.
        if any(cell.strip() for cell in cells[most:]):
            expected = f"the header names {most}" if header else f"{most} in most other rows"
            raise UserError(f"{place}: {len(cells)} cells, but {expected}: a tab within a text? Remove it")
        if len(cells) <= max(places.values()):
            skipped.add(f"with {counted(len(cells), 'columns')}" if line else "that are blank", place)
            yield None
            continue
        found = {name: cells[place].strip() for name, place in places.items()}
        yield _text_example(task, place, str(number), found, skipped)


def _usual_width(lines: list[tuple[int, str]]) -> int:
    """Return how many cells most rows have, the smaller number where two are as frequent."""
    widths = Counter(len(line.rstrip("\t").split("\t")) for _, line in lines if line)
    return min(widths, key=lambda width: (-widths[width], width), default=0)


def _place(name: str, header: list[str], path: Path) -> int:
    if re.fullmatch("[0-9]{1,4}", name):
        return int(name)
    if name not in header:
        shown = ", ".join(header)[:200] or "empty"
        raise UserError(f"{path}: has no column {name[:40]}; its header is: {shown}: the file of another task?")
    if header.count(name) > 1:
        raise UserError(
            f"{path}: its header names the column {name[:40]} {header.count(name)} times: rename all but one"
        )
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
            if value is None:
                nulls.append(f"{place}: {name}")
            found[name] = _text_of(value, f"{place}: {name}")
        if row.get(columns.id) is not None:
            found[columns.id] = _text_of(row[columns.id], f"{place}: {columns.id}")
        yield None if nulls else _text_example(task, place, str(number), found, skipped)
    if nulls:
        raise UserError(f"{nulls[0]} is null, one of {len(nulls):,}: remove these rows, or say what they are")


def _text_of(value: Any, where: str) -> str:
    """Return text as it is, numbers and truth values as JSON has them."""
    if isinstance(value, dict | list) or (isinstance(value, float) and not math.isfinite(value)):
        raise UserError(f"{where} is {json.dumps(value)[:40]}, expected text or a number")
    return without_halves(value if isinstance(value, str) else json.dumps(value)).strip()


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (place for people, value) of a list's members, or of each line but blank ones."""
    text = read_text(path)
    if text.lstrip().startswith("["):
        for number, row in enumerate(parsed(text, path), start=1):
            yield f"{path}: row {number}", row
        return
    for number, line in enumerate(_split_lines(text), start=1):
        if line.strip():
            yield f"{path}:{number}", parsed(line, f"{path}:{number}")


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
    found = f'{place}: {task.columns.label} is "{label[:40]}"' if label else f"{place}: {task.columns.label} is empty"
    if task.kind == "regression":
        try:
            is_score = 0 <= float(label) <= task.largest_score
        except ValueError:
            is_score = False
        if not is_score:
            raise UserError(f"{found}, expected a number from 0 to {task.largest_score:g}")
    elif task.labels and label not in task.labels:
        raise UserError(f"{found}, expected one of {', '.join(task.labels)[:200]}")
    elif not label:
        raise UserError(f"{found}, expected a label; skipped_labels: [''] in the task leaves such rows out")


def _naver_ner(task: Task, path: Path, skipped: Skipped) -> Iterator[TaggedExample | None]:
    """Yield the examples of lines "word word ... TAB tag tag ..."; tags as TYPE-B, TYPE-I, O."""
    for number, (line_number, line) in enumerate(lines_of(path)):
        place = f"{path}:{line_number}"
        if not line:
            skipped.add("that are blank", place)
            yield None
            continue
        words, _, tags = (part.split() for part in line.partition("\t"))
        if not words or len(words) != len(tags):
            raise UserError(f"{place}: {len(words)} words and {len(tags)} tags: expected words, a tab and as many tags")
        yield _tagged(str(number), words, [_prefixed(task, tag, place) for tag in tags])


def _conll(task: Task, path: Path, skipped: Skipped) -> Iterator[TaggedExample | None]:
    """Yield the examples of lines of a word, its tag the last of the columns; an empty line ends a sentence."""
    del skipped
    words: list[str] = []
    tags: list[str] = []
    count = 0
    for line_number, line in [*lines_of(path), (0, "")]:
        cells = line.split()
        if cells and cells[0] != "-DOCSTART-":
            if len(cells) < 2:
                raise UserError(f"{path}:{line_number}: expected a word and its tag, got {line[:40]}")
            words.append(cells[0])
            tags.append(_prefixed(task, cells[-1], f"{path}:{line_number}"))
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
    """Yield the examples of lines of a character and its tag, spaces included; "## id TAB sentence" before each.

    The tags of spaces are not used: KLUE's scorer has none.
    """
    del skipped
    name, characters, tags = "", "", list[str]()
    for line_number, line in [*lines_of(path), (0, "")]:
        if line.startswith("## "):
            name = line[3:].partition("\t")[0]
        elif line:
            character, tab, tag = line.partition("\t")
            if len(character) != 1 or not tab:
                raise UserError(f"{path}:{line_number}: expected a character, a tab and its tag, got {line[:40]}")
            characters += character
            tags.append(_prefixed(task, tag, f"{path}:{line_number}"))
        elif characters:
            units = characters_of(characters)
            yield TaggedExample(name, characters, units, [tags[begin] for begin, _ in units])
            characters, tags = "", []


def characters_of(text: str) -> list[tuple[int, int]]:
    """Return the units of a text in which each character but a space has a tag."""
    return [(i, i + 1) for i, character in enumerate(text) if character != " "]


def _prefixed(task: Task, tag: str, place: str) -> str:
    """Return PER-B, as Naver's has it, as B-PER."""
    if tag in ("O", "-"):
        return "O"
    match = re.fullmatch(r"([BI])-(.+)|(.+)-([BI])", tag)
    if not match:
        raise UserError(f'{place}: the tag "{tag[:40]}" is none of O, B-TYPE, I-TYPE, TYPE-B, TYPE-I')
    found = f"{match[1] or match[4]}-{match[2] or match[3]}"
    if task.labels and found not in task.labels:
        raise UserError(f'{place}: the tag is "{tag[:40]}", expected one of {", ".join(task.labels)[:200]}')
    return found


LAYOUTS: dict[str, Callable[[Task, Path, Skipped], Iterator[TextExample | TaggedExample | None]]] = {
    "tsv": _tsv, "json": _json, "naver-ner": _naver_ner, "klue-ner": _klue_ner, "conll": _conll,
}  # fmt: skip
