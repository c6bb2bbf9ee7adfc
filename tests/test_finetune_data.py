"""Files of tasks: every layout, every quirk, every file of real data whole; what is refused and how."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED
from finetune_tools import write_questions

from electra_flax.config.loading import load_config
from electra_flax.data.tokenizer import Casing, published_tokenizer
from electra_flax.data.vocabulary import Vocabulary
from electra_flax.errors import UserError
from electra_flax.finetuning.batches import collate, epoch_batches, padded_length
from electra_flax.finetuning.data import has_task
from electra_flax.finetuning.encoding import Answer, Row, best_answers, encode, labels_of, leaders, tags_of_units
from electra_flax.finetuning.examples import QuestionExample, TaggedExample, TextExample
from electra_flax.finetuning.splits import read_files, read_split, without_labels
from electra_flax.finetuning.task import METRICS_OF
from electra_flax.finetuning.task_files import load_task, load_training, task_names

SIZES = load_config(Path(__file__).parents[1] / "configs/koelectra_base_v3.yaml").model
# Rows of ../shared/data/finetune, as its README counts them, and those that cannot be used.
REAL = {
    ("nsmc", "train", "nsmc/rebuilt"): (90_000, 2),
    ("nsmc", "test", "nsmc/rebuilt"): (30_000, 0),
    ("korquad", "test", "korquad"): (5_774, 0),
    ("kornli", "dev", "kornli"): (2_490, 0),
    ("kornli", "test", "kornli"): (5_010, 0),
    ("korsts", "train", "korsts"): (5_749, 0),
    ("korsts", "dev", "korsts"): (1_500, 0),
    ("korsts", "test", "korsts"): (1_379, 0),
    ("paws", "dev", "paws"): (2_000, 35),
    ("paws", "test", "paws"): (2_000, 28),
    ("question-pair", "train", "question-pair"): (6_136, 0),
    ("question-pair", "dev", "question-pair"): (682, 0),
    ("question-pair", "test", "question-pair"): (758, 0),
    ("naver-ner", "train", "klue/derived_naver_format"): (4_000, 0),
    ("naver-ner", "test", "klue/derived_naver_format"): (1_000, 0),
    ("klue-ner", "test", "klue"): (5_000, 0),
    ("cola", "train", "en/cola"): (8_551, 0),
    ("cola", "dev", "en/cola"): (1_043, 0),
    ("sst", "train", "en/sst2"): (60_614, 0),
    ("sst", "dev", "en/sst2"): (6_735, 0),
}


@pytest.mark.parametrize("which", REAL, ids="-".join)
def test_real_files_are_read_whole(which):
    if not (SHARED / "data/finetune").is_dir():
        pytest.skip("NOT CHECKED: real task data is not beside this clone (../shared)")
    task, split, folder = which
    found = read_split(load_task(task), split, SHARED / "data/finetune" / folder)
    rows, unusable = REAL[which]
    assert (found.rows, found.skipped.total(), len(found.examples)) == (rows, unusable, rows - unusable)
    lines = sum(
        path.read_bytes().count(b"\n") + (not path.read_bytes().endswith(b"\n"))
        for path in found.files if path.suffix != ".json" and task != "klue-ner"
    )  # fmt: skip
    assert lines in (0, rows + load_task(task).has_header * (load_task(task).format == "tsv")), "a row was lost"


@pytest.mark.parametrize("name", task_names())
def test_every_task_is_sound(name):
    task = load_task(name)
    assert set(task.metrics) <= set(METRICS_OF[task.kind]) and task.language in ("ko", "en")
    for preset in ("koelectra", "paper", "original"):
        training = load_training(name, task, preset, SIZES, ())
        assert training.layer_decay == (1.0 if preset == "koelectra" else 0.8)
    published = {"paws": (3e-5, 32, 15, 128), "kornli": (5e-5, 64, 15, 128), "naver-ner": (5e-5, 32, 20, 128),
                 "korquad": (5e-5, 8, 7, 512), "nsmc": (5e-5, 32, 10, 128), "rte": (1e-4, 32, 10, 128),
                 "squad1": (1e-4, 32, 2, 512)}  # fmt: skip
    if name in published:
        how = load_training(name, task, "", SIZES, ())
        assert (how.learning_rate, how.batch_size, how.epochs, how.max_seq_length) == published[name]
        assert (how.bias_correction, how.epsilon) == ((True, 1e-8) if task.language == "ko" else (False, 1e-6))
    small = dataclasses.replace(SIZES, hidden_size=256, num_attention_heads=4)
    sizes_of_small = {"paws": 64, "kornli": 128, "korquad": 32, "nsmc": 32}
    if name in sizes_of_small:
        assert load_training(name, task, "", small, ()).batch_size == sizes_of_small[name]


def test_overrides_and_their_mistakes():
    task = load_task("nsmc")
    assert load_training("nsmc", task, "", SIZES, ["--epochs", "3"]).epochs == 3
    for given, expected in (
        (["--epoch", "3"], "^--epoch: unknown field; did you mean epochs"),
        (["--epochs", "x"], "epochs=x: expected int"),
        (["--epochs", "0"], "--epochs=0: expected 1 to 10,000"),
        (["--dropout", "1"], "--dropout=1.0: expected at least 0 and less than 1"),
    ):
        with pytest.raises(UserError, match=expected):
            load_training("nsmc", task, "", SIZES, given)
    with pytest.raises(UserError, match="--task nmsc: unknown task: expected one of chunk, cola"):
        load_task("nmsc")


OWN = """title: My task
kind: classification
files: {train: [mine.tsv], test: [mine.tsv]}
columns: {text: body, label: topic}
metrics: [macro_f1, accuracy]
training: {epochs: 4}
"""


def test_a_task_of_ones_own_is_ten_lines(tmp_path):
    (tmp_path / "mine.yaml").write_text(OWN)
    (tmp_path / "mine.tsv").write_text('topic\tbody\nb\tx\na\t"y\nb\t\n')
    task = load_task(str(tmp_path / "mine.yaml"))
    found = read_split(task, "train", tmp_path)
    assert found.examples == [TextExample("0", "x", "", "b"), TextExample("1", '"y', "", "a")]
    assert found.summary() == "2 of 3 rows of mine.tsv (skipped: 1 with an empty text: mine.tsv:4)"
    assert labels_of(task, found.examples) == ["a", "b"]
    assert load_training(str(tmp_path / "mine.yaml"), task, "", SIZES, ()).epochs == 4
    for line, wrong, expected in (
        ("metrics: [macro_f1, accuracy]", "metrics: [pearson]", "metrics: pearson is not of kind classification"),
        ("kind: classification", "kind: sorting", "kind=.*expected"),
        (
            "columns: {text: body, label: topic}",
            "column: {text: body}",
            "wrong.yaml: column.text: unknown field; did you mean columns",
        ),
        ("columns: {text: body, label: topic}", "columns: {label: topic}", "columns.text must be named"),
        ("files: {train: [mine.tsv]", "files: {train: []", "files.train: empty, expected the names"),
        ("files: {train: [mine.tsv]", "files: {train: ['']", "files: an empty name"),
        ("title: My task", "title: x\nsubmission: ../x", "submission=../x: expected the name of a file"),
        ("title: My task", "title: x\nsubmission: ..", "submission=..: expected the name of a file"),
        ("files: {train: [mine.tsv]", "files: {train: [b.tsv mine.tsv ./b.tsv]", "names b.tsv twice"),
        ("title: My task", "title: x\nlabels: {a: x, b: ''}", "labels: b: an empty name, expected"),
        ("title: My task", "title: x\nlabels: {a: x, b: x}", "labels: two of them have the same name: x, x"),
    ):
        (tmp_path / "wrong.yaml").write_text(OWN.replace(line, wrong))
        with pytest.raises(UserError, match=expected):
            load_task(str(tmp_path / "wrong.yaml"))


@pytest.mark.parametrize(
    ("task", "text", "expected"),
    [
        ("nsmc", "id\tdocument\n1\tx\n", "has no column label; its header is: id, document: the file of another task"),
        ("nsmc", "id\tdocument\tlabel\n1\tx\t2\n", r":2: label is \"2\", expected one of 0, 1"),
        ("nsmc", "id\tdocument\tlabel\n", "has no rows: expected NSMC in the format tsv"),
        ("nsmc", "", "has no column document; its header is: empty"),
        ("nsmc", "id\tdocument\tlabel\n1\t\t0\n", "none of its rows can be used: 0 of 1 row of file .skipped"),
        ("korsts", "score\tsentence1\tsentence2\nhigh\ta\tb\n", 'score is "high", expected a number from 0 to 5'),
        ("korsts", "score\tsentence1\tsentence2\n6\ta\tb\n", 'score is "6", expected a number from 0 to 5'),
        ("naver-ner", "a b\tO\n", ":1: 2 words and 1 tags"),
        ("naver-ner", "a\tPERSON\n", 'the tag "PERSON" is none of'),
        ("klue-ner", "ab\tO\n", ":1: expected a character, a tab and its tag, got ab"),
        ("chunk", "word\n", ":1: expected a word and its tag, got word"),
        ("korquad", "[]", "not in the layout of SQuAD"),
        ("klue-tc", '[{"title": "x", "labels": 0}]', "row 1 has no label; it has title, labels"),
        ("klue-tc", "{", "not JSON"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path, task, text, expected):
    (tmp_path / "file").write_text(text)
    with pytest.raises(UserError, match=expected) as refused:
        read_files(load_task(task), [tmp_path / "file"])
    assert str(tmp_path / "file") in str(refused.value) and "\n" not in str(refused.value)


def test_other_bytes_are_refused_or_read(tmp_path):
    path = tmp_path / "file"
    path.write_bytes("id\tdocument\tlabel\n1\t좋다\t1\n".encode("cp949"))
    with pytest.raises(UserError, match="not UTF-8"):
        read_files(load_task("nsmc"), [path])
    path.write_bytes("\ufeffid\tdocument\tlabel\r\n1\t좋\u2028다\t1\r\n".encode())
    assert read_files(load_task("nsmc"), [path]).examples == [TextExample("1", "좋\u2028다", "", "1")]


def test_answers_are_where_they_are_said_to_be(tmp_path):
    write_questions(tmp_path)
    path = tmp_path / "train-v1.1.json"
    text = json.loads(path.read_text())
    question = text["data"][0]["paragraphs"][0]["qas"][0]
    place = question["answers"][0]["answer_start"]
    question["answers"][0]["answer_start"] = 0  # it is found again
    path.write_text(json.dumps(text))
    assert read_files(load_task("squad1"), [path]).examples[0].answers[0][1] == place
    question["answers"][0]["text"] = "elsewhere"
    path.write_text(json.dumps(text))
    with pytest.raises(UserError, match="1 answers are not in their contexts, the first of question t0"):
        read_files(load_task("squad1"), [path])


def test_layouts(tmp_path):
    (tmp_path / "ner").write_text("## id-1\t<박:PS> 씨\n박\tB-PS\n \tO\n씨\tO\n\n## id-2\tx\nx\tO\n")
    first, second = read_files(load_task("klue-ner"), [tmp_path / "ner"]).examples
    assert first == TaggedExample("id-1", "박 씨", [(0, 1), (2, 3)], ["B-PS", "O"]) and second.id == "id-2"
    (tmp_path / "conll").write_text("Mr. NNP B-NP\nBig NNP I-NP\n\nruns VBZ B-VP\n")
    first, second = read_files(load_task("chunk"), [tmp_path / "conll"]).examples
    assert first == TaggedExample("0", "Mr. Big", [(0, 3), (4, 7)], ["B-NP", "I-NP"]) and second.tags == ["B-VP"]
    (tmp_path / "sts.json").write_text(
        '[{"guid": "g", "sentence1": "a", "sentence2": "b", "labels": {"label": 3.7, "real-label": 3.714}}]'
    )
    assert read_files(load_task("klue-sts"), [tmp_path / "sts.json"]).examples == [TextExample("g", "a", "b", "3.714")]
    (tmp_path / "mnli").write_text("index\tsentence1\tsentence2\tgold_label\n0\ta\tb\t-\n1\ta\tb\tneutral\n")
    found = read_files(load_task("mnli"), [tmp_path / "mnli"])
    assert found.skipped == Counter({'with the label "-"': 1}) and found.examples[0].id == "1"
    (tmp_path / "qqp").write_text("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t1\t2\ta\tb\t0\n2\t3\n")
    assert read_files(load_task("qqp"), [tmp_path / "qqp"]).skipped == Counter({"with 2 columns": 1})
    (tmp_path / "train.tsv").write_text("gj04\t1\t\tA sentence.\n")
    (tmp_path / "dev.tsv").write_text("gj04\t0\t*\tSentence a.\n")
    assert has_task(load_task("cola"), tmp_path) and not has_task(load_task("nsmc"), tmp_path)
    (tmp_path / "test.tsv").write_text("index\tsentence\n0\tA sentence.\n")
    for name, expected in {"test.tsv": ("0", "A sentence."), "dev.tsv": ("0", "Sentence a.")}.items():
        path = tmp_path / name
        assert read_files(without_labels(load_task("cola"), path), [path]).examples == [TextExample(*expected, "", "")]


# ------------------------------------------------------------------------------------------------- rows and batches


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "서울", "##시", "##청", "은", "크", "##다"])
    )
    return published_tokenizer(Vocabulary.read(path), Casing(False, False))


def test_tags_of_words_and_of_characters(tokenizer):
    text = "서울시청 크다"
    encoding = tokenizer.encode(text)
    assert encoding.tokens == ["[CLS]", "서울", "##시", "##청", "크", "##다", "[SEP]"]
    words, characters = [(0, 4), (5, 7)], [(i, i + 1) for i in range(len(text))]
    assert leaders(words, encoding.offsets) == [1, 4]
    assert leaders(characters, encoding.offsets) == [1, 1, 2, 3, None, 4, 5]
    predicted = ["O", "B-LC", "I-LC", "O", "I-LC", "O", "O"]
    assert tags_of_units(words, encoding.offsets, predicted) == ["B-LC", "I-LC"]
    # 울 goes on with its token's entity, the space with that of which it is in the middle.
    assert tags_of_units(characters, encoding.offsets, predicted) == ["B-LC", "I-LC", "I-LC", "O", "I-LC", "I-LC", "O"]
    assert tags_of_units(words, encoding.offsets[:3], predicted) == ["B-LC", "O"], "a word that was cut off"


@pytest.mark.parametrize(("length", "ends"), [(4, False), (5, True), (16, True), (64, True)])
def test_a_question_never_leaves_a_context_without_room(length, ends, tokenizer):
    example = QuestionExample("q", "서울은 " * 100, "크다 " * 30, [("크다", 0)])
    how = load_training("squad1", load_task("squad1"), "", SIZES, ["--max_seq_length", str(length)])
    if not ends:
        with pytest.raises(UserError, match="max_seq_length=4: no room for a context"):
            encode(load_task("squad1"), [example], [], tokenizer, how)
        return
    rows = encode(load_task("squad1"), [example], [], tokenizer, how)
    assert all(len(row.input_ids) <= length and row.token_type_ids.sum() >= 2 for row in rows)


def test_windows_cover_a_context_and_find_the_answer(tokenizer):
    context = "크다 " * 6 + "서울시청" + " 크다" * 6
    example = QuestionExample("q", "서울은", context, [("시청", context.index("시청"))])
    how = load_training("squad1", load_task("squad1"), "", SIZES, ["--max_seq_length", "16", "--doc_stride", "5"])
    rows = encode(load_task("squad1"), [example], [], tokenizer, how)
    pieces = tokenizer.encode(context, add_special_tokens=False)
    question = len(tokenizer.encode("서울은", add_special_tokens=False).ids)
    assert {o for row in rows for o in row.offsets if o != (0, 0)} == set(pieces.offsets)
    found = 0
    for row in rows:
        assert len(row.input_ids) <= 16 and row.token_type_ids.sum() == len(row.input_ids) - question - 2
        first, last, is_impossible = row.target
        assert not is_impossible
        if first:
            found += 1
            assert context[row.offsets[first][0] : row.offsets[last][1]] == "시청"
        else:
            assert (first, last) == (0, 0)
    assert found
    scores = []
    for row in rows:  # a model that knows
        matrix = np.zeros((16, 16), np.float32)
        matrix[tuple(row.target[:2])] = 9.0
        scores.append(matrix)
    best, second, *_ = best_answers(context, rows, scores, longest=4)
    assert best == Answer("시청", 9.0, context.index("시청")) and second.score == 0.0
    assert all(len(tokenizer.encode(a.text, add_special_tokens=False).ids) <= 4
               for a in best_answers(context, rows, scores, longest=4))  # fmt: skip


def test_batches_have_each_row_once_few_shapes_and_one_order():
    rng = np.random.default_rng(0)
    rows = [Row(i, np.ones(n, np.int32), np.zeros(n, np.int32), np.asarray(i, np.int32), [])
            for i, n in enumerate(rng.integers(3, 100, 1000))]  # fmt: skip
    first, again, later = (epoch_batches(rows, 32, seed=1, epoch=epoch) for epoch in (0, 0, 1))
    for batches in (first, later):
        assert sorted(np.concatenate(batches)) == list(range(1000))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], later[0])
    shapes, padding = set(), 0
    for indices in first:
        batch = collate(rows, indices, 32, 100, pad_id=0, is_tagging=False)
        shapes.add(batch["input_ids"].shape)
        padding += batch["input_ids"].size - sum(len(rows[i].input_ids) for i in indices)
        assert batch["weight"].sum() == len(indices) and list(batch["target"][: len(indices)]) == list(indices)
    unsorted = 100 * len(rows) - sum(len(row.input_ids) for row in rows)
    assert len(shapes) <= 6 and padding < 0.3 * unsorted
    assert padded_length(97, 100) == 100 and padded_length(97, 512) == 128
