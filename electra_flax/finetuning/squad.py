"""Questions about contexts, in the layout of SQuAD and KorQuAD 1 -> examples."""

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from electra_flax.errors import UserError
from electra_flax.files import read_text
from electra_flax.finetuning.examples import QuestionExample, Skipped
from electra_flax.finetuning.layouts import parsed
from electra_flax.finetuning.task import Task
from electra_flax.text import without_halves

log = logging.getLogger("electra_flax")
T = TypeVar("T")


def read_squad(task: Task, path: Path, skipped: Skipped) -> Iterator[QuestionExample | None]:
    """Yield the questions of a file. Raises UserError, naming the question, for what is not in that layout."""
    del task
    whole = parsed(read_text(path), path)
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
                    # Other tools count in UTF-16 or in bytes: taken as they are, such places would teach wrong words,
                    # and nothing would show it but the score.
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
    """Return value[name]. Raises UserError where that is not there, or of another kind."""
    word = {list: "a list", str: "text", int: "a number"}[kind]
    if not isinstance(value, dict):
        raise UserError(
            f"{where}: found {json.dumps(value)[:40]}, expected an object with {name}: not in the layout of SQuAD"
        )
    member = value.get(name)
    if not isinstance(member, kind) or isinstance(member, bool):  # true is an int to Python
        found = f"is {json.dumps(value[name])[:40]}" if name in value else f"is missing from {', '.join(value)[:80]}"
        raise UserError(f"{where}: {name} {found}, expected {word}: not in the layout of SQuAD and KorQuAD 1")
    return member


def _name_of(question: Any, where: str) -> str:
    names = question if isinstance(question, dict) else {}
    found = names.get("id", names.get("guid"))
    if not isinstance(found, str | int):
        raise UserError(f"{where}: a question without an id: not in the layout of SQuAD and KorQuAD 1")
    return str(found)


def _answers_of(question: dict[str, Any], place: str) -> list[Any]:
    # SQuAD 2.0 lists plausible but wrong answers beside is_impossible; test files have no answers at all.
    if question.get("is_impossible") or not ({"answers", "answer"} & question.keys()):
        return []
    return _member(question, "answers", list, place)


def _nearest(context: str, text: str, begin: int) -> int | None:
    """Return where `text` stands, as near to `begin` as may be."""
    if not text:
        return None
    places = [match.start() for match in re.finditer(f"(?={re.escape(text)})", context)]
    return min(places, key=lambda place: abs(place - begin), default=None)
