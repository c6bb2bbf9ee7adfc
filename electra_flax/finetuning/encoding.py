"""Examples -> rows of token ids with what is to be predicted of them, and predictions -> tags and answers.

Array names: T tokens of one row.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer

from electra_flax.errors import UserError
from electra_flax.finetuning.examples import QuestionExample, TaggedExample, TextExample
from electra_flax.finetuning.task import Task, Training
from electra_flax.runtime.console import progress

IGNORED = -1
"""Target of a token that carries no tag."""
LEAST_CONTEXT = 16
"""Tokens of the context that a window has at least: a longer question is cut, as one beyond max_query_length is."""
_BATCH = 10_000  # texts that are tokenized at once: enough for all cores, and the bar moves


class Row(NamedTuple):
    """One sequence; an example that is a question has one for each window of its context."""

    example: int
    """Index of the example."""
    input_ids: np.ndarray
    """int32 [T]."""
    token_type_ids: np.ndarray
    """int32 [T]."""
    target: np.ndarray
    """int32 label, float32 score from 0 to 1, int32 [T] tags, or int32 [3]: first and last token of the answer and
    whether there is none in this window."""
    offsets: list[tuple[int, int]]
    """Of each token, its characters in the text or context; (0, 0) for those that are not part of it."""


def labels_of(task: Task, training_examples: Sequence[Any]) -> list[str]:
    """Return labels as they are in the files, in the order of the model's outputs."""
    if task.kind == "classification":
        return list(task.labels) or sorted({example.label for example in training_examples})
    if task.kind == "tagging":
        types = sorted({tag[2:] for example in training_examples for tag in example.tags if tag != "O"})
        return ["O", *(f"{prefix}-{kind}" for kind in types for prefix in "BI")]
    return []


def encode(
    task: Task, examples: Sequence[Any], labels: Sequence[str], tokenizer: Tokenizer, training: Training
) -> list[Row]:
    """Return rows of at most training.max_seq_length tokens, in the order of the examples."""
    numbers = {label: number for number, label in enumerate(labels)}
    rows: list[Row] = []
    with progress(len(examples), "tokenizing", "examples", delay=5) as bar:
        for begin in range(0, len(examples), _BATCH):
            some = examples[begin : begin + _BATCH]
            if task.kind == "answers":
                rows += _question_rows(some, begin, tokenizer, training)
            elif task.kind == "tagging":
                rows += _tagged_rows(some, begin, numbers, tokenizer, training)
            else:
                rows += text_rows(task, some, begin, numbers, tokenizer, training.max_seq_length)
            bar.update(len(some))
    return rows


def text_rows(
    task: Task, examples: Sequence[TextExample], begin: int, numbers: dict[str, int], tokenizer: Tokenizer, longest: int
) -> Iterator[Row]:
    """Yield rows of at most `longest` tokens, numbered from `begin`; `numbers` are those of the labels."""
    texts = [(example.text, example.pair) if task.columns.pair else example.text for example in examples]
    tokenizer.enable_truncation(longest, strategy="longest_first")
    for number, (example, encoding) in enumerate(zip(examples, tokenizer.encode_batch(texts), strict=True), begin):
        if task.kind == "regression":
            # From 0 to 1 whatever the scale: heads of both forms multiply it back (heads.py).
            target = np.asarray(float(example.label or 0) / task.largest_score, np.float32)
        else:
            target = np.asarray(numbers.get(example.label, 0), np.int32)  # "": nobody knows it
        yield Row(number, *_ids(encoding), target, [])


def _ids(encoding: Encoding) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(encoding.ids, np.int32), np.asarray(encoding.type_ids, np.int32)


def _tagged_rows(
    examples: Sequence[TaggedExample], begin: int, numbers: dict[str, int], tokenizer: Tokenizer, how: Training
) -> Iterator[Row]:
    tokenizer.enable_truncation(how.max_seq_length)
    encodings = tokenizer.encode_batch([example.text for example in examples])
    for number, (example, encoding) in enumerate(zip(examples, encodings, strict=True), begin):
        target = np.full(len(encoding.ids), IGNORED, np.int32)
        # Of several units in one token (a word that is one piece, tagged by character) the first one teaches.
        taken = set()
        for token, tag in zip(leaders(example.units, encoding.offsets), example.tags, strict=False):
            if token is not None and token not in taken:
                taken.add(token)
                target[token] = numbers.get(tag, 0)
        yield Row(number, *_ids(encoding), target, encoding.offsets)


def leaders(units: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]]) -> list[int | None]:
    """Return of each unit the token that it begins in; None for what no token has, and for what was cut off."""
    found: list[int | None] = []
    token = 0
    for begin, end in units:
        while token < len(offsets) and offsets[token][1] <= begin:
            token += 1
        is_there = token < len(offsets) and offsets[token][0] < end
        found.append(token if is_there else None)
    return found


def tags_of_units(
    units: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]], predicted: Sequence[str]
) -> list[str]:
    """Return a tag for each unit from those of the tokens [T].

    A token's tag is that of the first unit in it; the others in it go on with the same entity, and so does a
    character between two parts of one that no token has.
    """
    tags: list[str] = []
    before = None
    for token in leaders(units, offsets):
        tag = "" if token is None else predicted[token]
        tags.append("I" + tag[1:] if token == before and tag.startswith("B-") else tag)
        before = token if token is not None else before
    # From the end: what follows a character without a token says whether it is inside of an entity.
    for i in reversed(range(len(tags))):
        if not tags[i]:
            following = tags[i + 1] if i + 1 < len(tags) else "O"
            tags[i] = following if following.startswith("I-") else "O"
    return tags


