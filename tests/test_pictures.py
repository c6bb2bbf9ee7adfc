"""Charts in the fonts that come with the product, of names that another library would take for markup."""

import dataclasses
import logging
import warnings
from importlib import resources
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

from electra_flax import formats, pictures
from electra_flax.errors import escaped
from electra_flax.finetuning import publish, scoreboard
from electra_flax.finetuning.data import Part, TaskData
from electra_flax.finetuning.examples import TaggedExample, TextExample
from electra_flax.finetuning.predictions import Labelled
from electra_flax.finetuning.result import SeedResult
from electra_flax.finetuning.task_files import load_task
from electra_flax.training import charts

HOSTILE = ["$x_{", "$x_{$", "[/bold]", r"\frac{", "뷁쀍ㄱㅏ", "naïve", "a\nb"]


def test_the_font_has_all_hangul_under_a_name_of_its_own():
    font = FT2Font(str(resources.files("electra_flax") / "fonts/electra_hangul.ttf"))
    assert set(range(0xAC00, 0xD7A4)) | set(range(0x3131, 0x318F)) | set(range(0x20, 0x7F)) <= font.get_charmap().keys()
    assert font.family_name == "Electra Hangul", "its licence reserves the name of what it was made from"


@pytest.fixture
def drawn(monkeypatch, caplog):
    """The figures that were made, of which none lacked a glyph or a face."""
    figures = []

    def to_png(figure):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            picture = pictures.to_png(figure)
        assert picture.startswith(b"\x89PNG")
        figures.append(figure)
        return picture

    for module in (publish, scoreboard, charts):
        monkeypatch.setattr(module, "to_png", to_png)
    yield figures
    assert [record for record in caplog.get_records("call") if record.levelno >= logging.WARNING] == []


def result(predictions):
    return SeedResult({}, 1, [], predictions, {}, 0.0, 0.0)


def test_titles_labels_and_tags_are_shown_as_they_are(drawn):
    names = {str(i): name for i, name in enumerate(HOSTILE)}
    task = dataclasses.replace(load_task("nsmc"), title=HOSTILE[0], labels=names)
    examples = [TextExample(i, "나라", "", i) for i in names]
    data = TaskData(list(names), *(Part("test", examples, []) for _ in range(3)))
    publish.confusion_picture(task, data, result([Labelled("1", []) for _ in names]))
    task = dataclasses.replace(load_task("naver-ner"), title="".join(HOSTILE))
    sentences = [TaggedExample("0", "서울", [(i, i + 1) for i in range(len(HOSTILE))], [f"B-{n}" for n in HOSTILE])]
    data = TaskData([], *(Part("test", sentences, []) for _ in range(3)))
    publish.confusion_picture(task, data, result([["O"] * len(HOSTILE)]))
    for figure, labels, title in zip(
        drawn, (HOSTILE, sorted([*HOSTILE, "O"])), (HOSTILE[0], "".join(HOSTILE)), strict=True
    ):
        (axis,) = figure.axes
        assert [label.get_text() for label in axis.get_xticklabels()] == labels
        assert axis.get_title("left") == f"{title}, test"


def test_names_of_models_and_runs_are_shown_as_they_are(drawn):
    scores = {"nsmc": SimpleNamespace(metrics={"accuracy": SimpleNamespace(mean=0.5, deviation=None)})}
    scoreboard._picture(dict.fromkeys(HOSTILE, scores), ["nsmc"])
    runs = [SimpleNamespace(name=name, train=[{"step": 1, "loss": 1.0}], validation=[], starts=[]) for name in HOSTILE]
    charts.draw(runs, [charts.Panel("Loss", "loss", "")] * 2)
    shown = set(formats.labels(HOSTILE)), {f"{escaped(name)} train" for name in HOSTILE}
    for figure, expected in zip(drawn, shown, strict=True):
        _, labels = figure.axes[0].get_legend_handles_labels()
        assert expected <= set(labels)


def test_powers_of_ten_are_still_mathematics():
    figure = Figure()
    axis = figure.subplots()
    axis.plot([1e-3, 10.0])
    axis.set_yscale("log")
    figure.canvas.draw()
    pictures.to_png(figure)
    shown = [label for label in axis.get_yticklabels() if "mathdefault" in label.get_text()]
    assert shown and all(label.get_parse_math() for label in shown)
