"""Task files as people have them: other encodings, lines and layouts, labels that nobody learned, rows that are none.

Each is read rightly, or refused before training in one line that names the place.
"""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import yaml
from weights_tools import CASED

from electra_flax.data.vocabulary import Vocabulary
from electra_flax.errors import UserError
from electra_flax.finetuning.data import read_task_data
from electra_flax.finetuning.examples import TextExample
from electra_flax.finetuning.predictions import Labelled
from electra_flax.finetuning.publish import predictions_file
from electra_flax.finetuning.run import Request, _claim_out
from electra_flax.finetuning.splits import read_files, without_labels
from electra_flax.finetuning.task import Training
from electra_flax.finetuning.task_files import load_task
from electra_flax.storage.workdir import Workdir

OWN = {
    "title": "T", "kind": "classification", "files": {"train": ["train"], "test": ["test"]},
    "columns": {"text": "body", "label": "stars"}, "metrics": ["accuracy"],
}  # fmt: skip
WITH_JSON = {"format": "json"}
HEADLESS = {"has_header": False, "columns": {"text": "0", "label": "1"}}
NER = {"kind": "tagging", "format": "naver-ner", "metrics": ["entity_f1"], "columns": None}
SQUAD = {"kind": "answers", "format": "squad", "metrics": ["exact_match"], "columns": None}
HOW = Training(
    learning_rate=1e-3, epochs=1, batch_size=8, max_seq_length=64, warmup_proportion=0.0, weight_decay=0.0,
    bias_correction=True, epsilon=1e-8, layer_decay=1.0, dev_fraction=0.25,
)  # fmt: skip

ROWS = [{"body": f"한국은 나라이다 {i}", "stars": str(i % 2)} for i in range(8)]
TEXTS = [row["body"] for row in ROWS]


def array(rows):
    return json.dumps(rows)


def lines(rows, end="\n"):
    return end.join(json.dumps(row, ensure_ascii=False) for row in rows) + end


def table(rows, header=("body", "stars"), end="\n"):
    return end.join("\t".join(cells) for cells in [*([header] if header else []), *(r.values() for r in rows)]) + end


def changed(number, **values):
    return [{**row, **(values if i == number else {})} for i, row in enumerate(ROWS)]


def questions(context="한국의 수도는 서울이다. 서울은 크다.", count=4, **changes):
    question = {"question": "수도는?", "answers": [{"text": "서울", "answer_start": 8}], **changes}
    return [{"paragraphs": [{"context": context, "qas": [{"id": str(i), **question}]}]} for i in range(count)]


def squad(articles):
    return json.dumps({"data": articles}, ensure_ascii=False)


def first_qa(**changes):
    return squad([*questions(count=1, **changes), *questions()[1:]])


GOOD, GOOD_JSON, GOOD_SQUAD = table(ROWS), lines(ROWS), squad(questions())


def read(folder, task, train, test):
    """As finetune reads it, from a task's YAML on."""
    folder.mkdir(exist_ok=True)
    (folder / "task.yaml").write_text(yaml.safe_dump({**OWN, **task}))
    for name, content in {"train": train, "test": test}.items():
        (folder / name).write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "서울", "한", "##국"]))
    vocabulary = Vocabulary.read(folder / "vocab.txt")
    return read_task_data(load_task(str(folder / "task.yaml")), folder, HOW, vocabulary, CASED, False)


@pytest.mark.parametrize(
    ("task", "train"),
    [
        (WITH_JSON, array(ROWS)),
        (WITH_JSON, array(ROWS).encode("utf-16")),
        (WITH_JSON, "\ufeff" + lines(ROWS)),
        (WITH_JSON, lines(ROWS).replace("\n", "\n\n")),
        (WITH_JSON, lines(ROWS, "\r")),
        (WITH_JSON, lines(ROWS, "\r\n")),
        ({}, GOOD),
        ({}, GOOD.encode("utf-16")),
        ({}, table(ROWS, end="\r")),
        ({}, table(ROWS, end="\r\n") + "\r\n\r\n"),
        ({"labels": {0: "bad", 1: "good"}}, GOOD),
        ({"labels": None, "skipped_labels": None}, GOOD),
        (HEADLESS, table(ROWS, header=None)),
        (HEADLESS, table(ROWS, header=None).replace("\n", "\t\n", 3)),
    ],
)  # fmt: skip
def test_the_same_rows_are_read_from_all_of_these(tmp_path, task, train):
    data = read(tmp_path, task, train, train)
    assert data.labels == ["0", "1"]
    assert [(e.id, e.text, e.label) for e in data.scored.examples] == [
        (str(i), text, str(i % 2)) for i, text in enumerate(TEXTS)
    ]
    assert sorted(e.text for part in (data.train, data.choice) for e in part.examples) == TEXTS


