"""Cleaning: each step does what it says and no more; duplicates go, nothing else does."""

import json
import random
import unicodedata

import pytest

from data_prep.clean import RECIPES, STEPS, Cleaner, CleaningOptions
from data_prep.cli import main
from data_prep.sentences import split_by_rules
from electra_flax.errors import UserError


def clean(text, *steps, recipe="none", without=()):
    cleaner = Cleaner(CleaningOptions.of(recipe, list(steps), list(without), "rules", 10, 0.8))
    return [sentence for paragraph in cleaner.clean([text]) for sentence in paragraph]


@pytest.mark.parametrize(
    ("step", "before", "after"),
    [
        ("nfc", unicodedata.normalize("NFD", "한국어 ㎡ ① ﾡ"), "한국어 ㎡ ① ﾡ"),
        ("control", "가\u0007나\u00a0다\u3000라\t마\ufffd", "가나 다 라 마"),
        ("zero-width", "가\u200b나\ufeff다\u00ad라", "가나다라"),
        ("personal", "900101-1234567, 전화 010-1234-5678 또는 02)123-4567, a.b@c.kr", "***, 전화 *** 또는 ***, ***"),
        ("personal", "2024-01-15 에 1234-5678-9012 와 123456-789", "2024-01-15 에 1234-5678-9012 와 123456-789"),
        ("emails", "기자 a.b@c.co.kr 연락", "기자   연락"),
        ("hashtags", "오늘 #맛집 #서울여행 C# 배움", "오늘     C# 배움"),
        ("mentions", "@user_1 안녕 a@b", "안녕 a@b"),
        ("bracketed", "[속보] 가 {나} 다 【라】 마 <b>바</b> (사)", "가   다   마  바  (사)"),
        ("bylines", "(서울=뉴스1) 홍길동 기자 = 오늘 비가 온다.", "오늘 비가 온다."),
        ("bylines", "그는 기자 회견을 했다.", "그는 기자 회견을 했다."),
        ("whitelist", "한글 漢字 abc, 123! ★ ㅋㅋ 50%", "한글   abc, 123!     50%"),
        ("boilerplate", "저작권자 (c) 무단전재 및 재배포 금지", None),
        ("repeats", "ㅋㅋㅋㅋㅋ 와!!!!! 100000원 ... 하하하하", "ㅋㅋ 와!! 100000원 ... 하하"),
        ("spaces", "가   나 \t 다", "가 나 다"),
        ("short", "아홉 글자다.", None),
        ("short", "열 글자가 되는 문장", "열 글자가 되는 문장"),
    ],
)  # fmt: skip
def test_each_step(step, before, after):
    assert clean(before, step) == ([] if after is None else [after])


def test_recipes_are_made_of_steps_and_none_changes_nothing():
    names = {step.name for step in STEPS}
    assert all(steps <= names for steps in RECIPES.values())
    text = "  가 \u200b漢字★ㅋㅋㅋㅋ  "
    assert clean(text) == [text]
    news = "(서울=뉴스1) 홍길동 기자 = 漢字를 배우는 학생이 늘었다. 무단전재 및 재배포 금지"
    assert clean(news, recipe="koelectra-v3") == ["漢字를 배우는 학생이 늘었다."]
    assert clean("漢字를 배우는 학생이 늘었다.", recipe="koelectra-v1") == ["를 배우는 학생이 늘었다."]
    laughing = "ㅋㅋㅋㅋㅋㅋ 참 재미있는 이야기다"
    assert clean(laughing, recipe="koelectra-v3", without=["repeats"]) == [laughing]


def test_a_step_both_on_and_off_is_refused():
    with pytest.raises(UserError, match="--with and --without both name nfc"):
        CleaningOptions.of("none", ["nfc"], ["nfc"], "rules", 10, 0.8)


@pytest.mark.parametrize(
    ("paragraph", "sentences"),
    [
        ("비가 온다. 그래서 집에 있다! 너는?", ["비가 온다.", "그래서 집에 있다!", "너는?"]),
        ("비가 온다.그래서 집에 있다", ["비가 온다.", "그래서 집에 있다"]),
        ("그는 “간다. 기다려라.” 하고 나갔다. 끝이다.", ["그는 “간다. 기다려라.” 하고 나갔다.", "끝이다."]),
        ("값은 3.14 이다. 1. 머리말 2. 본문", ["값은 3.14 이다.", "1. 머리말 2. 본문"]),
        ("기원전(B.C. 5세기) 이야기. B.C. 3세기.", ["기원전(B.C. 5세기) 이야기.", "B.C. 3세기."]),
        ("Dr. Kim met J. Smith. They left.", ["Dr. Kim met J. Smith.", "They left."]),
        ("www.example.com 에 있다", ["www.example.com 에 있다"]),
        ("괄호(설명이다. 길다.)가 있다. 다음.", ["괄호(설명이다. 길다.)가 있다.", "다음."]),
        ("", []),
    ],
)
def test_sentences(paragraph, sentences):
    assert split_by_rules(paragraph) == sentences


