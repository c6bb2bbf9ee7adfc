"""How output looks: on a terminal of 80 columns, and where no terminal reads it."""

import io
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from electra_flax.model.sharding import coverage_report
from electra_flax.reports.coloured import coloured, legend
from electra_flax.reports.replaced import Detection, show
from electra_flax.reports.sentences import Detected, Piece, Word
from electra_flax.runtime import progress_bar, status
from electra_flax.runtime.console import fitted, print_rows, progress
from electra_flax.runtime.progress_bar import Bar

METRICS = (
    "step 1000000 train: loss 23.73, generator_loss 5.883, generator_accuracy 0.2759, discriminator_loss 0.3569, "
    "discriminator_auc 0.7206, discriminator_precision 0.375, discriminator_recall 0.05172, tokens_per_sec 1,272,000"
)


@pytest.mark.parametrize(
    "text",
    [METRICS, f"{'memory per device':24s} " + "12.3 of 15.5 GiB, " * 9, "  나무가 자란다. " * 20, "- " + METRICS],
)
def test_lines_are_broken_between_words(text):
    shown = fitted(text, 80).split("\n")
    assert len(shown) > 1 and all(cell_len(line) <= 80 for line in shown)
    assert " ".join(" ".join(shown).split()) == " ".join(text.split())
    begin = len(text) - len(text.lstrip())
    assert all(line.startswith(" " * (begin + 2)) for line in shown[1:])
    assert fitted(text, None) == text
    assert not text.startswith("step") or all(line.endswith(",") for line in shown[:-1]), "a number without its name"


def test_a_status_that_cannot_be_written_is_told_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv(status.VARIABLE, str(tmp_path))
    for step in (1, 2):
        status.tell(step=step, of=2)
    assert [record.getMessage() for record in caplog.records] == [
        f"ELECTRA_FLAX_STATUS={tmp_path}: a folder, expected a file or a new name: name another"
    ]


def test_what_fits_or_has_no_space_is_left_alone():
    for text in ("short", "", "a\n\n  b", "/a/path/" * 20):
        assert fitted(text, 80) == text
    assert fitted("see " + "/a/path/" * 20 + " for more", 80).split("\n") == [
        "see",
        "  " + "/a/path/" * 20,
        "  for more",
    ]


def test_rows_on_a_terminal_hold_no_escapes_and_are_whole_elsewhere(capsys, monkeypatch):
    print_rows("1\t\x1b[31m한국\n2\t\x9b")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    print_rows("1\t\x1b[31m한국\n2\t\x9b")
    assert capsys.readouterr().out == "1\t\x1b[31m한국\n2\t\x9b\n1\t\\x1b[31m한국\n2\t\\x9b\n"


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def bar(total, unit, columns=None, **how):
    given = {"scaled": False, "initial": 0, "delay": 0, **how}
    clock = Clock()
    return Bar(total, "training", unit, columns=lambda stream: columns, clock=clock, **given), clock


def run(bar, clock, seconds, each=1, times=1):
    for _ in range(times):
        clock.now += seconds
        bar.update(each)


def test_a_plain_line_every_half_minute_and_its_eta_is_right(capsys):
    shown, clock = bar(1000, "steps", initial=400)
    shown.note("loss 3.2")
    run(shown, clock, 50)  # the first step compiles; nothing is foretold of it
    assert capsys.readouterr().err == "training 40%, 401 of 1,000 steps, loss 3.2\n"
    run(shown, clock, 0.5, times=100)
    assert capsys.readouterr().err == (
        "training 46%, 461 of 1,000 steps, 4 min 30 s to go, 2 steps/s, loss 3.2\n"
    )  # 539 steps at 2 a second
    shown.go_back(300)
    run(shown, clock, 4, times=11)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "training 31%, 311 of 1,000 steps, 45 min 56 s to go, 4 s each, loss 3.2"


@pytest.mark.parametrize(
    ("total", "unit", "each", "expected"),
    [
        (1_990_000, "parameters", 128, "training 0%, 128 of 1.99M parameters"),  # 22 a second would take a day
        (2e9, "B", 1e9, "training 50%, 1 GB of 2 GB"),
        (0, "B", 0, "training 100%, 0 B of 0 B"),
    ],
)
def test_nothing_is_foretold_of_one_update(total, unit, each, expected, capsys):
    shown, clock = bar(total, unit, scaled=True)
    run(shown, clock, 31, each)
    assert capsys.readouterr().err == f"{expected}\n"


