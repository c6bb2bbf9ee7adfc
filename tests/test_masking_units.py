"""Whole words and spans: against a plain loop over words, within their budgets, packed or not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_tools import tiny_config

from electra_flax.config.masking import MaskingConfig
from electra_flax.data.vocabulary import SpecialTokens, Vocabulary
from electra_flax.errors import UserError
from electra_flax.training.masking_units import choose_whole, score_of, span_starts, word_starts
from electra_flax.training.objectives import make_objective
from electra_flax.training.objectives.objective import RowSeeds

SPECIAL = SpecialTokens(0, 1, 2, 3, 4)
CLS, SEP = SPECIAL.cls, SPECIAL.sep


def words_of(ids, continues, is_candidate):
    """[[place, ...], ...] by the rule of google-research/bert: ## joins the token before it, if that is not special."""
    words = []
    for place, number in enumerate(ids):
        if not is_candidate[place]:
            continue
        if continues[number] and place and is_candidate[place - 1]:
            words[-1].append(place)
        else:
            words.append([place])
    return words


def chosen_in_turn(units, score, wanted):
    """The loop of google-research/bert over units in their order; where nothing fits, the first one's first tokens."""
    order = sorted(units, key=lambda unit: (-score[unit[0]], unit[0]))
    hidden = []
    for unit in order:
        if len(hidden) >= wanted:
            break
        if len(hidden) + len(unit) <= wanted:
            hidden += unit
    return hidden or [place for unit in order for place in unit][:wanted]


def rows(count, length, seed, longest=4):
    """Rows of words of 1 to `longest` pieces between special tokens, some padded; (ids, mask, continues_V)."""
    rng = np.random.default_rng(seed)
    continues = np.zeros(100, bool)
    continues[50:] = True
    ids = np.zeros((count, length), np.int32)
    for row in ids:
        text = [CLS]
        while len(text) < rng.integers(6, length - 2):
            text += [rng.integers(5, 50), *rng.integers(50, 100, rng.integers(0, longest))]
            if rng.random() < 0.05:
                text += [SEP]
        text = [*text[: length - 1], SEP]
        row[: len(text)] = text
    return ids, (ids != 0).astype(np.int32), continues


def candidates(ids, mask):
    return (mask == 1) & ~np.isin(ids, [CLS, SEP, SPECIAL.mask])


@pytest.mark.parametrize(("longest", "unit"), [(4, "word"), (17, "word"), (3, "span")])
def test_the_units_of_a_loop_are_chosen(longest, unit):
    ids, mask, continues = rows(10_000, 48, seed=longest, longest=longest)
    is_candidate = candidates(ids, mask)
    rng = np.random.default_rng(0)
    score = rng.integers(0, 200, ids.shape).astype(np.float32) / 200  # with ties
    wanted = np.minimum(np.maximum(np.round(mask.sum(1) * 0.15), 1).astype(np.int32), is_candidate.sum(1))
    starts = word_starts(jnp.asarray(continues)[ids], jnp.asarray(is_candidate))
    if unit == "span":
        seeds = jnp.asarray(rng.integers(0, 2**31, (len(ids), 1)), jnp.int32)
        begins = span_starts(starts, jnp.asarray(is_candidate), jnp.asarray(mask), seeds)
        score = np.asarray(score_of(begins, jnp.asarray(score)))
    places, hidden = choose_whole(jnp.asarray(score), starts, jnp.asarray(mask), is_candidate, wanted[:, None])
    places, hidden, starts = np.asarray(places), np.asarray(hidden)[:, 0], np.asarray(starts)
    for row in range(len(ids)):
        words = words_of(ids[row], continues, is_candidate[row])
        assert [word[0] for word in words] == list(np.flatnonzero(starts[row]))
        expected = chosen_in_turn(words, score[row], wanted[row])
        assert hidden[row] == len(expected) <= wanted[row]
        assert sorted(places[row, : hidden[row]]) == sorted(expected)
        assert sorted(places[row]) == list(range(48))  # each place once


def test_spans_have_the_lengths_of_spanbert():
    starts = np.ones((400, 512), bool)
    begins = np.asarray(
        span_starts(starts, starts, np.ones((400, 512), np.int32), np.arange(400, dtype=np.int32)[:, None])
    )
    lengths = np.concatenate([np.diff(np.flatnonzero(row)) for row in begins])
    expected = 0.2 * 0.8 ** np.arange(10)
    found = np.bincount(lengths, minlength=11)[1:] / len(lengths)
    np.testing.assert_allclose(found, expected / expected.sum(), atol=0.01)
    assert len(found) == 10