def test_splitting_loses_nothing_but_space():
    rng = random.Random(0)
    for _ in range(500):
        text = "".join(rng.choices(list("가나다요. .!?…“”()「」 12a"), k=rng.randint(0, 80)))
        assert "".join(split_by_rules(text)).replace(" ", "") == text.replace(" ", "")


@pytest.mark.slow
def test_kiwi_splits_the_same_in_any_order():
    from data_prep.sentences import splitter

    texts = ["비가 온다 그래서 집에 있다. 너는 어디니?", "밥을 먹었다. 그리고 잤다."]
    kiwi = splitter("kiwi")
    forward = [kiwi(text) for text in texts]
    assert forward == [kiwi(text) for text in reversed(texts)][::-1]
    assert forward[1] == ["밥을 먹었다.", "그리고 잤다."]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """300 different documents, 40 exact copies, 30 near copies, a sentence and a paragraph in many."""
    folder = tmp_path_factory.mktemp("planted")
    rng = random.Random(7)
    syllables = [chr(code) for code in range(ord("가"), ord("가") + 2000)]

    def sentence():
        return " ".join("".join(rng.choices(syllables, k=3)) for _ in range(8)) + "."

    originals = [[[sentence() for _ in range(3)] for _ in range(4)] for _ in range(300)]
    near = []
    for document in originals[:30]:
        copy = [list(paragraph) for paragraph in document]
        copy[-1][-1] = copy[-1][-1][:-4] + "끝."
        near.append(copy)
    repeated_sentence, repeated_paragraph = sentence(), [sentence() for _ in range(3)]
    for document in originals[100:120]:
        document[1][1] = repeated_sentence
    for document in originals[200:220]:
        document[2] = repeated_paragraph
    documents = originals + originals[50:90] + near
    text = "\n\n".join("\n".join(" ".join(paragraph) for paragraph in document) for document in documents)
    (folder / "corpus.txt").write_text(text, encoding="utf-8")
    return folder / "corpus.txt", originals


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """A vocabulary of syllables, so that a text is read back from its examples."""
    folder = tmp_path_factory.mktemp("letters")
    syllables = [chr(code) for code in range(ord("가"), ord("가") + 2000)] + ["끝", "."]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *syllables, *("##" + piece for piece in syllables)]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false, "strip_accents": false}')
    return folder


def sharded(corpus, vocab, out, *extra):
    arguments = ["shard", "--corpus", str(corpus), "--vocab", str(vocab), "--out", str(out), "--max-seq-length", "512"]
    assert main([*arguments, "--validation-fraction", "0", "--workers", "1", *extra]) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    return manifest["cleaning"]["changed_or_dropped"], sum(shard["tokens"] for shard in manifest["splits"]["train"])


def tokens_of(documents):
    """Of examples that hold one document each, special tokens not counted: 8 words of 3 syllables and a full stop."""
    return sum(len(paragraph) * 25 for document in documents for paragraph in document)


def special(out):
    manifest = json.loads((out / "manifest.json").read_text())
    from electra_flax.data.shards import DataFolder, ShardedExamples
    from electra_flax.data.vocabulary import Vocabulary

    data = DataFolder.open(out)
    vocabulary = Vocabulary.read(out / "vocab.txt")
    examples = ShardedExamples(data.splits["train"], manifest["max_seq_length"], len(vocabulary.tokens))
    rows = examples.read(range(len(examples)))
    return int((rows[:, 0] == vocabulary.special.cls).sum() + (rows[:, 0] == vocabulary.special.sep).sum())


def test_planted_duplicates_are_found_and_nothing_else_is_lost(planted, letters, tmp_path):
    corpus, originals = planted
    total = tokens_of(originals) + tokens_of(originals[50:90]) + tokens_of(originals[:30])

    out = tmp_path / "sentences"
    counts, tokens = sharded(corpus, letters, out, "--with", "sentences", "dedup-sentences")
    # Of near copies all but the changed sentence; 40 documents of 12; 19 of the repeated sentence, 19 * 3 sentences.
    dropped = 30 * 11 + 40 * 12 + 19 + 19 * 3
    assert counts["dedup-sentences"] == dropped
    changed = 30 * 3  # a syllable pair and the full stop gave way to one syllable and a full stop
    assert tokens - special(out) == total - dropped * 25 - changed + 30

    out = tmp_path / "paragraphs"
    counts, tokens = sharded(corpus, letters, out, "--with", "dedup-paragraphs")
    assert counts["dedup-paragraphs"] == 30 * 3 + 40 * 4 + 19

    out = tmp_path / "near"
    counts, tokens = sharded(corpus, letters, out, "--with", "near-duplicates")
    assert counts["near-duplicates"] == 70
    assert tokens - special(out) == tokens_of(originals)


def test_all_three_together(planted, letters, tmp_path):
    corpus, originals = planted
    out = tmp_path / "all"
    steps = ("sentences", "near-duplicates", "dedup-paragraphs", "dedup-sentences")
    counts, tokens = sharded(corpus, letters, out, "--with", *steps)
    assert (counts["near-duplicates"], counts["dedup-paragraphs"], counts["dedup-sentences"]) == (70, 19, 19)
    assert tokens - special(out) == tokens_of(originals) - 19 * 25 - 19 * 75
