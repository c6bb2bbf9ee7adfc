"""Workdir and shards on gs://: real gcsfs, TensorStore and Google's client, through a proxy that gets in the way."""

import asyncio
import os
import random
import re
import shutil
import threading
import time

import jax
import numpy as np
import pytest
from faulty_proxy import FaultyProxy
from google.cloud.storage.retry import DEFAULT_RETRY
from run_tools import (
    STEPS,
    assert_undisturbed,
    command,
    end,
    in_two_processes,
    make_shards,
    records,
    run_with_kills,
    start,
    wait_for_step,
)

from electra_flax.commands.cli import main
from electra_flax.data.shards import DataFolder, ShardedExamples
from electra_flax.errors import Problem, RunError, UserError
from electra_flax.storage import bucket, lease, staging
from electra_flax.storage.bucket import RemoteFolder

# Of a process: what Google would answer within a minute, the proxy does within seconds.
IMPATIENT = """
from electra_flax.storage import lease
from electra_flax.storage import bucket as storage
storage._SECONDS = 2.0
lease._RENEW_SECONDS, lease._PATIENCE_SECONDS = 1.0, 4.0
"""


@pytest.fixture(scope="module")
def proxy(google_storage):
    """Leads this process and those it starts to the bucket."""
    with FaultyProxy(google_storage["STORAGE_EMULATOR_HOST"], rate=0.0, silence=3.0) as proxy:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (google_storage | {"STORAGE_EMULATOR_HOST": proxy.address}).items():
                patch.setenv(name, value)
            patch.setenv("TENSORSTORE_GCS_HTTP_URL", proxy.address)
            patch.setattr(bucket, "_SECONDS", 2.0)
            patch.setattr(lease, "_RENEW_SECONDS", 1.0)
            patch.setattr(lease, "_PATIENCE_SECONDS", 4.0)
            yield proxy


@pytest.fixture
def faults(proxy):
    """One request in ten goes wrong."""
    proxy.rate = 0.1
    yield proxy
    proxy.rate = 0.0


@pytest.fixture(scope="module")
def root(tmp_path_factory, sample_corpus, proxy):
    """Shards and a configuration on the disk; the shards in the bucket too."""
    root = tmp_path_factory.mktemp("gs")
    make_shards(root, sample_corpus)
    upload(root / "shards", "gs://bucket/shards")
    return root


@pytest.fixture(scope="module")
def straight(root):
    """An undisturbed run on the disk."""
    assert main(command(root, "straight")) == 0


def upload(folder, url):
    remote = RemoteFolder(url)
    for path in folder.iterdir():
        remote.upload(path, path.name)


def remote_command(root, workdir, *extra):
    return command(root, workdir, "--data.staging_folder", str(root / "staged"), *extra, data="gs://bucket/shards")


@pytest.mark.long
def test_sigterm_and_the_same_command_through_faults(root, straight, faults):
    workdir = "gs://bucket/runs/stopped"
    process = start(remote_command(root, workdir), IMPATIENT)
    wait_for_step(process, root, workdir, 6)
    process.terminate()
    code, line = end(process)
    assert code == 75 and "stopped as asked: saved at step" in line, line
    assert "lock" not in RemoteFolder(workdir).files()
    code, line = end(start(remote_command(root, workdir), IMPATIENT))
    assert code == 0, line
    faults.rate = 0.0
    assert min(faults.counts.values()) > 0, faults.counts
    assert_undisturbed(root, workdir)


@pytest.mark.long
def test_sigkill_at_any_moment_through_faults(root, straight, faults):
    kills, rng = 20, random.Random(0)
    killed = runs = 0
    while killed < kills:
        workdir = f"gs://bucket/runs/killed-{runs}"
        killed += run_with_kills(
            lambda workdir=workdir: start(remote_command(root, workdir), IMPATIENT), kills - killed, (8, 30), rng
        )
        assert_undisturbed(root, workdir)
        runs += 1


