"""Vocabularies: learned in every way, they work on text that is split at white space alone."""

import json
import random

import pytest

from data_prep import vocab
from data_prep.cli import main
from electra_flax.data.tokenizer import Casing, build_tokenizer
from electra_flax.data.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def lines(sample_corpus):
    return [line for line in next(sample_corpus.glob("*.txt")).read_text(encoding="utf-8").split("\n") if line]


def run(out, corpus, *extra):
    new = [] if "--extend" in extra else ["--size", "2000", "--unused", "20"]
    return main(["vocab", "--corpus", str(corpus), "--out", str(out), *new, *extra])


def pieces(folder, text):
    tokenizer = build_tokenizer(Vocabulary.read(folder / "vocab.txt").tokens, Casing.read(folder))
    return tokenizer.encode(text, add_special_tokens=False).tokens


@pytest.mark.parametrize("algorithm", ["wordpiece", "unigram", "bpe"])
@pytest.mark.parametrize("pretokenizer", ["none", "mecab"])
def test_every_way_of_learning(algorithm, pretokenizer, sample_corpus, lines, tmp_path):
    extra = ["--algorithm", algorithm, "--pretokenizer", pretokenizer]
    assert run(tmp_path / "v", sample_corpus, *extra) == 0
    tokens = Vocabulary.read(tmp_path / "v/vocab.txt").tokens
    assert len(tokens) == len(set(tokens)) == 2000 and tokens[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert sum(token.startswith("[unused") for token in tokens) >= 20
    assert not any("\u2581" in token or "\ue000" in token for token in tokens)
    rng = random.Random(0)
    for line in rng.sample(lines, 100):  # text comes back from its pieces
        found = pieces(tmp_path / "v", line)
        if "[UNK]" not in found:
            assert "".join(piece.removeprefix("##") for piece in found) == line.replace(" ", "")
    usage = json.loads((tmp_path / "v/report.json").read_text())[0]
    assert usage["unk_rate"] < 0.015 and usage["words"] > 1000
    assert usage["pieces"] == sum(int(length) * words for length, words in usage["lengths"].items())
    assert (tmp_path / "v/report.png").stat().st_size > 1000
    assert run(tmp_path / "again", sample_corpus, *extra) == 0
    assert (tmp_path / "again/vocab.txt").read_bytes() == (tmp_path / "v/vocab.txt").read_bytes()


def test_mecab_pieces_end_at_morphemes_and_go_on_within_a_word():
    lines = ["학교에서 학교에서는 학교를 회사에서 회사에서는 회사를 집에서 집에서는 집을"] * 20
    options = vocab.VocabularyOptions(200, 5, Casing(False, False), pretokenizer="mecab")
    found = vocab.learn_pieces(lines, options, 100, False)
    assert {"학교", "회사", "##에서"} <= set(found)
    assert not any(piece.startswith("학교") and piece != "학교" for piece in found)


def test_extending_keeps_every_id_and_uses_the_words_of_the_domain(sample_corpus, tmp_path):
    assert run(tmp_path / "base", sample_corpus) == 0
    domain = tmp_path / "domain.txt"
    domain.write_text("양자컴퓨터 양자컴퓨터의 큐비트 큐비트를 초전도체\n" * 50, encoding="utf-8")
    assert run(tmp_path / "more", domain, "--extend", str(tmp_path / "base")) == 0
    before, after = (Vocabulary.read(tmp_path / name / "vocab.txt").tokens for name in ("base", "more"))
    changed = [number for number, token in enumerate(before) if after[number] != token]
    assert len(before) == len(after) and changed
    assert all(before[number].startswith("[unused") for number in changed)
    for word in ("양자컴퓨터", "큐비트", "초전도체"):
        assert len(pieces(tmp_path / "more", word)) == 1 < len(pieces(tmp_path / "base", word)) or (
            pieces(tmp_path / "base", word) == ["[UNK]"]
        )
    assert [usage["name"] for usage in json.loads((tmp_path / "more/report.json").read_text())] == ["more", "base"]


def test_extending_a_full_vocabulary_is_refused(sample_corpus, tmp_path, capsys):
    full = tmp_path / "full"
    assert run(full, sample_corpus) == 0
    tokens = [t for t in Vocabulary.read(full / "vocab.txt").tokens if not t.startswith("[unused")]
    (full / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    assert run(tmp_path / "more", sample_corpus, "--extend", str(full)) == 1
    assert "has no [unused] entries to fill" in capsys.readouterr().err
    assert run(tmp_path / "more", sample_corpus, "--extend", str(full), "--size", "9", "--unused", "0") == 1
    assert f"--size, --unused: not with --extend {full}, which keeps its own" in capsys.readouterr().err


def test_a_report_names_what_is_missing_and_warns(sample_corpus, tmp_path, capsys):
    assert run(tmp_path / "v", sample_corpus) == 0
    foreign = tmp_path / "foreign.txt"
    foreign.write_text("한국어 ひらがな ひらがな\n", encoding="utf-8")
    arguments = ["report", "--corpus", str(foreign), "--vocab", str(tmp_path / "v"), "--out", str(tmp_path / "r")]
    assert main([*arguments, "--compare", str(tmp_path / "v")]) == 0
    printed = capsys.readouterr()
    assert "ひ 2" in printed.out and "of the pieces are [UNK]" in printed.err
    first, second = json.loads((tmp_path / "r/report.json").read_text())
    assert first == second and first["unknown"] == 2 and first["unknown_characters"]["ひ"] == 2


def test_a_sample_is_bounded_and_even():
    lines = [f"{number:06d}" * 20 for number in range(20_000)]
    kept = vocab.sample_lines(lines, 400_000)
    assert 150_000 < sum(map(len, kept)) < 400_000
    places = [int(line[:6]) for line in kept]
    assert places == sorted(places) and 8_500 < sum(places) / len(places) < 11_500
    assert vocab.sample_lines(lines[:100], 400_000) == lines[:100]


def test_a_vocabulary_without_mask_is_refused(sample_corpus, tmp_path, capsys):
    assert run(tmp_path / "v", sample_corpus) == 0
    path = tmp_path / "v/vocab.txt"
    path.write_text(path.read_text(encoding="utf-8").replace("[MASK]\n", ""), encoding="utf-8")
    arguments = ["shard", "--corpus", str(sample_corpus), "--vocab", str(tmp_path / "v"), "--out", str(tmp_path / "s")]
    assert main([*arguments, "--max-seq-length", "32"]) == 1
    assert "lacks [MASK]" in capsys.readouterr().err