@pytest.mark.parametrize("num_steps", [7, 11])
@pytest.mark.parametrize(("first", "last"), [(0.3, 0.15), (0.1, 0.5), (0.3, 0.1), (0.3, 0.05)])
def test_the_share_goes_to_the_last_in_equal_steps(first, last, num_steps):
    config = tiny_config(masking={"mask_prob": first, "final_mask_prob": last}, training={"num_steps": num_steps})
    assert config.max_predictions_per_seq == int((max(first, last) + 0.005) * 32)
    ids, mask, _ = rows(16, 32, seed=1)
    batch = {
        name: jnp.asarray(x) for name, x in (("input_ids", ids), ("attention_mask", mask), ("token_type_ids", 0 * ids))
    }
    objective, seeds = make_objective(config, SPECIAL), RowSeeds(*[jnp.arange(16, dtype=jnp.int32)] * 3)
    draw = jax.jit(lambda step: objective.draw(batch, seeds, step).masked.weights_BM.sum(axis=1))
    for step in (0, 3, 5, num_steps - 1):
        hidden = np.asarray(draw(jnp.int32(step)))
        wanted = np.minimum(
            np.maximum(mask.sum(1) * (first + (last - first) * step / (num_steps - 1)), 1), candidates(ids, mask).sum(1)
        )
        assert (np.abs(hidden - wanted) <= 0.5 + 1e-4).all(), (step, hidden, wanted)
    evaluated = objective.draw(batch, seeds, None).masked.weights_BM.sum(axis=1)  # with what the run ends with
    np.testing.assert_array_equal(evaluated, draw(jnp.int32(num_steps - 1)))


def test_a_long_phase_may_have_a_share_of_its_own():
    long = {"steps": 5, "batch_size": 8, "max_seq_length": 64, "mask_prob": 0.2}
    short_phase, long_phase = tiny_config(masking={"mask_prob": 0.3}, long_phase=long).phases
    assert [phase.config.masking.mask_prob for phase in (short_phase, long_phase)] == [0.3, 0.2]
    with pytest.raises(UserError, match="both name what the last steps hide"):
        tiny_config(masking={"final_mask_prob": 0.15}, long_phase=long)
    with pytest.raises(UserError, match=r"long_phase.mask_prob=0.2 has no effect with long_phase.steps=0"):
        tiny_config(long_phase={"mask_prob": 0.2})


def test_a_word_longer_than_the_rest_leaves_some_of_it():
    starts = np.zeros((1, 128), bool)
    starts[0, [1, *range(42, 127)]] = True  # 41 pieces, then words of one
    is_candidate = np.zeros((1, 128), bool)
    is_candidate[0, 1:127] = True
    score = np.where(np.arange(128) == 1, 0.9, 0.5)[None].astype(np.float32)
    for wanted, expected in ((40, 16), (41, 41), (12, 12)):
        _, hidden = choose_whole(score, starts, np.ones((1, 128), np.int32), is_candidate, np.full((1, 1), wanted))
        assert int(hidden[0, 0]) == expected


def test_words_are_hidden_alike_wherever_they_stand():
    """2,000 rows of one text: each place as often as another, but for chance, and as many tokens as are wanted."""
    length, share = 512, 0.4
    begins = 1 + np.cumsum(np.random.default_rng(1).integers(1, 5, 400)) - 1
    starts = np.zeros(length, bool)
    starts[begins[begins < length - 1]] = starts[1] = True
    is_candidate = np.ones(length, bool)
    is_candidate[0] = is_candidate[-1] = False
    hidden, count = np.zeros(length), 0
    choose = jax.jit(choose_whole)
    for seed in range(10):
        shape = (200, length)
        score = np.random.default_rng(seed).random(shape, np.float32)
        given = (np.broadcast_to(x, shape) for x in (starts, np.ones(length, np.int32), is_candidate))
        places, number = choose(score, *given, np.full((200, 1), round(share * length), np.int32))
        for row, many in zip(np.asarray(places), np.asarray(number)[:, 0], strict=True):
            hidden[row[:many]] += 1
        count += np.asarray(number).sum()
    assert count / (2000 * length) == pytest.approx(share, abs=0.002)
    inner = hidden[1:-1] / 2000
    assert np.abs(inner - inner.mean()).max() < 5 * np.sqrt(share * (1 - share) / 2000)


def test_which_entries_continue_a_word(tmp_path):
    vocabulary = Vocabulary.of(tmp_path, ["[PAD]", "가", "##가", "##", "#나"])
    assert vocabulary.continuations == (2, 3)
    with pytest.raises(AssertionError, match="asks for them"):
        config = dataclasses.replace(tiny_config(), masking=MaskingConfig(unit="word"))
        batch = {name: jnp.ones((1, 8), jnp.int32) for name in ("input_ids", "attention_mask", "token_type_ids")}
        make_objective(config, SPECIAL).draw(batch, RowSeeds(*[jnp.zeros(1, jnp.int32)] * 3), None)