@pytest.mark.long
def test_two_processes_with_everything_in_the_bucket(root, straight, faults):
    """Stopped through the second, continued by one process with four devices, then with eight."""
    workdir = "gs://bucket/runs/pair"
    every = ("--logging.every_steps", "1", "--data.staging_folder", str(root / "staged"))
    first, second = in_two_processes(root, workdir, *every, data="gs://bucket/shards")
    wait_for_step(first, root, workdir, 6)
    second.terminate()
    ends = [end(process) for process in (first, second)]
    assert [code for code, _ in ends] == [75, 75], ends
    # On a busy machine the two get far before they stop; what they saved says nothing of the next process.
    stopped_at = int(re.search(r"saved at step (\d+) of", ends[0][1])[1])
    process = start(remote_command(root, workdir, *every), IMPATIENT, DEVICES="4")
    wait_for_step(process, root, workdir, stopped_at + 6)
    process.terminate()
    assert end(process)[0] == 75
    assert end(start(remote_command(root, workdir, *every), IMPATIENT))[0] == 0
    assert main(command(root, "alone", "--logging.every_steps", "1")) == 0
    found, expected = records(root, workdir, "train"), records(root, "alone", "train")
    assert sorted(found) == sorted(expected) == list(range(1, STEPS + 1))
    for step, metrics in expected.items():
        for name in ("loss", "generator_loss", "discriminator_loss"):
            assert found[step][name] == pytest.approx(metrics[name], rel=1e-5)


@pytest.fixture(scope="module")
def finished(root, straight):
    """A whole run in the bucket, in this process."""
    workdir = "gs://bucket/runs/finished"
    assert main(remote_command(root, workdir)) == 0
    assert_undisturbed(root, workdir)
    return workdir


@pytest.mark.slow
def test_the_commands_read_a_workdir_in_the_bucket(root, finished, tmp_path, capsys):
    capsys.readouterr()
    assert main(["evaluate", "--workdir", finished]) == 0
    assert f'"step": {STEPS}' in capsys.readouterr().out
    with jax.numpy_rank_promotion("allow"):
        assert main(["export", "--workdir", finished, "--out", str(tmp_path / "export")]) == 0
    assert (tmp_path / "export/discriminator/model.safetensors").exists()
    assert main(["report", "--workdir", finished, "--out", str(tmp_path / "page.html")]) == 0
    assert "<td>done</td>" in (tmp_path / "page.html").read_text()
    assert main(["doctor", "--workdir", finished]) in (0, 1)
    capsys.readouterr()
    assert main(["evaluate", "--workdir", "gs://bucket/nothing"]) == 1
    assert "not the workdir of a run" in capsys.readouterr().err


