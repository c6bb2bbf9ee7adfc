"""Scores of predictions, as the tasks' own scorers compute them; all between 0 and 1, or -1 and 1 for correlations."""

import math
import re
import string
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from typing import Any

import numpy as np
from scipy import stats
from sklearn import metrics as sklearn_metrics


def accuracy(expected: Sequence[str], predicted: Sequence[str]) -> float:
    """Return the share that is equal."""
    return float(sklearn_metrics.accuracy_score(expected, predicted))


def macro_f1(expected: Sequence[str], predicted: Sequence[str]) -> float:
    """Return the mean of the F1 of each label that is expected or predicted somewhere."""
    return float(sklearn_metrics.f1_score(expected, predicted, average="macro", zero_division=0))


def matthews(expected: Sequence[str], predicted: Sequence[str]) -> float:
    """Return Matthews' correlation; 0 where one of the two is constant."""
    return float(sklearn_metrics.matthews_corrcoef(expected, predicted))


def binary_f1(expected: Sequence[str], predicted: Sequence[str], positive: str) -> float:
    """Return the F1 of one label."""
    wanted, found = ([label == positive for label in labels] for labels in (expected, predicted))
    return float(sklearn_metrics.f1_score(wanted, found, zero_division=0))


def pearson(expected: Sequence[float], predicted: Sequence[float]) -> float:
    """Return the correlation; not a number where one of the two is constant."""
    return _correlation(stats.pearsonr, expected, predicted)


def spearman(expected: Sequence[float], predicted: Sequence[float]) -> float:
    """Return the correlation of the ranks; not a number where one of the two is constant."""
    return _correlation(stats.spearmanr, expected, predicted)


def _correlation(of: Callable[..., Any], expected: Sequence[float], predicted: Sequence[float]) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constants: a model that has learned nothing yet is no news
        return float(of(expected, predicted)[0]) if len(expected) > 1 else math.nan


def f1_at_3(expected: Sequence[float], predicted: Sequence[float]) -> float:
    """Return the F1 of "alike", which is a score of 3 or more of 5 (KLUE STS)."""
    return binary_f1([str(x >= 3) for x in expected], [str(x >= 3) for x in predicted], "True")


Entity = tuple[str, int, int]
Tags = Sequence[Sequence[str]]


def entities(tags: Sequence[str], *, is_strict: bool = False) -> set[Entity]:
    """Return (type, first, last) as conlleval counts them: an I that follows nothing of its type begins one too.

    Strict ones begin with a B.
    """
    found, kind, begin = set[Entity](), "", 0
    for i, tag in enumerate([*tags, "O"]):  # which ends the last one
        prefix, _, name = tag.partition("-")
        if kind and (prefix != "I" or name != kind):
            found.add((kind, begin, i - 1))
            kind = ""
        if prefix == "B" or (prefix == "I" and not kind and not is_strict):
            kind, begin = name, i
    return found


def entity_f1(expected: Tags, predicted: Tags) -> float:
    """Return the F1 over all entities, type and both ends right (seqeval's default)."""
    return _f1(*_count(expected, predicted, is_strict=False).get("", (0, 0, 0)))


def entity_macro_f1(expected: Tags, predicted: Tags) -> float:
    """Return the mean over types of the F1 of entities, which begin with a B (seqeval's strict mode, KLUE NER)."""
    counts = _count(expected, predicted, is_strict=True)
    counts.pop("", None)
    return float(np.mean([_f1(*count) for count in counts.values()])) if counts else 0.0


def _count(expected: Tags, predicted: Tags, *, is_strict: bool) -> dict[str, tuple[int, int, int]]:
    """Return {type: (right, expected, predicted)}, and "" for all."""
    counts: dict[str, np.ndarray] = {}
    for theirs, ours in zip(expected, predicted, strict=True):
        wanted, found = entities(theirs, is_strict=is_strict), entities(ours, is_strict=is_strict)
        for place, group in enumerate((wanted & found, wanted, found)):
            for kind, *_ in group:
                for key in (kind, ""):
                    counts.setdefault(key, np.zeros(3, int))[place] += 1
    return {kind: (int(right), int(wanted), int(found)) for kind, (right, wanted, found) in counts.items()}


def _f1(right: int, expected: int, predicted: int) -> float:
    return 2 * right / (expected + predicted) if right else 0.0


def character_macro_f1(expected: Tags, predicted: Tags) -> float:
    """Return the mean over all tags, O with them, of the F1 of each character's tag (KLUE NER).

    Unlike in KLUE's code [CLS] and [SEP] are no characters, and a tag that is nowhere counts nothing (1 there); all its
    tags occur in its files.
    """
    return macro_f1([tag for tags in expected for tag in tags], [tag for tags in predicted for tag in tags])


