"""Names that another library reads as markup are shown as they are written."""

from __future__ import annotations

import dataclasses

import pytest
from rich.table import Table

from data_prep import inspect, vocab_report
from electra_flax.runtime.console import console
from electra_flax.weights import verify
from electra_flax.weights.parity import Differences

NAMES = ("[/bold]", "[bold]a[/red]", "[red]", ":smile:", "$x_{", "$x_{$", "\\[", "[link=x]")


@pytest.mark.parametrize("name", NAMES)
def test_tables_and_lines_show_names_as_they_are(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    console().print(name)
    table = Table(name, title=name)
    table.add_row(name)
    console().print(table)
    assert capsys.readouterr().out.count(name) == 4


@pytest.mark.parametrize("name", NAMES)
def test_what_inspect_and_report_say_of_names(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    inspect._show_sources([{"path": name, "documents": 1, "bytes": 1}], console())
    cleaning = {"recipe": name, "steps": [name], "changed_or_dropped": {name: 1}, "malformed_files": {name: name}}
    inspect._show_cleaning(cleaning, console())
    fields = {field.name: 1 for field in dataclasses.fields(vocab_report.Usage)}
    usage = vocab_report.Usage(**{**fields, "name": name, "round_trip": "yes", "unknown_characters": {"[": 1}})
    vocab_report.show([usage], console())
    vocab_report.files([dataclasses.replace(usage, lengths={1: 1})] * 2)
    console().print(verify.table("discriminator", {name: Differences([1e-9, float("nan")], 1e-3)}, 1e-4))
    assert capsys.readouterr().out.count(name) == 9
