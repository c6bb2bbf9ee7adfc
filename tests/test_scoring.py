"""electra-flax score: energies against transformers' forward pass, lists of candidates, and what is refused."""

import io
import json
import shutil

import jax
import numpy as np
import pytest
from run_tools import refusal
from test_api import SENTENCES, TINY_KO, theirs
from weights_tools import export_both

import electra_flax
from electra_flax.commands.cli import main

FLUENT = (
    "나는 오늘 아침에 밥을 먹고 학교에 갔다.",
    "서울은 대한민국의 수도이다.",
    "새벽 시장은 도시가 아직 잠들어 있을 때 가장 먼저 깨어난다.",
    "비가 많이 와서 우산을 쓰고 집으로 돌아왔다.",
)


@pytest.fixture(scope="module")
def electric(tmp_path_factory):
    """An export whose discriminator says that its logit is an energy."""
    folder = tmp_path_factory.mktemp("electric") / "export"
    shutil.copytree(TINY_KO, folder)
    path = folder / "discriminator/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "electra_flax_logit": "energy"}))
    return folder


def printed(capsys, *arguments):
    capsys.readouterr()
    assert main(["score", *map(str, arguments)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("place", ["discriminator", "."])
def test_energies_are_those_of_one_pass_of_transformers(electric, capsys, place):
    tokenizer, model = theirs("discriminator", "ElectraForPreTraining")
    found = json.loads(printed(capsys, "--model", electric / place, "--json", *SENTENCES))
    for sentence, ours in zip(SENTENCES, found, strict=True):
        expected = -model(**tokenizer(sentence, return_tensors="pt")).logits[0].detach().numpy()[1:-1]
        assert ours["measure"] == "negative_energy"
        np.testing.assert_allclose([piece["log_likelihood"] for piece in ours["pieces"]], expected, atol=1e-4)
        assert ours["log_likelihood"] == pytest.approx(expected.sum(), abs=1e-3)
        assert ours["per_token"] == pytest.approx(expected.mean(), abs=1e-4)


def test_an_energy_is_no_probability_of_replacement(electric, capsys):
    assert "an Electric model, whose logits are energies" in refusal(capsys, ["detect", "--model", str(electric), "봄"])


@pytest.mark.slow
def test_an_electric_run_and_its_export_score_alike(copy, capsys):
    fields = {"objective.kind": "electric", "training.num_steps": 2}
    electra_flax.pretrain("tiny.yaml", "shards", "electric", overrides=fields, progress=False)
    with jax.numpy_rank_promotion("allow"):  # transformers' modules rely on it
        assert main(["export", "--workdir", "electric", "--out", "energies"]) == 0
    texts = ["새벽 시장은 도시가 깨어난다.", "한국어"]
    of_run, of_export = (electra_flax.load(place).score(texts) for place in ("electric", "energies"))
    for ours, other in zip(of_run, of_export, strict=True):
        assert ours.measure == other.measure == "negative_energy"
        assert ours.log_likelihood == pytest.approx(other.log_likelihood, rel=1e-5)
    assert "two towers, which read no [MASK]" in refusal(capsys, ["fill", "--model", "electric", "[MASK]"])


@pytest.mark.parametrize("sentence", FLUENT)
def test_a_sentence_is_likelier_than_its_words_in_another_order(sentence):
    words = sentence.removesuffix(".").split()
    rng = np.random.default_rng(0)
    scrambled = [" ".join(rng.permutation(words)) + "." for _ in range(5)]
    found, *others = electra_flax.load("tiny-ko").score([sentence, *(each for each in scrambled if each != sentence)])
    assert all(found.log_likelihood > other.log_likelihood for other in others)


def test_every_source_scores_alike(tmp_path, capsys):
    root = export_both(tmp_path)
    with jax.numpy_rank_promotion("allow"):
        first, *others = (
            json.loads(printed(capsys, "--model", place, "--json", "한국어를 공유합니다."))[0]["log_likelihood"]
            for place in (root / "export", root / "export/generator", f"tf1:{root}/original/model.ckpt-7")
        )
    np.testing.assert_allclose(others, first, rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------------- lists

LISTS = (
    ("u1", "나는 오늘 밥을 먹었다.", -10.0),
    ("u2", "비가\u2028온다.", -3.5),  # a text may hold it
    ("u1", "나는 오늘 밥을 마셨다.", -9.5),
    ("u1", "밥을 나는 먹었다 오늘.", 40.0),
    ("u2", "비가 온다.", -1e2),
    ("u2", "비가 온다.", -1e2),  # a twin
)


def write(path, rows, ending="\n", start=b""):
    path.write_bytes(start + ending.join("\t".join(map(str, row)) for row in rows).encode())
    return path


@pytest.mark.parametrize("weight", [None, 0.25])
def test_candidates_are_ranked_by_both_scores(tmp_path, capsys, weight):
    path = write(tmp_path / "lists.tsv", LISTS, "\r\n\r\n", b"\xef\xbb\xbf")
    texts = [text for _, text, _ in LISTS]
    likely = dict(zip(texts, electra_flax.load("tiny-ko").score(texts), strict=True))
    expected = {name: [] for name, *_ in LISTS}
    for name, text, score in LISTS:
        expected[name].append((score + (1 if weight is None else weight) * likely[text].log_likelihood, text, score))
    given = ["--model", "tiny-ko", "--nbest", path, *(() if weight is None else ("--weight", weight))]
    found = json.loads(printed(capsys, *given, "--json"))
    assert [each["list"] for each in found] == ["u1", "u2"]
    for each in found:
        theirs = sorted(expected[each["list"]], reverse=True)
        assert [(one["text"], one["score"]) for one in each["ranked"]] == [those[1:] for those in theirs]
        np.testing.assert_allclose([one["total"] for one in each["ranked"]], [those[0] for those in theirs], atol=1e-3)
        assert [one["rank"] for one in each["ranked"]] == list(range(1, len(theirs) + 1))

    # What is printed is a file of lists again.
    rows = [line.split("\t") for line in printed(capsys, *given).split("\n") if line]
    flat = [(each["list"], one["text"], one["total"]) for each in found for one in each["ranked"]]
    assert [tuple(row[:2]) for row in rows] == [each[:2] for each in flat]
    np.testing.assert_allclose([float(row[2]) for row in rows], [each[2] for each in flat], atol=1e-3)


def test_lists_without_scores_are_ranked_by_the_models_alone(tmp_path, capsys):
    path = write(tmp_path / "lists.tsv", [("a", "수도이다 서울은 대한민국의."), ("a", FLUENT[1])])
    assert [line.split("\t")[1] for line in printed(capsys, "--model", "tiny-ko", "--nbest", path).splitlines()] == [
        FLUENT[1], "수도이다 서울은 대한민국의."]  # fmt: skip


HOSTILE = (
    (b"", [], "no candidates: expected a line for each"),
    (b"\n \n", [], "no candidates: expected a line for each"),
    ("u1 봄".encode(), [], "line 1: 1 columns, expected 2 or 3"),
    ("u1\t봄\n\nu1\t봄\t1\n".encode(), [], "line 3: 3 columns, the lines before have 2"),
    ("u1\t봄\t1\t2".encode(), [], "line 1: 4 columns, expected 2 or 3"),
    ("u1\t봄\tnan".encode(), [], 'line 1: the score is "nan", expected a finite number'),
    ("u1\t봄\t1\nu1\t봄\t1,5".encode(), [], 'line 2: the score is "1,5"'),
    ("u1\t봄\t1e999".encode(), [], 'the score is "1e999"'),
    (b"u1\t \t1", [], "line 1: an empty candidate"),
    (b"u1\t\x00\t1", [], "has no words"),
    ("u1\t봄이 [MASK]\t1".encode(), [], "holds [MASK]"),
    (b"u1\t" + "밥 ".encode() * 200, [], "more than the 128 positions"),
    ("u1\t나는 오늘 밥을".encode("cp949"), [], "it reads as Korean in CP949"),
    (b"u1\t\xff\xfe\x00\xd8", [], "line 1: byte 0xff is not UTF-8"),
    ("u1\t봄".encode(), ["--weight", "2"], "has no effect: the candidates of"),
    ("u1\t봄\t1".encode(), ["봄"], "give one of them"),
)


@pytest.mark.parametrize(("content", "more", "expected"), HOSTILE)
def test_lists_that_are_none_are_one_line(tmp_path, capsys, content, more, expected):
    (tmp_path / "lists.tsv").write_bytes(content)
    arguments = ["score", "--model", "tiny-ko", "--nbest", str(tmp_path / "lists.tsv"), *more]
    assert expected in refusal(capsys, arguments)


def test_what_else_cannot_be_scored_is_one_line(tmp_path, capsys, monkeypatch):
    for arguments, expected in (
        (["--nbest", str(tmp_path / "none.tsv")], "none.tsv: cannot be read"),
        (["--nbest", str(tmp_path)], "a folder, expected a file"),
        (["--weight", "2", "봄"], "--weight 2.0: only with --nbest FILE"),
    ):
        assert expected in refusal(capsys, ["score", "--model", "tiny-ko", *arguments])
    place = TINY_KO / "discriminator"
    assert f"expected a generator: give {TINY_KO / 'generator'}, or" in refusal(
        capsys, ["score", "--model", str(place), "봄"]
    )
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("봄\n\n\ud55c\uad6d\r\n".encode())))
    assert printed(capsys, "--model", "tiny-ko").count("per token") == 2
