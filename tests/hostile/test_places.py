"""Paths that are no files or folders, names that break lines, and disks that fill."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from hostile_tools import run

from electra_flax.errors import UserError
from electra_flax.files import write_all, write_whole

VOCAB = ("electra-data", "vocab", "--corpus", "text.txt", "--size", "300", "--unused", "10")
SHARD = ("electra-data", "shard", "--corpus", "text.txt", "--max-seq-length", "32", "--workers", "1")
COMMANDS = [
    ("electra-flax", "pretrain", "--data", "shards", "--workdir", "new", "--config"),
    ("electra-flax", "pretrain", "--config", "tiny.yaml", "--workdir", "new", "--data"),
    ("electra-flax", "pretrain", "--config", "tiny.yaml", "--data", "shards", "--workdir", "new", "--init-from"),
    ("electra-flax", "evaluate", "--workdir"),
    ("electra-flax", "evaluate", "--workdir", "run", "--data"),
    ("electra-flax", "export", "--out", "new", "--workdir"),
    ("electra-flax", "export", "--out", "new", "--from"),
    ("electra-flax", "export", "--from", "hf:export", "--out", "new", "--vocab"),
    ("electra-flax", "show", "--data", "shards", "--model"),
    ("electra-flax", "show", "--model", "export", "--data"),
    ("electra-flax", "verify", "--model"),
    ("electra-flax", "detect", "한국어", "--model"),
    ("electra-flax", "fill", "[MASK]", "--model"),
    ("electra-flax", "report", "--out", "new", "--workdir"),
    ("electra-flax", "doctor", "--workdir"),
    ("electra-flax", "doctor", "--config"),
    ("electra-flax", "doctor", "--config", "tiny.yaml", "--data"),
    ("electra-flax", "finetune", "--model", "export", "--data", "shards", "--out", "new", "--task"),
    ("electra-flax", "finetune", "--task", "nsmc", "--data", "shards", "--out", "new", "--model"),
    ("electra-flax", "scoreboard", "--model", "export", "--out", "new", "--data"),
    ("electra-flax", "predict", "한국어", "--model"),
    ("electra-data", "vocab", "--size", "300", "--out", "new", "--corpus"),
    (*VOCAB, "--out", "new", "--extend"),
    (*VOCAB, "--out", "new", "--compare"),
    ("electra-data", "report", "--corpus", "text.txt", "--out", "new", "--vocab"),
    (*SHARD, "--out", "new", "--vocab"),
    ("electra-data", "inspect"),
    # what is written
    ("electra-flax", "export", "--from", "hf:export", "--out"),
    ("electra-flax", "export", "--from", "hf:export", "--to", "tf1", "--out"),
    ("electra-flax", "report", "--workdir", "run", "--out"),
    ("electra-flax", "pretrain", "--config", "tiny.yaml", "--data", "shards", "--workdir"),
    (*VOCAB, "--out"),
    ("electra-data", "report", "--corpus", "text.txt", "--vocab", "vocab", "--out"),
    (*SHARD, "--vocab", "vocab", "--out"),
]
PLACES = ["fifo", "loop", "n" * 300, "tiny.yaml/x", ""]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[1:]))
def test_what_is_no_file_or_folder_costs_a_line(
    copy: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    os.mkfifo("fifo")
    Path("loop").symlink_to("loop")
    before = {path for path in copy.rglob("*") if not path.name.startswith("report")}
    for place in PLACES:
        prefix = {"--init-from": "hf:", "--from": "hf:"}.get(command[-1], "")
        if (command[-1], place) == ("--out", "loop") and command[1] == "report" and "run" in command:
            continue  # a link to nothing is a new name
        capsys.readouterr()
        assert run([*command, prefix + place]) in ((1,) if place or prefix else (1, 2))
        said = capsys.readouterr()
        error = (said.err.strip().splitlines() or [""])[-1]
        is_finding = command[1] == "doctor" and said.out.startswith("- ")
        assert is_finding or error.startswith((f"{command[0]}: error:", f"{command[0]} {command[1]}: error:"))
    assert before <= set(copy.rglob("*"))
    assert Path("fifo").is_fifo()


@pytest.mark.parametrize("place", [".", "/", ".."])
def test_places_without_a_name(copy: Path, capsys: pytest.CaptureFixture[str], place: str) -> None:
    (copy / "empty").mkdir()
    os.chdir(copy / "empty")
    for command in (
        ["electra-flax", "report", "--workdir", copy / "run", "--out", place],
        ["electra-data", "shard", "--corpus", copy / "text.txt", "--vocab", copy / "vocab", "--out", place,
         "--max-seq-length", "32", "--workers", "1"],
    ):  # fmt: skip
        assert run(command) == 1
        assert f"--out {place}: " in capsys.readouterr().err
    assert not list((copy / "empty").iterdir())


def test_names_are_printed_on_one_line_without_escapes(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name = "$x_{[bold]\n\x1b[31m"
    for source in ("vocab", "shards", "run", "export"):
        Path(source).rename(source + name)
    Path("text.txt").rename("text" + name)
    for command in (
        ["electra-data", "vocab", "--corpus", "text" + name, "--size", "300", "--unused", "10", "--out", "v" + name],
        ["electra-data", "vocab", "--corpus", "text" + name, "--extend", "vocab" + name, "--out", "w" + name],
        ["electra-data", "report", "--corpus", "text" + name, "--vocab", "v" + name, "--out", "r" + name],
        ["electra-data", "shard", "--corpus", "text" + name, "--vocab", "v" + name, "--out", "s" + name,
         "--max-seq-length", "32", "--workers", "1"],
        ["electra-data", "inspect", "s" + name],
        ["electra-flax", "doctor", "--workdir", "run" + name],
        ["electra-flax", "export", "--from", f"hf:export{name}", "--to", "tf1", "--out", "o" + name],
        ["electra-flax", "detect", "--model", "export" + name, "한국" + name],
        ["electra-flax", "fill", "--model", "export" + name, f"한국 [MASK] {name}"],
    ):  # fmt: skip
        assert run(command) in (0, 1)
        said = capfd.readouterr()
        assert "\x1b" not in said.out + said.err, command
        assert not [line for line in (said.out + said.err).splitlines() if line.startswith("[31m")], command


@pytest.mark.parametrize("full_after", range(6))
def test_a_full_disk_leaves_no_half_vocabulary(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], full_after: int
) -> None:
    write, written = Path.write_bytes, 0

    def until_full(path: Path, data: bytes) -> int:
        nonlocal written
        written += 1
        if written > full_after:
            write(path, data[:10])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", until_full)
    assert run([*VOCAB, "--out", "new/vocab"]) == 1
    assert "cannot be written (No space left on device): free some space" in capsys.readouterr().err
    assert not Path("new").exists()


def test_a_file_takes_no_other_things_place(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for name, said in {"fifo": "no regular file", "folder": "a folder", "n" * 300: "name too long"}.items():
        with pytest.raises(UserError, match=said):
            write_whole(tmp_path / name, "text")
        with pytest.raises(UserError, match=said):
            write_all(tmp_path, {"first": "text", name: "text"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "folder"]
    assert (tmp_path / "fifo").is_fifo()


@pytest.mark.slow
def test_the_page_of_runs_with_such_names(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name = "run$x_{[bold]\n\x1b[31m"
    Path("run").rename(name)
    assert run(["electra-flax", "report", "--workdir", name, "--workdir", name, "--out", "page" + name]) == 0
    said = capfd.readouterr()
    assert "\x1b" not in said.out + said.err
    assert said.out.count("\n") == 3


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ((*VOCAB, "--out", "vocab"), "--out vocab: already has a vocab.txt"),
        ((*VOCAB, "--out", "shards"), "--out shards: already has a vocab.txt"),
        (("electra-flax", "pretrain", "--config", "tiny.yaml", "--data", "shards", "--workdir", "shards"),
         "--workdir shards: a folder of shards"),
        (("electra-flax", "pretrain", "--config", "tiny.yaml", "--data", "shards", "--workdir", "tiny.yaml"),
         "tiny.yaml"),
        ((*SHARD, "--vocab", "nowhere", "--out", "new"), "no such vocabulary"),
        (("electra-data", "shard", "--corpus", "vocab", "--max-seq-length", "32", "--vocab", "vocab", "--out",
          "vocab/new"),
         "--out vocab/new: lies in --corpus vocab"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value[1:]),
)  # fmt: skip
def test_what_is_there_is_not_replaced(
    copy: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...], expected: str
) -> None:
    before = {path: path.read_bytes() for folder in ("vocab", "shards") for path in (copy / folder).glob("*")}
    assert run(command) == 1
    assert expected in capsys.readouterr().err.strip().splitlines()[-1]
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl", "DONE", "checkpoints"])
def test_a_folder_that_is_no_run_is_not_taken_over(copy: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    Path("mine").mkdir()
    (Path("mine") / name).mkdir() if name == "checkpoints" else (Path("mine") / name).write_text("mine")
    assert run(("electra-flax", "pretrain", "--config", "tiny.yaml", "--data", "shards", "--workdir", "mine")) == 1
    assert f"holds {name}, but no config.yaml of a run" in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_finished_run_without_its_checkpoints_is_not_begun_anew(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree("run/checkpoints")
    numbers = Path("run/metrics.jsonl").read_bytes()
    assert run(("electra-flax", "pretrain", "--config", "tiny.yaml", "--data", "shards", "--workdir", "run")) == 1
    assert "marked DONE but has no checkpoint" in capsys.readouterr().err.strip().splitlines()[-1]
    assert Path("run/metrics.jsonl").read_bytes() == numbers