def _question_rows(
    examples: Sequence[QuestionExample], begin: int, tokenizer: Tokenizer, how: Training
) -> Iterator[Row]:
    tokenizer.no_truncation()
    contexts = sorted({example.context for example in examples})  # each has many questions
    encoded = tokenizer.encode_batch(contexts, add_special_tokens=False)
    of_context = dict(zip(contexts, encoded, strict=True))
    questions = tokenizer.encode_batch([example.question for example in examples])
    for number, (example, question) in enumerate(zip(examples, questions, strict=True), begin):
        cls, *asked, sep = question.ids
        # The original cuts questions at max_query_length; where windows are short, so that a context keeps some room.
        asked = asked[: min(how.max_query_length, max(1, how.max_seq_length - 3 - LEAST_CONTEXT))]
        context = of_context[example.context]
        room = how.max_seq_length - len(asked) - 3
        if room < 1:  # windows would never come to an end
            raise UserError(
                f"max_seq_length={how.max_seq_length}: no room for a context beside a question; expected 5 at least, "
                "384 and 512 are usual"
            )
        first, last = _answer_tokens(example, context.offsets) or (-1, -1)
        for start in _windows(len(context.ids), room, how.doc_stride):
            ids = context.ids[start : start + room]
            shift = len(asked) + 2 - start
            # A window that does not hold all of the answer is taught that there is none in it: [CLS], which is 0. The
            # third number does not say so: the question has an answer, in another window.
            is_within = first >= 0 and start <= first and last < start + len(ids)
            target = [first + shift, last + shift, 0] if is_within else [0, 0, int(not example.answers)]
            yield Row(
                number,
                np.asarray([cls, *asked, sep, *ids, sep], np.int32),
                np.asarray([0] * (len(asked) + 2) + [1] * (len(ids) + 1), np.int32),
                np.asarray(target, np.int32),
                [(0, 0)] * (len(asked) + 2) + context.offsets[start : start + room] + [(0, 0)],
            )


def _windows(length: int, room: int, stride: int) -> range:
    """Return where windows of `room` tokens begin: the first that reaches the end is the last."""
    step = min(stride, room)  # a longer stride would leave tokens out
    return range(0, max(0, length - room) + step, step)


def _answer_tokens(example: QuestionExample, offsets: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """Return the first and last token of the first answer."""
    if not example.answers:
        return None
    text, begin = example.answers[0]
    end = begin + len(text)
    inside = [i for i, (start, stop) in enumerate(offsets) if start < end and stop > begin]
    return (inside[0], inside[-1]) if inside else None


class Answer(NamedTuple):
    """A candidate."""

    text: str
    score: float
    """Sum of the logits, or of the logarithms of the probabilities, of its first and last token."""
    begin: int
    """Character of the context at which it begins."""


def best_answers(
    context: str, rows: Sequence[Row], scores: Sequence[np.ndarray], longest: int, count: int = 20
) -> list[Answer]:
    """Return the likeliest answers in a context of which there are several windows, best first.

    `scores` has, for each window, float32 [T, T]: of the answer from a token to another. Of a token that lies in
    several windows, the one counts in which it has the most context.
    """
    best_window = _most_context(rows)  # or a token at a window's edge, which sees half of its sentence, might win
    found: dict[tuple[int, int], Answer] = {}
    for number, (row, matrix) in enumerate(zip(rows, scores, strict=True)):
        is_part = np.asarray([stop > start for start, stop in row.offsets])
        size = len(is_part)
        # From a token to itself or one of the `longest` - 1 after it, both of the context.
        allowed = np.triu(np.ones((size, size), bool)) & ~np.triu(np.ones((size, size), bool), longest)
        allowed &= is_part[:, None] & is_part[None, :]
        values = np.where(allowed, matrix[:size, :size], -np.inf).ravel()
        # Three times as many as are wanted: those whose best window is another fall away.
        for flat in np.argsort(-values, kind="stable")[: 3 * count]:
            first, last = divmod(int(flat), size)
            if not np.isfinite(values[flat]):
                break
            begin, end = row.offsets[first][0], row.offsets[last][1]
            if best_window[row.offsets[first]] != number:
                continue
            answer = Answer(context[begin:end], float(values[flat]), begin)
            if (begin, end) not in found or found[begin, end].score < answer.score:
                found[begin, end] = answer
    return sorted(found.values(), key=lambda answer: -answer.score)[:count]


def _most_context(rows: Sequence[Row]) -> dict[tuple[int, int], int]:
    """Return {characters of a token: the window in which it is farthest from the ends} (the original's rule)."""
    best: dict[tuple[int, int], tuple[float, int]] = {}
    for number, row in enumerate(rows):
        places = [place for place in row.offsets if place[1] > place[0]]
        for i, place in enumerate(places):
            value = min(i, len(places) - 1 - i) + 0.01 * len(places)
            if place not in best or value > best[place][0]:
                best[place] = value, number
    return {place: number for place, (_, number) in best.items()}
