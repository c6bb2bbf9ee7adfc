"""Runs on packed rows, with real processes: resumed, in two processes, in two phases, and what is refused."""

import json

import jax
import numpy as np
import pytest
from run_tools import DIE_ONCE_SAVED, IN_STEP, end, make_shards, pretrain, records, refusal, start, start_pair, state_at

from data_prep.cli import main as data_main
from electra_flax.commands.cli import main

PACKED = ("--data.packing", "best_fit", "--packing.window", "64", "--training.batch_size", "64")


@pytest.fixture(scope="module")
def root(tmp_path_factory, sample_corpus):
    root = tmp_path_factory.mktemp("packed")
    make_shards(root, sample_corpus)
    return root


@pytest.fixture(scope="module")
def straight(root):
    """A run that nothing interrupts."""
    assert main(pretrain(root, "straight", *PACKED)) == 0
    return root / "straight"


def assert_as_straight(root, workdir, rtol=0.0):
    for ours, theirs in zip(
        jax.tree.leaves(state_at(root, "straight")), jax.tree.leaves(state_at(root, workdir)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=rtol)
    if not rtol:
        for split in ("train", "validation"):
            assert records(root, workdir, split) == records(root, "straight", split)


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(root, straight):
    for before, expected_code in ((DIE_ONCE_SAVED, 9), ("", 0)):
        process = start(pretrain(root, "killed", *PACKED), before)
        error = process.communicate()[1]
        assert process.returncode == expected_code, error
    assert_as_straight(root, "killed")


@pytest.mark.slow
def test_a_run_goes_on_with_its_rows_on_other_devices(root, straight, capsys):
    rows = json.loads((straight / "run.json").read_text())["packed_rows"]
    for before, devices, expected_code in ((DIE_ONCE_SAVED, "8", 9), ("", "4", 0)):
        assert end(start(pretrain(root, "moved", *PACKED), before, DEVICES=devices))[0] == expected_code
    assert json.loads((root / "moved/run.json").read_text())["packed_rows"] == rows
    assert_as_straight(root, "moved", rtol=1e-5)
    run = json.loads((root / "moved/run.json").read_text())
    (root / "moved/run.json").write_text(json.dumps(run | {"packed_rows": [12]}))
    said = refusal(capsys, pretrain(root, "moved", *PACKED))
    assert "the run has 12 packed rows a step, which 8 devices" in said


@pytest.mark.slow
def test_two_processes_train_as_one(root, straight):
    pair = start_pair(pretrain(root, "pair", *PACKED, *IN_STEP))
    assert [end(process)[0] for process in pair] == [0, 0]
    assert_as_straight(root, "pair", rtol=1e-5)


@pytest.mark.slow
def test_it_learns_says_what_is_packed_and_is_evaluated_as_any_run(root, straight):
    assert main(pretrain(root, "plain", "--training.batch_size", "64")) == 0
    (begun,) = [json.loads(line) for line in (straight / "events.jsonl").read_text().splitlines() if "packed" in line]
    assert begun["packed_rows"] < 64 and begun["packed_fill"] > 0.9
    # Before anything is learned the same: the same held-out examples with the same tokens hidden.
    ours, theirs = (records(root, name, "validation") for name in ("straight", "plain"))
    assert ours[0] == theirs[0] if 0 in ours else ours[3].keys() == theirs[3].keys()
    train = records(root, "straight", "train")
    assert train[6]["loss"] < train[1]["loss"]


@pytest.mark.slow
def test_two_phases_each_have_their_rows(root, sample_corpus):
    source = ["--corpus", str(sample_corpus), "--vocab", str(root / "vocab"), "--workers", "1"]
    assert data_main(["shard", *source, "--out", str(root / "long"), "--max-seq-length", "64"]) == 0
    phases = ("--long_phase.steps", "3", "--long_phase.batch_size", "16", "--long_phase.max_seq_length", "64")
    data = ("--long-data", str(root / "long"), "--training.num_steps", "7")
    assert main(pretrain(root, "phases", *PACKED, *phases, *data)) == 0
    events = [json.loads(line) for line in (root / "phases/events.jsonl").read_text().splitlines()]
    rows = [event["packed_rows"] for event in events if event["event"] == "start"]
    assert len(rows) == 2 and all(number % 8 == 0 for number in rows)
    assert json.loads((root / "phases/run.json").read_text())["packed_rows"] == rows


def test_what_packing_refuses(root, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("electra_flax.training.inputs._LEAST_SAVED", 0.9)
        said = refusal(capsys, pretrain(root, "x", *PACKED))
    assert "data.packing=best_fit would save 1" in said and said.endswith("give --data.packing none")
    for flags, complaint in (
        (("--packing.segments", "9"), "--packing.segments=9: expected 2 to 8"),
        (("--packing.segments", "1"), "--packing.segments=1: expected 2 to 8"),
        (("--packing.window", "1"), "--packing.window=1: expected 2 to 65,536"),
        (("--packing.batch", "all"), "packing.batch"),
        (("--data.packing", "first_fit"), "data.packing"),
    ):
        assert complaint in refusal(capsys, pretrain(root, "x", *flags))
    assert not (root / "x").exists()


@pytest.mark.slow
def test_another_packing_is_another_run(root, straight, capsys):
    assert "data.packing: best_fit -> none" in refusal(capsys, pretrain(root, "straight", *PACKED[2:]))
    said = refusal(capsys, pretrain(root, "straight", *PACKED, "--packing.segments", "4"))
    assert "packing.segments: 8 -> 4" in said
