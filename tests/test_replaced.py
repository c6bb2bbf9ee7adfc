"""What `show` prints of found, missed and falsely accused tokens where there are no colours."""

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from electra_flax.data.tokenizer import Casing, build_tokenizer
from electra_flax.reports.replaced import Detection, compare, detect_in, show, tally
from electra_flax.weights.sources import find_weights

SAMPLE = Path(__file__).parents[1] / "data_prep/sample/korean.txt"


def test_each_outcome_has_a_sign_of_its_own_without_colours():
    out = io.StringIO()
    detection = Detection(
        ["[CLS]", "나", "##라", "수도", "이다"], ["[CLS]", "산", "##라", "강", "이다"],
        np.array([False, True, False, True, False]), np.array([0.0, 0.9, 0.1, 0.2, 0.8]),
    )  # fmt: skip
    show([detection], Console(file=out, width=200))
    legend, shown, total = out.getvalue().splitlines()
    assert legend.endswith("+found, !false alarm, -missed, original in brackets")
    assert shown == "  [CLS] +산(나)라 -강(수도) !이다"
    assert total.startswith("found 1 of 2 replaced tokens")


def detection(is_replaced, probability):
    tokens = [f"낱{number}" for number in range(len(is_replaced))]
    return Detection(tokens, tokens, np.array(is_replaced, bool), np.array(probability))


def test_what_is_found_stands_beside_what_chance_would_find():
    found = tally([detection([1, 0, 0, 0], [0.9, 0.1, 0.2, 0.3]), detection([1, 1, 0, 0], [0.8, 0.1, 0.7, 0.2])])
    assert (found.examples, found.replaced, found.found) == (2, 3, 2)
    assert found.by_chance == pytest.approx(1 / 4 + 4 / 4)
    # Of 3 x 5 pairs, the token at 0.1 is above none and level with one.
    assert found.auc == pytest.approx((5 + 5 + 0.5) / 15)
    assert np.isnan(tally([detection([0, 0], [0.1, 0.2])]).auc) and np.isnan(tally([]).auc)


def test_models_are_compared_in_a_line_each():
    out = io.StringIO()
    one = tally([detection([1, 0, 0, 0], [0.9, 0.1, 0.2, 0.3])])
    compare({"b": one, "a": one._replace(found=0)}, Console(file=out, width=200))
    title, *rows = out.getvalue().splitlines()
    assert title.endswith("15% of tokens guessed by each model's own generator")
    assert [row.split() for row in rows] == [
        ["model", "examples", "replaced", "found", "by", "chance", "AUC"],
        ["b", "1", "1", "1", "0.2", "1.00"],
        ["a", "1", "1", "0", "0.2", "1.00"],
        ["chance", "0.50"],
    ]
    assert len({len(row) for row in rows}) == 1 and len(rows[0]) <= 80


def test_signs_stand_close_to_their_words():
    out = io.StringIO()
    tokens = ["그는", "(", "정말", ")", "왔다", ".", '"', "왜", "?"]
    show([Detection(tokens, tokens, np.zeros(9, bool), np.zeros(9))], Console(file=out, width=200))
    assert out.getvalue().splitlines()[0] == '  그는 (정말) 왔다. " 왜?'


def test_a_higher_temperature_draws_other_words_which_are_easier_to_find():
    weights = find_weights("hf:tiny-ko")
    ids = (
        build_tokenizer(weights.vocabulary.tokens, Casing(False, False))
        .encode(SAMPLE.read_text("utf-8"))
        .ids[: 32 * 62]
    )
    rows = np.ones((32, 3, 64), np.int32)
    rows[:, 0, 1:-1], rows[:, 2] = np.reshape(ids, (32, 62)), 0
    rows[:, 0, [0, -1]] = weights.vocabulary.special.cls, weights.vocabulary.special.sep
    inputs = ["tiny-ko", rows, weights.vocabulary, weights.architecture, weights.to_params()]
    plain, wild = (tally(detect_in(*inputs, temperature)) for temperature in (1.0, 2.0))
    assert wild.replaced > 1.1 * plain.replaced and wild.auc > plain.auc + 0.05
