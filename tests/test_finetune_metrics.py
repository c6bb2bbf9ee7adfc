"""Scores against the libraries and definitions that the tasks' authors use, on random cases and on the odd ones."""

import math
import random
import re
import string
import warnings
from collections import Counter

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from electra_flax.finetuning import metrics

on_random_cases = pytest.mark.parametrize("cases", [200, pytest.param(10_000, marks=pytest.mark.long)])


def random_labels(rng, count):
    size = rng.randint(1, count)
    labels = [str(i) for i in range(rng.randint(1, 5))]  # one class alone included
    return [rng.choice(labels) for _ in range(size)], [rng.choice(labels) for _ in range(size)]


@on_random_cases
def test_labels_as_their_definitions(cases):
    """Counted out by hand, against scikit-learn through our functions."""
    rng = random.Random(0)
    for _ in range(cases):
        expected, found = random_labels(rng, 12)
        n = len(expected)
        assert metrics.accuracy(expected, found) == pytest.approx(sum(map(str.__eq__, expected, found)) / n)
        labels = sorted({*expected, *found})
        counts = Counter(zip(expected, found, strict=True))
        wanted, given = Counter(expected), Counter(found)
        f1 = [2 * counts[k, k] / (wanted[k] + given[k]) for k in labels]
        assert metrics.macro_f1(expected, found) == pytest.approx(sum(f1) / len(f1))
        assert metrics.binary_f1(expected, found, "1") == pytest.approx(dict(zip(labels, f1, strict=True)).get("1", 0))
        right = sum(counts[k, k] for k in labels)
        covariance = right * n - sum(wanted[k] * given[k] for k in labels)
        spread = (n * n - sum(v * v for v in given.values())) * (n * n - sum(v * v for v in wanted.values()))
        matthews = covariance / math.sqrt(spread) if spread else 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert metrics.matthews(expected, found) == pytest.approx(matthews)


@on_random_cases
def test_correlations_as_scipy_and_numpy(cases):
    rng = np.random.default_rng(0)
    for case in range(cases):
        n = int(rng.integers(2, 12))
        expected, found = rng.integers(0, 5, n).astype(float), rng.normal(size=n).round(1)
        if case % 20 == 0:
            found[:] = 1.0
        pearson, spearman = metrics.pearson(expected, found), metrics.spearman(expected, found)
        if np.ptp(expected) == 0 or np.ptp(found) == 0:
            assert math.isnan(pearson) and math.isnan(spearman)
            continue
        assert pearson == pytest.approx(np.corrcoef(expected, found)[0, 1], abs=1e-9)
        ranks = [stats.rankdata(values) for values in (expected, found)]
        assert spearman == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-9)
    assert math.isnan(metrics.pearson([1.0], [2.0]))
    assert metrics.f1_at_3([0, 3, 5], [2.9, 3.0, 1]) == pytest.approx(2 / 3)


def random_tags(rng):
    tags = ["O", "B-PS", "I-PS", "B-LC", "I-LC"]
    sizes = [rng.randint(1, 8) for _ in range(rng.randint(1, 3))]
    return [[[rng.choice(tags) for _ in range(size)] for size in sizes] for _ in range(2)]