_PUNCTUATION = set(string.punctuation)
_KORQUAD_SIGNS = str.maketrans(dict.fromkeys("'\"《》<>〈〉()‘’", " "))


def normalized(text: str) -> str:
    """Return what SQuAD's scorer compares: lower case, without punctuation and articles."""
    text = "".join(character for character in text.lower() if character not in _PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def korquad_normalized(text: str) -> str:
    """Return what KorQuAD's scorer compares: some signs are spaces, other punctuation is nothing."""
    return klue_normalized(text.translate(_KORQUAD_SIGNS))


def klue_normalized(text: str) -> str:
    """Return what KLUE MRC's scorer compares: lower case, without ASCII punctuation.

    It means to drop more quotes, but its pattern for them matches nothing that occurs.
    """
    return " ".join("".join(character for character in text.lower() if character not in _PUNCTUATION).split())


def exact_match(expected: Sequence[Sequence[str]], predicted: Sequence[str]) -> float:
    """Return the share of answers that equal one of the expected (SQuAD 1.1 and 2.0); no expected ones: "" is right."""
    return _best(expected, predicted, lambda a, b: float(normalized(a) == normalized(b)), normalized)


def answer_f1(expected: Sequence[Sequence[str]], predicted: Sequence[str]) -> float:
    """Return the mean F1 of the words, against the best of the expected answers (SQuAD 1.1 and 2.0)."""
    return _best(expected, predicted, lambda a, b: _overlap(normalized(a).split(), normalized(b).split()), normalized)


def korquad_exact_match(expected: Sequence[Sequence[str]], predicted: Sequence[str]) -> float:
    """Return the share of answers that equal one of the expected (KorQuAD 1.0)."""
    return _best(expected, predicted, lambda a, b: float(korquad_normalized(a) == korquad_normalized(b)))


def korquad_f1(expected: Sequence[Sequence[str]], predicted: Sequence[str]) -> float:
    """Return the mean F1 of the characters but spaces, against the best of the expected answers (KorQuAD 1.0)."""

    def characters(text: str) -> list[str]:
        return list(korquad_normalized(text).replace(" ", ""))

    def f1(a: str, b: str) -> float:
        # Unlike SQuAD's: two texts of which nothing is left are 0.
        return _overlap(characters(a), characters(b)) if characters(a) else 0.0

    return _best(expected, predicted, f1)


def klue_exact_match(expected: Sequence[Sequence[str]], predicted: Sequence[str]) -> float:
    """Return the share of answers that equal one of the expected (KLUE MRC); no expected ones: "" is right."""
    return _best(expected, predicted, lambda a, b: float(klue_normalized(a) == klue_normalized(b)))


def klue_rouge_w(expected: Sequence[Sequence[str]], predicted: Sequence[str]) -> float:
    """Return what KLUE MRC calls ROUGE-W.

    The mean F1 of the longest run of characters that both have, against the best of the expected answers. Lin's ROUGE-W
    (2004), which weights a subsequence, is another number.
    """
    return _best(expected, predicted, lambda a, b: _longest_run_f1(klue_normalized(a), klue_normalized(b)))


def _best(
    expected: Sequence[Sequence[str]],
    predicted: Sequence[str],
    compare: Callable[[str, str], float],
    is_kept: Callable[[str], object] = lambda answer: True,
) -> float:
    scores = [
        max(compare(answer, text) for answer in [a for a in answers if is_kept(a)] or [""])
        for answers, text in zip(expected, predicted, strict=True)
    ]
    return float(np.mean(scores))


def _overlap(expected: list[str], predicted: list[str]) -> float:
    if not expected or not predicted:
        return float(expected == predicted)
    return _f1((Counter(expected) & Counter(predicted)).total(), len(expected), len(predicted))


def _longest_run_f1(expected: str, predicted: str) -> float:
    if not expected:
        return float(not predicted)
    # The order matters: of a text of 200 characters and more SequenceMatcher passes over those that are frequent in it.
    run = SequenceMatcher(None, predicted, expected).find_longest_match().size
    return _f1(run, len(expected), len(predicted))


SCORERS: dict[str, Callable[[Any, Any], float]] = {
    "accuracy": accuracy, "macro_f1": macro_f1, "matthews": matthews, "pearson": pearson, "spearman": spearman,
    "f1_at_3": f1_at_3, "entity_f1": entity_f1, "entity_macro_f1": entity_macro_f1,
    "character_macro_f1": character_macro_f1, "exact_match": exact_match, "answer_f1": answer_f1,
    "korquad_exact_match": korquad_exact_match, "korquad_f1": korquad_f1, "klue_exact_match": klue_exact_match,
    "klue_rouge_w": klue_rouge_w,
}  # fmt: skip