def test_the_traceback_of_what_nobody_foresaw_is_kept_in_the_bucket(root, proxy, capsys, monkeypatch):
    def halted(*unused):
        raise jax.errors.JaxRuntimeError("INTERNAL: the accelerator has halted")

    monkeypatch.setattr("electra_flax.training.pretrain.compile_step", halted)
    workdir = "gs://bucket/runs/halted"
    assert main(remote_command(root, workdir)) == 70
    assert f"(traceback: {workdir}/error-0.txt)" in capsys.readouterr().err.strip().splitlines()[-1]
    assert b"in halted" in RemoteFolder(workdir).blob("error-0.txt").download_as_bytes()


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_in_the_bucket_gives_way(root, finished, caplog):
    remote, workdir = RemoteFolder(finished), "gs://bucket/runs/damaged"
    copy = RemoteFolder(workdir)
    for name, blob in remote.files().items():
        remote.bucket.copy_blob(blob, remote.bucket, copy.prefix + name)
    copy.blob("DONE").delete()
    prefix = f"checkpoints/{STEPS}/state/d/"
    newest = {name: blob for name, blob in copy.files().items() if name.startswith(prefix)}
    name, blob = max(newest.items(), key=lambda item: item[1].size)
    content = bytearray(blob.download_as_bytes())
    content[len(content) // 2] ^= 4
    copy.blob(name).upload_from_string(bytes(content))
    caplog.set_level("INFO")
    assert main(remote_command(root, workdir)) == 0
    assert f"checkpoint of step {STEPS} is damaged" in caplog.text and "continuing from step 36" in caplog.text
    assert any(name.startswith("damaged/") for name in copy.files())
    assert_undisturbed(root, workdir)


@pytest.fixture
def impatient(monkeypatch):
    """What is tried for two minutes is tried for seconds."""
    monkeypatch.setattr(DEFAULT_RETRY, "_timeout", 2.0)
    monkeypatch.setattr(bucket, "_PAUSES", (0.1,))
    monkeypatch.setattr("gcsfs.retry.asyncio.sleep", lambda seconds, sleep=asyncio.sleep: sleep(min(seconds, 0.1)))


TO_READ = "to read"
AWAY_ROWS = [
    ("pretrain", "."), ("pretrain", "uploadType"), ("pretrain", "prefix=runs"), ("pretrain", "prefix=shards"),
    ("pretrain", "checkpoints"), ("pretrain", TO_READ), ("export", "."), ("export", "checkpoints"), ("export", TO_READ),
    ("evaluate", TO_READ),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("command", "away_from"), AWAY_ROWS)
def test_a_bucket_that_is_away_at_a_restart_is_no_mistake(
    root, finished, proxy, impatient, capsys, monkeypatch, tmp_path, command, away_from
):
    """For longer than requests are repeated, from some moment of the start on: 70, never 1, and nothing damaged."""
    arguments = {
        "pretrain": remote_command(root, finished, "--training.num_steps", "45"),
        "export": ["export", "--workdir", finished, "--out", str(tmp_path / "out")],
        "evaluate": ["evaluate", "--workdir", finished],
    }[command]
    if away_from == TO_READ:  # TensorStore repeats its requests for a quarter of an hour

        def restore(*unused, **unused_too):
            raise ValueError("UNAVAILABLE: Error reading gs://bucket/x: HTTP response code: 503")

        monkeypatch.setattr("orbax.checkpoint.CheckpointManager.restore", restore)
    else:
        proxy.away_from = away_from
    try:
        code = main(arguments)
    finally:
        was_away, proxy.away_from = proxy.away_from in ("", "."), ""
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert was_away and code == 70 and "for now" in line, (code, line)
    assert not any(name.startswith("damaged/") for name in RemoteFolder(finished).files())


# --------------------------------------------------------------------------------------------------------- lock


@pytest.mark.slow
def test_one_process_at_a_time_and_a_dead_one_is_no_obstacle(root, proxy, monkeypatch, capsys):
    folder = RemoteFolder("gs://bucket/locked")
    with lease.Lease(folder):
        began = time.monotonic()
        with pytest.raises(UserError, match="another process is at work there") as refused:
            lease.Lease(folder).__enter__()
        assert time.monotonic() - began < 4, "it did not see the other renew the lock"
        assert f"process {os.getpid()} on" in str(refused.value)
        assert main(remote_command(root, "gs://bucket/locked")) == 1
        assert "another process is at work there" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not folder.files()
    monkeypatch.setattr(lease.Lease, "_keep", lambda self: None)
    dead = lease.Lease(folder)
    dead.__enter__()  # it renews nothing
    began = time.monotonic()
    with lease.Lease(folder):
        assert time.monotonic() - began >= 4
    ending = lease.Lease(folder)
    ending.__enter__()
    threading.Timer(1.0, lambda: folder.blob("lock").delete()).start()
    with lease.Lease(folder):  # it ended while it was waited for
        assert time.monotonic() - began >= 1
    dead = lease.Lease(folder)
    dead._content["pid"] = 1 << 30  # no process of this machine
    dead.__enter__()
    began = time.monotonic()
    with lease.Lease(folder):
        assert time.monotonic() - began < 2


@pytest.mark.slow
def test_a_process_that_lost_its_lock_ends(root, proxy):
    workdir = "gs://bucket/runs/lost"
    process = start(remote_command(root, workdir, "--training.num_steps", "4000"), IMPATIENT)
    wait_for_step(process, root, workdir, 6)
    RemoteFolder(workdir).blob("lock").upload_from_string('{"token": "another"}')
    code, line = end(process)
    assert code == 3 and "another process has taken over --workdir gs://bucket/runs/lost" in line


# ------------------------------------------------------------------------------------------------------ staging


def test_shards_are_copied_once_and_again_only_where_they_changed(root, faults, tmp_path):
    upload(root / "shards", "gs://bucket/changing")
    local = staging.stage("gs://bucket/changing", str(tmp_path))
    for path in (root / "shards").iterdir():
        assert (local / path.name).read_bytes() == path.read_bytes()
    remote = RemoteFolder("gs://bucket/changing")
    before = {path.name: path.stat().st_ctime_ns for path in local.iterdir()}
    (tmp_path / "new").write_bytes(b"[]")
    remote.upload(tmp_path / "new", "dataset_info.json")
    remote.try_to("be written", lambda: remote.blob("features.json").delete(retry=DEFAULT_RETRY))
    (local / "vocab.txt").write_text("cannot be read")
    assert staging.stage("gs://bucket/changing", str(tmp_path)) == local
    after = {path.name: path.stat().st_ctime_ns for path in local.iterdir()}
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed - {"staged.json", "staging.lock"} == {"dataset_info.json", "features.json", "vocab.txt"}
    assert (local / "vocab.txt").read_bytes() == (root / "shards/vocab.txt").read_bytes()


def test_what_needs_held_out_examples_copies_those_alone(root, faults, tmp_path):
    """And the run that comes later copies only the rest."""
    local = staging.stage("gs://bucket/shards", str(tmp_path), without="train")
    assert not list(local.glob("electra-train*"))
    held_out = DataFolder.open(local, without="train").splits
    before = held_out["validation"][0].stat()
    expected = DataFolder.open(root / "shards").splits
    examples = ShardedExamples(held_out["validation"], 32, 600)
    np.testing.assert_array_equal(
        examples.read(range(len(examples))), ShardedExamples(expected["validation"], 32, 600).read(range(len(examples)))
    )
    staging.stage("gs://bucket/shards", str(tmp_path))
    assert {name: [path.name for path in paths] for name, paths in DataFolder.open(local).splits.items()} == {
        name: [path.name for path in paths] for name, paths in expected.items()
    }
    assert held_out["validation"][0].stat().st_ctime_ns == before.st_ctime_ns


def test_doctor_copies_what_the_run_will_find(root, proxy, capsys, tmp_path, monkeypatch):
    arguments = ["doctor", "--config", str(root / "tiny.yaml"), "--data", "gs://bucket/shards"]
    arguments += ["--data.staging_folder", str(tmp_path)]
    main(arguments)
    assert list(tmp_path.rglob("electra-train*")) and " to copy, but" not in capsys.readouterr().out
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1 << 30, 1 << 30, 0))
    assert main([*arguments[:-1], str(tmp_path / "small")]) == 1
    found = " ".join(capsys.readouterr().out.split())
    assert "kB to copy, but" in found and "has room for 0 B" in found


