"""What a damaged workdir, or unfinished work that is damaged, does to the run: nothing is lost, and it is said."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hostile_tools import DAMAGES, run
from run_tools import load_config, make_mesh, pretrain, refusal

from data_prep.cli import main as data_main
from electra_flax.commands.cli import main
from electra_flax.files import recall
from electra_flax.planning import compilation
from electra_flax.training.checkpoint import Checkpoints
from electra_flax.training.history import History
from electra_flax.training.initial_state import abstract_state
from electra_flax.training.lines import METRICS
from electra_flax.training.metrics import MetricWriter, RunNotes


def test_lines_that_cannot_be_read_are_left_out_and_counted(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (METRICS, "events.jsonl"):
        path = Path("run", name)
        lines = path.read_bytes().splitlines(keepends=True)
        damaged = [b'{"step": "x"}\n', b"\xff\n", b'{"event": "start", "step": 1, "time": 1e99, "split": "train"}\n']
        path.write_bytes(b"".join([*lines[:1], *damaged, *lines[1:], b'{"st']))  # the last one is being written
    found = History.read("run")
    assert found.unreadable == {METRICS: 3, "events.jsonl": 3}
    assert (len(found.train), len(found.validation)) == (6, 3)
    assert main(["doctor", "--workdir", "run"]) == 1
    assert f"{METRICS}: 3 lines cannot be read and were skipped" in capsys.readouterr().out


def test_a_run_that_goes_on_keeps_numbers_around_a_damaged_line(copy: Path) -> None:
    path = Path("run", METRICS)
    lines = path.read_bytes().splitlines(keepends=True)
    steps = [json.loads(line)["step"] for line in lines]
    path.write_bytes(b"".join([*lines[:2], b"damaged\n", *lines[2:], b'{"st']))
    with MetricWriter(Path("run"), load_config("tiny.yaml"), 4, False, enabled=True):
        pass
    kept = [line for line, step in zip(lines, steps, strict=True) if step <= 4]
    assert path.read_bytes() == b"".join([*kept[:2], b"damaged\n", *kept[2:]])


@pytest.mark.parametrize("name", ["checkpoints", "tokenizer", METRICS, "events.jsonl", "lock", "config.yaml"])
def test_a_folder_for_a_file_and_the_reverse_are_refused_before_training(
    copy: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = Path("run", name)
    path.rename("moved")
    path.touch() if Path("moved").is_dir() else os.mkfifo(path)
    said = refusal(capsys, pretrain(copy, "run", "--training.num_steps", "7"))
    assert f"{copy / path}: expected a " in said and "move it away" in said


def test_what_run_json_lacks_is_said_and_written_anew(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = Path("run/run.json").read_bytes()
    Path("run/run.json").write_text('{"data_paths": ["shards"], "data": 5}')
    assert "run.json: data=5: expected a valid string: remove it" in refusal(capsys, pretrain(copy, "run"))
    Path("run/run.json").write_text('{"data_paths": [], "data": ""}')
    assert "data_paths: has 0, none of phase 1" in refusal(capsys, ["evaluate", "--workdir", "run"])
    Path("run/run.json").unlink()
    refusal(capsys, pretrain(copy, "run", "--training.batch_size", "32"))
    assert main(pretrain(copy, "run")) == 0
    assert json.loads(Path("run/run.json").read_bytes())["data"] == json.loads(whole)["data"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("meta/metadata", b'{"next_batch": 6, "electra_flax": "", "notes": {"window": 5}}'),
        ("meta/metadata", b"[]"),
        ("state/_METADATA", b"{}"),
        ("_CHECKPOINT_METADATA", b"[]"),
        ("state/_sharding", None),
    ],
)
def test_a_checkpoint_with_a_damaged_small_file_gives_way_to_the_one_before(
    copy: Path, caplog: pytest.LogCaptureFixture, name: str, content: bytes | None
) -> None:
    path = Path("run/checkpoints/6", name)
    path.unlink()
    path.write_bytes(content) if content else os.mkfifo(path)
    config = load_config("tiny.yaml")
    folder = Path("run/checkpoints").absolute()
    checkpoints = Checkpoints(folder, config.checkpoint, RunNotes)
    restored = checkpoints.restore_newest(abstract_state(config), make_mesh(config.mesh))
    checkpoints.close()
    assert restored is not None and int(restored[0].step) == 3
    assert [record.message.split(" (")[0] for record in caplog.records] == ["checkpoint of step 6 is damaged"]
    assert len(list(Path("run/damaged").iterdir())) == 1


def test_a_checkpoint_whose_metrics_are_damaged_counts_as_not_evaluated(
    copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Path("run/checkpoints/6/metrics/metrics").write_text('{"loss": "low"}')
    checkpoints = Checkpoints(Path("run/checkpoints").absolute(), load_config("tiny.yaml").checkpoint, RunNotes)
    checkpoints.close()
    assert checkpoints.steps == [3, 6]
    assert "loss='low': expected a valid number: this checkpoint counts as not evaluated" in caplog.text


def test_where_every_checkpoint_is_described_wrong_nothing_is_begun_anew(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in Path("run/checkpoints").glob("*/_CHECKPOINT_METADATA"):
        path.write_bytes(b"[]")
    assert "none of the checkpoints can be read" in refusal(capsys, pretrain(copy, "run"))
    assert sorted(path.name for path in Path("run/checkpoints").iterdir()) == ["3", "6"]
    assert "move it away" in refusal(capsys, ["evaluate", "--workdir", "run"])


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_only_saves_work_is_made_again(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "memory"
    path.write_bytes(b'{"a": [1, 2]}')
    assert recall(path, dict[str, list[int]]) == {"a": [1, 2]}
    DAMAGES[damage](path)
    assert not recall(path, dict[str, list[int]])
    if not path.is_dir():
        assert compilation._read_cache(path) is None


def test_a_damaged_plan_is_compiled_again(tmp_path: Path) -> None:
    compiled = compilation.Compiled(compilation.Memory(1, 2, 3, 4, 5), 6, "text", {"a": 7})
    compilation._write_cache(tmp_path / "plan", compiled)
    assert compilation._read_cache(tmp_path / "plan") == compiled
    for content in (b'{"memory": 5}', b"[" * 100_000, b"[]"):
        (tmp_path / "plan").write_bytes(gzip.compress(content))
        assert compilation._read_cache(tmp_path / "plan") is None
    (tmp_path / "plan").write_bytes(gzip.compress(b"{}" * 1000)[:-20] + b"x" * 20)
    assert compilation._read_cache(tmp_path / "plan") is None


@pytest.fixture(scope="module")
def unfinished(whole: Path, tmp_path_factory: Any) -> Path:
    """The work folder of a job that ended while shuffling."""
    folder = tmp_path_factory.mktemp("unfinished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data_prep.shards._shuffle", _fail)
        assert data_main(shard(whole, folder)) == 1
    return folder


def _fail(*given: object) -> None:
    raise OSError(28, "No space left on device")


def shard(whole: Path, folder: Path) -> list[str]:
    given = {"--corpus": whole / "text.txt", "--vocab": whole / "vocab", "--out": folder / "out"}
    fields = [str(part) for pair in given.items() for part in pair]
    return ["shard", *fields, "--max-seq-length", "32", "--workers", "1", "--clean", "koelectra-v1"]


@pytest.mark.parametrize(
    "name", ["job.json", "chunks/complete.json", "chunks/duplicates.json", "chunks/00000000.json",
             "chunks/00000000.zst", "records/00000000.npz"],
)  # fmt: skip
def test_damaged_unfinished_work_is_named(
    whole: Path, unfinished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    for damage in ("list", "empty", "FIFO", "folder"):
        work = tmp_path / damage / "out.partial"
        shutil.copytree(unfinished / "out.partial", work)
        if name.endswith(".zst"):
            (work / "records/00000000.npz").unlink()  # else it is not read again
        DAMAGES[damage](work / name)
        capsys.readouterr()
        assert run(["electra-data", *shard(whole, work.parent)]) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert str(work / name) in error and f"remove {work} to start again" in error or "expected a file" in error
        assert not (work.parent / "out").exists()


def test_a_folder_of_something_else_is_not_taken_for_unfinished_work(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial/thesis.txt").write_text("mine")
    assert data_main(shard(whole, tmp_path)) == 1
    assert "out.partial: would hold the unfinished work, but is something else" in capsys.readouterr().err
    assert (tmp_path / "out.partial/thesis.txt").exists()