@on_random_cases
def test_entities_as_seqeval(cases):
    from seqeval import metrics as seqeval_metrics
    from seqeval.scheme import IOB2

    rng = random.Random(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in range(cases):
            expected, found = random_tags(rng)
            assert metrics.entity_f1(expected, found) == pytest.approx(seqeval_metrics.f1_score(expected, found))
            if case % 10 == 0:  # slow there
                theirs = seqeval_metrics.f1_score(expected, found, average="macro", mode="strict", scheme=IOB2)
                assert metrics.entity_macro_f1(expected, found) == pytest.approx(np.nan_to_num(theirs)), (
                    expected,
                    found,
                )
            flat = [[tag for tags in side for tag in tags] for side in (expected, found)]
            labels = sorted({*flat[0], *flat[1]})  # those of KLUE are a list of all, O with them
            theirs = sklearn_metrics.f1_score(*flat, labels=labels, average="macro", zero_division=True)
            assert metrics.character_macro_f1(expected, found) == pytest.approx(theirs)
    assert metrics.entity_f1([["O"]], [["O"]]) == metrics.entity_macro_f1([["O"]], [["O"]]) == 0.0


# The definitions of evaluate-v2.0.py (SQuAD) and evaluate-v1.0.py (KorQuAD), word for word in another form.


def squad_words(text):
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return [word for word in re.split(r"\s+", kept) if word and word not in ("a", "an", "the")]


def korquad_words(text):
    for sign in "'\"《》<>〈〉()‘’":
        text = text.replace(sign, " ")
    return "".join(c for c in text.lower() if c not in string.punctuation).split()


def overlap(a, b, both_empty):
    if not a or not b:
        return both_empty if a == b else 0.0
    common = sum(min(a.count(x), b.count(x)) for x in set(a))
    return 0.0 if common == 0 else 2 * (common / len(b)) * (common / len(a)) / (common / len(b) + common / len(a))


@on_random_cases
def test_answers_as_the_official_scorers_define_them(cases):
    rng = random.Random(0)
    words = ["the", "A", "cat,", "서울", "‘서울’", "(2011년)", "an", "9월", "b", "!", "고양이를", "-"]

    def text():
        return " ".join(rng.choice(words) for _ in range(rng.randint(0, 4)))

    for _ in range(cases):
        golds, found = [text() for _ in range(rng.randint(0, 3))], text()
        usable = [gold for gold in golds if squad_words(gold)] or [""]
        exact = max(float(squad_words(gold) == squad_words(found)) for gold in usable)
        f1 = max(overlap(squad_words(gold), squad_words(found), 1.0) for gold in usable)
        assert metrics.exact_match([golds], [found]) == exact
        assert metrics.answer_f1([golds], [found]) == pytest.approx(f1), (golds, found)
        golds = golds or [text()]  # KorQuAD 1.0 has no question without an answer
        exact = max(float(korquad_words(gold) == korquad_words(found)) for gold in golds)
        letters = [list("".join(korquad_words(gold))) for gold in golds]
        f1 = max(overlap(gold, list("".join(korquad_words(found))), 0.0) for gold in letters)
        assert metrics.korquad_exact_match([golds], [found]) == exact
        assert metrics.korquad_f1([golds], [found]) == pytest.approx(f1), (golds, found)


def klue_mrc_scores(golds, found):
    """(EM, ROUGE-W) of klue_baseline/metrics/utils.py, in another form."""

    def kept(text):
        return " ".join("".join(c for c in text.lower() if c not in string.punctuation).split())

    found, golds = kept(found), [kept(gold) for gold in golds] or [""]
    scores = []
    for gold in golds:
        runs = [
            0,
            *(n for n in range(1, len(gold) + 1) if any(gold[i : i + n] in found for i in range(len(gold) - n + 1))),
        ]
        precision, recall = (runs[-1] / len(text) if text else 0.0 for text in (found, gold))
        f1 = 2 * precision * recall / (precision + recall) if runs[-1] else 0.0
        scores.append((float(gold == found), f1 if gold else float(found == "")))
    return tuple(max(column) for column in zip(*scores, strict=True))


@on_random_cases
def test_klue_mrc(cases):
    rng = random.Random(0)
    signs = "가나다 가나 Ab' \"《.(,"
    for _ in range(cases):
        golds = ["".join(rng.choices(signs, k=rng.randint(0, 8))) for _ in range(rng.randint(0, 3))]
        found = rng.choice([*golds, "".join(rng.choices(signs, k=rng.randint(0, 8)))])
        exact, rouge = klue_mrc_scores(golds, found)
        assert metrics.klue_exact_match([golds], [found]) == exact, (golds, found)
        assert metrics.klue_rouge_w([golds], [found]) == pytest.approx(rouge), (golds, found)
    assert metrics.klue_rouge_w([["서울 시청"]], ["서울"]) == pytest.approx(4 / 7)
    assert metrics.klue_rouge_w([[]], [""]) == metrics.klue_rouge_w([["!"]], ["?"]) == 1.0
    # A long answer of few letters: all are "popular" to SequenceMatcher, which KLUE uses with its defaults.
    assert metrics.klue_rouge_w([["가나" * 100]], ["다가나"]) == 0.0