def test_a_terminal_has_a_bar_in_its_width(capsys):
    for columns in (20, 40, 80, 200):
        shown, clock = bar(1000, "steps", columns)
        shown.note("loss 3.2")
        with shown:
            run(shown, clock, 1, 20, times=10)
            progress_bar.write("a line")
        drawn = re.split(r"[\r\n]", capsys.readouterr().err)
        assert all(len(line) < columns for line in drawn) and "a line" in drawn
        assert any("[####" in line for line in drawn) == (columns > 80)
        assert not drawn[-1].strip(), "it is gone at the end"


def test_what_is_not_shown_writes_nothing(capsys):
    with progress(10, "x", "steps", enabled=False) as hidden:
        hidden.update(5)
    assert hidden.n == 5 and capsys.readouterr().err == ""


def at_80_columns(print_to, **how):
    out = io.StringIO()
    print_to(Console(file=out, width=80, highlight=False, **how))
    return out.getvalue()


def test_probabilities_tell_themselves_apart_without_colours():
    text = "가 나 다 라 마"
    pieces = [Piece(text[i], i, i + 1, p) for i, p in zip(range(0, 9, 2), (0.05, 0.2, 0.49, 0.5, 0.9), strict=True)]
    shown = at_80_columns(
        lambda console: console.print(legend(), coloured(Detected(text, tuple(pieces), ())), sep="\n")
    )
    assert shown.splitlines()[-1] == "가 나(20%) 다(49%) 라(50%) 마(90%)"
    assert "in brackets" in shown and "\x1b" not in shown


def test_where_nothing_is_suspicious_the_highest_probability_is_told():
    pieces = tuple(
        Piece(token, i, i + 1, p) for i, (token, p) in enumerate((("가", 0.05), ("##나", 0.19), ("다", 0.1)))
    )
    words = (Word("가나", 0, 2, 0.19), Word("다", 2, 3, 0.1))
    shown = at_80_columns(lambda console: console.print(coloured(Detected("가나다", pieces, words))))
    assert shown == "가나다  (nothing at 20% or more; highest: 가나 19%)\n"
    suspicious = (*pieces[:2], Piece("다", 2, 3, 0.2))
    shown = at_80_columns(lambda console: console.print(coloured(Detected("가나다", suspicious, words))))
    assert shown == "가나다(20%)\n"


def test_words_of_examples_are_whole_at_80_columns():
    words = ["[CLS]", *(f"낱말{number}번" for number in range(40)), "[SEP]"]
    is_replaced = np.arange(len(words)) % 5 == 1
    detection = Detection(words, words, is_replaced, np.linspace(0, 1, len(words)))
    shown = at_80_columns(lambda console: show([detection], console))
    assert all(cell_len(line) <= 80 for line in shown.splitlines())
    for word in words:
        assert word in shown
    untouched = at_80_columns(lambda console: show([detection._replace(is_replaced=np.zeros(42, bool))], console))
    assert "found," not in untouched, "a legend without a mark"


def test_the_table_of_sharding_rules_fits():
    arrays = {"electra": {"embeddings_project": {"kernel": np.zeros((3000, 3000))}, "x": {"bias": np.zeros(3)}}}
    lines = coverage_report(arrays).splitlines()
    assert len(lines) == 2 and all(len(line) <= 80 for line in lines)
    assert lines[0].split()[-2:] == ["1", "9,000,000"]


def test_each_corpus_has_a_demo_of_its_own():
    def folder(*given):
        made = subprocess.run(
            ["make", "-n", "demo", *given], cwd=Path(__file__).parents[1], capture_output=True, text=True
        )
        (removed,) = re.findall(r"^rm -rf (.+)$", made.stdout, re.MULTILINE)
        return removed

    assert folder() == "runs/demo"
    given = [
        "/a/text",
        "/b/text",
        "text",
        "./text",
        "data_prep/sample",
        "a/나의 글.txt",
        "a/나의_글.txt",
        "a b",
        "gs://x/*",
    ]
    folders = [folder(f"CORPUS={corpus}") for corpus in given]
    assert len({"runs/demo", *folders}) == len(given) + 1
    assert all(re.fullmatch(r"runs/demo-of-[^\s/]+-\d+", name) for name in folders)
    assert folder("CORPUS=/a/text") == folders[0]