@pytest.mark.parametrize("text", ["한국은\u2028나라", "서울은\u0085수도", "한국\u000b은"])
def test_only_line_ends_end_lines(tmp_path, text):
    for task, content in ((WITH_JSON, lines(changed(3, body=text))), ({}, table(changed(3, body=text)))):
        assert text in [e.text for e in read(tmp_path, task, content, content).scored.examples]


def test_half_a_character_is_shown_as_one_that_is_missing(tmp_path):
    train = array(changed(3, body="한국\ud83d"))
    assert "한국\ufffd" in [e.text for e in read(tmp_path, WITH_JSON, train, train).scored.examples]
    train = json.dumps({"data": [*questions("\ud83d 한국 서울", answers=[{"text": "서울", "answer_start": 5}])]})
    assert read(tmp_path, SQUAD, train, train).scored.examples[0].context == "\ufffd 한국 서울"


@pytest.mark.parametrize(
    ("value", "label"), [(1, "1"), (1.0, "1.0"), (True, "true"), (10**30, str(10**30)), (" 1 ", "1")]
)  # fmt: skip
def test_labels_are_as_json_writes_them(tmp_path, value, label):
    content = lines([{"body": "한국", "stars": value}] * 4)
    assert read(tmp_path, WITH_JSON, content, content).labels == [label]


@pytest.mark.parametrize(
    ("task", "train", "expected"),
    [
        # Nothing, or nothing that is text.
        (WITH_JSON, array(changed(2, body=None)), "train: row 3: body is null, one of 1: remove"),
        (WITH_JSON, array(changed(3, stars=None)), "train: row 4: stars is null, one of 1: remove"),
        (WITH_JSON, lines(changed(1, body=["a"])), 'train:2: body is ["a"], expected text or a number'),
        (WITH_JSON, lines(changed(1, stars=float("nan"))), "train:2: not JSON (NaN is no number of JSON)"),
        (WITH_JSON, lines(changed(1, stars=7)).replace("7", "1e999"), "train:2: stars is Infinity"),
        (WITH_JSON, lines(changed(1, stars=7)).replace("7", "7" * 5000), "train:2: not JSON (Exceeds"),
        (WITH_JSON, "[" * 100_000, "train: not JSON (maximum recursion depth"),
        (WITH_JSON, array(["a"]), 'train: row 1 has no body; it has "a"'),
        ({}, table(changed(4, stars="")), "train:6: stars is empty, expected a label; skipped_labels: ['']"),
        ({"labels": {0: "a", 1: "b"}}, table(changed(4, stars="")), "train:6: stars is empty, expected one of 0, 1"),
        # Labels that the task does not name.
        ({"labels": {0: "bad"}}, GOOD, 'train:3: stars is "1", expected one of 0'),
        # Columns that are none.
        ({"has_header": False, "columns": {"text": "²", "label": "1"}}, GOOD, "train: has no column ²"),
        ({"has_header": False, "columns": {"text": "0", "label": "9" * 5000}}, GOOD, "train: has no column 999"),
        ({}, table(ROWS, ("stars", "stars")), "train: has no column body; its header is: stars, stars"),
        ({}, table([{**row, "more": "x"} for row in ROWS], ("body", "stars", "body")), "names the column body 2 times"),
        # A tab too many.
        ({}, GOOD.replace(" ", "\t", 1), "train:2: 3 cells, but the header names 2: a tab within a text?"),
        (HEADLESS, table(ROWS, None).replace(" ", "\t", 1), "train:1: 3 cells, but 2 in most other rows: a tab"),
        # Other encodings.
        ({}, GOOD.encode("cp949"), "train line 2: byte 0xc7 is not UTF-8; it reads as Korean in CP949"),
        (SQUAD, GOOD_SQUAD.encode("cp949"), "train line 1: byte 0xc7 is not UTF-8; it reads as Korean in CP949"),
        # Layouts that are like SQuAD's.
        (SQUAD, squad({"a": 1}), 'train: data is {"a": 1}, expected a list: not in the layout of SQuAD'),
        (SQUAD, squad([{"title": "t", "context": "<html>", "qas": []}]), "data[0]: paragraphs is missing from title"),
        (SQUAD, squad([{"paragraphs": [{"qas": []}]}]), "data[0]: context is missing from qas, expected text"),
        (SQUAD, first_qa(answers={"text": ["a"], "answer_start": [8]}), "question 0: answers is {"),
        (SQUAD, first_qa(answers=[{"text": "a"}]), "question 0: answer_start is missing from text"),
        (SQUAD, first_qa(answers=[{"text": "a", "answer_start": None}]), "question 0: answer_start is null"),
        (SQUAD, first_qa(answers=[{"text": "a", "answer_start": "8"}]), 'answer_start is "8", expected a number'),
    ],
)  # fmt: skip
def test_what_is_none_of_the_task_is_refused_with_its_place(tmp_path, task, train, expected):
    check_refusal(tmp_path, task, train, train, expected)