# --------------------------------------------------------------------------------------------------- what is refused


def test_what_is_wrong_with_a_bucket_is_one_line(root, proxy, capsys, tmp_path, monkeypatch):
    absent = ["--data", "gs://bucket/empty"]
    for arguments, expected in (
        (remote_command(root, "gs://bucket/z", *absent), "error: gs://bucket/empty: nothing there"),
        (remote_command(root, "gs://bucket/z", "--data", "gs://"), "gs://: expected gs://BUCKET/FOLDER"),
        (remote_command(root, "gs://no-such-bucket/z"), "gs://no-such-bucket/z: cannot be"),
        (remote_command(root, "gs://bucket/z", "--data.staging_folder", "/proc/x"), "data.staging_folder=/proc/x: "),
        (remote_command(root, "gs://bucket/z", "--data.staging_folder", ""), 'data.staging_folder="": name a folder'),
        (["evaluate", "--workdir", "gs://no-such-bucket/z"], "gs://no-such-bucket/z: cannot be read"),
    ):
        capsys.readouterr()
        assert main(arguments) == 1, expected
        error = capsys.readouterr().err.strip().splitlines()
        assert expected in error[-1], error
    monkeypatch.setattr(bucket.importlib.util, "find_spec", lambda name: None)
    assert main(remote_command(root, "gs://bucket/z")) == 1
    assert "pip install 'electra-flax[gcs]'" in capsys.readouterr().err


def test_the_end_of_a_run_is_not_tried_again(monkeypatch):
    """The other processes would be waited for in vain; what is away, or nobody knows, is tried again."""
    monkeypatch.setattr(bucket, "_PAUSES", (0.0, 0.0))
    for error, attempts in ((RunError("a"), 1), (UserError("b"), 1), (Problem("c"), 3), (OSError("d"), 3)):
        made = []

        def action(error=error, made=made):
            made.append(1)
            raise error

        with pytest.raises(type(error)):
            bucket.until_done("gs://bucket/run", action)
        assert len(made) == attempts, error