@pytest.mark.parametrize(
    ("task", "train", "test", "expected"),
    [
        (WITH_JSON, GOOD_JSON, lines(changed(0, stars="2")), 'test:1: stars is "2", expected one of 0, 1'),
        ({}, GOOD, table(changed(5, stars="없음")), 'test:7: stars is "없음", expected one of 0, 1'),
        (NER, "a b\tLOC-B O\n" * 4, "a b\tLOC-B PER-I\n", 'the tag is "PER-I", expected one of O, B-LOC, I-LOC'),
        (SQUAD, GOOD_SQUAD, squad(questions(count=1) * 2), "test: 1 id of several questions, the first 0"),
    ],
)
def test_what_nobody_learned_is_refused_before_training(tmp_path, task, train, test, expected):
    check_refusal(tmp_path, task, train, test, expected)


def check_refusal(folder, task, train, test, expected):
    with pytest.raises(UserError) as refused:
        read(folder, task, train, test)
    assert expected in str(refused.value) and str(folder) in str(refused.value)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


def test_an_answer_counted_in_utf16_is_the_nearest_one(tmp_path, caplog):
    """Each character beyond the first 65,536 counts twice there."""
    context = "😀😀😀 서울은 크다. 수도는 서울이다."
    place = context.rindex("서울")
    train = squad(questions(context, answers=[{"text": "서울", "answer_start": place + 3}]))
    assert read(tmp_path, SQUAD, train, train).scored.examples[0].answers == [("서울", place)]
    said = "train: 4 answers do not stand where answer_start says (counted in UTF-16?), the first of question 0"
    assert said in caplog.text


def test_a_question_longer_than_its_window_is_cut(tmp_path):
    long = squad(questions(question="수도는 " * 80))
    assert all(len(row.input_ids) <= HOW.max_seq_length for row in read(tmp_path, SQUAD, long, long).train.rows)


def test_rows_that_predictions_lack_are_counted_with_their_places(tmp_path):
    path = tmp_path / "file"
    path.write_text("id\tdocument\tlabel\na\t좋다\t1\n\nb\t\t0\nc\nd\t나쁘다\t0\n\n\n")
    found = read_files(without_labels(load_task("nsmc"), path), [path])
    assert found.examples == [TextExample("a", "좋다", "", ""), TextExample("d", "나쁘다", "", "")]
    places = "1 that are blank, 1 with 1 column, 1 with an empty text: file:3, file:4, file:5"
    assert found.summary() == f"2 of 5 rows of file (skipped: {places})"
    path.write_text("좋다\t1\n\n나쁘다\t0\n")
    task = load_task("cola")
    columns = type(task.columns)(text="0", label="1")
    found = read_files(
        without_labels(dataclasses.replace(task, columns=columns, unlabelled=type(columns)()), path), [path]
    )
    assert [example.id for example in found.examples] == ["0", "2"], "a row's number counts those that were left out"


@pytest.mark.parametrize(
    ("path", "expected"),
    [("none", "cannot be read (No such file"), (".", "a folder, expected a file"), ("/dev/zero", "no regular file")],
)  # fmt: skip
def test_a_file_that_is_none_says_what_it_is(tmp_path, path, expected):
    with pytest.raises(UserError) as refused:
        read_files(without_labels(load_task("cola"), tmp_path / path), [tmp_path / path])
    assert expected in str(refused.value)


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ({"labels": {"0": "bad", "1": "good"}}, {"labels": {}}, "task.labels: None -> {}"),
        ({"labels": {}}, {"labels": {"0": "bad", "1": "good"}}, "task.labels: {} -> None"),
        ({"skipped_texts": ["NS"]}, {"skipped_texts": []}, "task.skipped_texts: ['NS'] -> []"),
        ({"submission": "a.tsv"}, {"submission": ""}, "task.submission: a.tsv -> "),
    ],
)
def test_another_task_in_the_same_folder_is_seen_also_where_a_value_became_empty(tmp_path, before, now, expected):
    def claim(**changes):
        task = dataclasses.replace(load_task("nsmc"), **changes)
        _claim_out(
            Workdir(tmp_path), Request("nsmc", "m", tmp_path, tmp_path), SimpleNamespace(task=task, training=HOW)
        )

    claim(**before)
    claim(**before)
    with pytest.raises(UserError, match="has another fine-tuning") as refused:
        claim(**now)
    assert expected in str(refused.value)


def test_what_ends_a_cell_does_not_end_it_within_a_label_or_an_id():
    examples = [TextExample("a\tb", "x", "", ""), TextExample("1", "x", "", "")]
    _, text = predictions_file(load_task("nsmc"), examples, [Labelled("c\nd", []), Labelled("좋음", [])], 0.0)
    assert text == "index\tprediction\na b\tc d\n1\t좋음\n"
