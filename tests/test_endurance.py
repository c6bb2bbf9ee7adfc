"""A run is killed, stopped, damaged and split over processes, and the result is that of a run left alone."""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time

import jax
import numpy as np
import pytest
from metadata_server import MetadataServer, pod_attributes
from run_tools import (
    IN_STEP,
    STEPS,
    assert_undisturbed,
    command,
    end,
    free_port,
    in_two_processes,
    make_shards,
    records,
    run_with_ctrl_c,
    run_with_kills,
    start,
    state_at,
    wait_for_step,
)

from electra_flax.commands.cli import main
from electra_flax.config.loading import load_config
from electra_flax.data.pipeline import GlobalOrder, open_split
from electra_flax.data.shards import DataFolder
from electra_flax.errors import Problem, UserError
from electra_flax.model.sharding import make_mesh
from electra_flax.runtime import processes
from electra_flax.storage.workdir import Workdir
from electra_flax.training.checkpoint import Checkpoints
from electra_flax.training.faults import SaveClock, SkippedSteps
from electra_flax.training.fingerprint import fingerprint
from electra_flax.training.initial_state import abstract_state

NUM_EXAMPLES = 396  # of the sample corpus


@pytest.fixture(scope="module")
def root(tmp_path_factory, sample_corpus):
    """Shards, a configuration, compiled programs, and a run that nothing disturbed."""
    root = tmp_path_factory.mktemp("endurance")
    make_shards(root, sample_corpus)
    assert main(command(root, "straight")) == 0
    return root


@pytest.mark.slow
def test_sigterm_saves_at_once_and_the_same_command_continues(root):
    process = start(command(root, "stopped"))
    wait_for_step(process, root, "stopped", 6)
    process.send_signal(signal.SIGTERM)
    code, line = end(process)
    newest = Checkpoints(root / "stopped" / "checkpoints").steps[-1]
    assert (code, line) == (
        75, f"electra-flax: stopped as asked: saved at step {newest} of {STEPS}; the same command continues"
    )  # fmt: skip
    assert not (root / "stopped/DONE").exists()
    assert main(command(root, "stopped")) == 0
    assert_undisturbed(root, "stopped")


@pytest.mark.parametrize("kills", [pytest.param(5, marks=pytest.mark.slow), pytest.param(50, marks=pytest.mark.long)])
def test_sigkill_at_any_moment_changes_nothing(root, kills):
    rng = random.Random(kills)
    killed = runs = 0
    while killed < kills:
        name = f"killed{kills}-{runs}"
        killed += run_with_kills(lambda name=name: start(command(root, name)), kills - killed, (4, 12), rng)
        assert_undisturbed(root, name)
        runs += 1


@pytest.mark.parametrize("times", [pytest.param(4, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.long)])
def test_ctrl_c_at_any_moment_loses_no_step(root, times):
    rng = random.Random(times)
    asked = runs = 0
    while asked < times:
        name = f"asked{times}-{runs}"
        asked += run_with_ctrl_c(root, name, times - asked, (2, 12), rng)
        assert_undisturbed(root, name)
        runs += 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_done_and_said_stays_so(root, number):
    """What is left of a save may keep the process for a while; a signal then only shortens that."""
    left = """
import threading, time
from electra_flax.runtime import processes
leave = processes.leave
def leave_loudly(code):
    print("left", flush=True)
    leave(code)
processes.leave = leave_loudly
threading.Thread(target=time.sleep, args=(1000,)).start()
"""
    process = start(command(root, "straight"), left)
    assert process.stdout.readline() == "left\n"
    begun = time.monotonic()
    process.send_signal(number)
    code, line = end(process)
    assert code == 0 and "electra-flax:" not in line and time.monotonic() - begun < 20  # not the 30 s of leave


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_python_ends_changes_no_exit_code(root, number):
    late = """
import time
class Late:
    def __del__(self, print=print, sleep=time.sleep):  # Python has given signals back their default by then
        print("late", flush=True)
        sleep(2)
late = Late()
"""
    process = start(command(root, "straight"), late)
    assert process.stdout.readline() == "late\n"
    process.send_signal(number)
    assert end(process)[0] == 0


@pytest.mark.slow
def test_hosts_of_a_tpu_find_each_other_and_stop_when_one_is_taken_away(root):
    """By their metadata alone, on the port that is given; saves are due by the clock of process 0."""
    on_a_tpu_host = """
from electra_flax.runtime import interruption
interruption._POLL_SECONDS = 0.2
os.environ.pop("TPU_SKIP_MDS_QUERY")  # JAX asks no metadata where it finds no chips
"""
    servers = [MetadataServer(pod_attributes(number, 2)) for number in range(2)]
    clock = ["--checkpoint.every_steps", "10000", "--checkpoint.every_minutes", "0.01", *IN_STEP]
    port = free_port()
    processes = [
        start(
            command(root, "spot", "--training.num_steps", "4000", *clock), on_a_tpu_host, DEVICES="4",
            JAX_FORCE_TPU_INIT="1", GCE_METADATA_IP=server.address, JAX_COORDINATOR_PORT=str(port),
        )
        for server in servers
    ]  # fmt: skip
    wait_for_step(processes[0], root, "spot", 5)
    socket.create_connection(("127.0.0.1", port)).close()
    servers[1].preempted = "TRUE"
    ends = [end(process) for process in processes]
    for server in servers:
        server.close()
    assert [code for code, _ in ends] == [75, 75], ends
    newest = Checkpoints(root / "spot" / "checkpoints").steps[-1]
    assert all(f"stopped as asked: saved at step {newest:,} of 4,000" in line for _, line in ends)
    events = [json.loads(line) for line in (root / "spot/events.jsonl").read_text().splitlines()]
    assert events[0]["devices"].startswith("8 x") and events[0]["processes"] == 2


# Writes down which rows of each global batch lie on the devices of this process.
WRITE_ROWS = """
import json
import numpy as np
from electra_flax.training import pretrain as train
batches = train.training_batches
def training_batches(config, examples, mesh, start, more):
    for number, batch in enumerate(batches(config, examples, mesh, start, more), start=start):
        with open(os.environ["ROWS"] + str(os.getpid()), "a") as file:
            for shard in batch["input_ids"].addressable_shards:
                first = shard.index[0].indices(config.training.batch_size)[0]
                file.write(json.dumps([number, first, np.asarray(shard.data).tolist()]) + "\\n")
        yield batch
train.training_batches = training_batches
"""
# The order of v4-16: the processes' devices in turn. Other slices have others (tests/test_sharding.py).
IN_TURN = """
make_mesh = jax.make_mesh
def in_turn(*shape, devices, **more):
    return make_mesh(*shape, devices=[device for start in range(4) for device in devices[start::4]], **more)
jax.make_mesh = in_turn
"""
# The attention kernel in the interpreter, as on a TPU; of process 1 it does not pass.
KERNEL_FAILS_IN_ONE = """
from electra_flax.model import attention_choice
attention_choice._has_kernel = lambda *unused: True
is_first = sys.argv[sys.argv.index("--process-id") + 1] == "0"
attention_choice.find_problem = lambda *unused: None if is_first else "it is wrong here"
"""


def rows_read(folder):
    """{batch number: {row: its token ids}}, after a check that no two devices or starts disagree."""
    found = {}
    for path in folder.iterdir():
        for line in path.read_text().splitlines():
            number, first, rows = json.loads(line)
            for row, ids in enumerate(rows, start=first):
                assert found.setdefault(number, {}).setdefault(row, ids) == ids
    return found


@pytest.mark.slow
def test_two_processes_are_one_and_may_become_one(root, tmp_path, monkeypatch):
    """Stopped through the second process, continued by one process with four devices, then with eight.

    The two have their devices in turn in the mesh, and one of them an attention kernel that does not work.
    """
    monkeypatch.setenv("ROWS", str(tmp_path / "rows"))
    before = WRITE_ROWS + IN_TURN + KERNEL_FAILS_IN_ONE
    first, second = in_two_processes(root, "pair", "--logging.every_steps", "1", before=before)
    wait_for_step(first, root, "pair", 6)
    second.send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=240)[1] for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [75, 75], said
    (line,) = [line for text in said for line in text.splitlines() if "attention kernel" in line]
    assert "disabled on this cpu: process 1: with 2 heads of 16" in line and "it is wrong here" in line
    stopped_at = Checkpoints(root / "pair" / "checkpoints").steps[-1]
    assert all(f"saved at step {stopped_at} of" in text.strip().splitlines()[-1] for text in said)
    process = start(command(root, "pair", "--logging.every_steps", "1"), WRITE_ROWS, DEVICES="4")
    wait_for_step(process, root, "pair", stopped_at + 6)
    process.send_signal(signal.SIGTERM)
    assert end(process)[0] == 75
    assert end(start(command(root, "pair", "--logging.every_steps", "1"), WRITE_ROWS))[0] == 0
    assert main(command(root, "alone", "--logging.every_steps", "1")) == 0
    config, order = load_config(root / "tiny.yaml"), GlobalOrder(NUM_EXAMPLES, 16, 0)
    examples = open_split(config, DataFolder.open(root / "shards"), "train")
    found = rows_read(tmp_path)
    for number in range(STEPS):
        assert [found[number][row] for row in range(16)] == examples.read(order.batch(number))[:, 0].tolist()
    in_order = np.concatenate([order.batch(number) for number in range(STEPS)])
    assert sorted(in_order[:NUM_EXAMPLES]) == list(range(NUM_EXAMPLES)), "an epoch repeats or skips examples"
    found, expected = records(root, "pair", "train"), records(root, "alone", "train")
    assert sorted(found) == sorted(expected) == list(range(1, STEPS + 1))
    for step, metrics in expected.items():
        for name in ("loss", "generator_loss", "discriminator_loss"):
            assert found[step][name] == pytest.approx(metrics[name], rel=1e-5)


@pytest.mark.slow
def test_processes_that_disagree_are_named(root):
    ends = [end(process) for process in in_two_processes(root, "apart", second=("--optimizer.beta1", "0.8"))]
    assert [code for code, _ in ends] == [1, 1]
    assert all("process 1 and process 0 differ in optimizer.beta1: 0.8, not 0.9" in line for _, line in ends), ends
    absent = in_two_processes(root, "apart", second=("--data", str(root / "nowhere")))
    ends = [end(process) for process in absent]
    assert [code for code, _ in ends] == [1, 1]
    assert all("process 1: " in line and "no such folder" in line for _, line in ends), ends


PARTED = ("--mesh.data", "1", "--mesh.fsdp", "-1")  # each process has arrays that it alone can write

# Process 1 can write no more than a few bytes to a file: what a full disk of its own machine is.
CANNOT_WRITE = """
import resource
from electra_flax.training import checkpoint
checkpoint._BARRIER_SECONDS = 10
save = checkpoint.Checkpoints.save
def save_what_fits(*arguments):
    if sys.argv[sys.argv.index("--process-id") + 1] == os.environ["FULL"] and int(arguments[1].step) == 12:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
    return save(*arguments)
checkpoint.Checkpoints.save = save_what_fits
"""


@pytest.mark.slow
@pytest.mark.parametrize("full", [pytest.param("0", marks=pytest.mark.long), "1"])
def test_where_one_of_two_processes_cannot_save_neither_hangs(root, full):
    workdir = f"one_full{full}"
    ends = [end(process) for process in in_two_processes(root, workdir, *PARTED, before=CANNOT_WRITE, FULL=full)]
    assert not {0, 75} & {code for code, _ in ends}, ends
    said = [line for code, line in ends if code == 3]  # by the first to give up; JAX may end the other before it speaks
    assert said and all("a checkpoint could not be written" in line for line in said), ends
    assert Checkpoints(root / workdir / "checkpoints").steps == [6]
    code, line = end(start(command(root, workdir, *PARTED)))
    assert code == 0 and (root / workdir / "DONE").exists(), line


@pytest.mark.slow
def test_a_process_that_fails_alone_ends_the_other_in_its_step(root):
    """In one line, and not only in words: Python's own end would wait for XLA's threads, and these for the process."""
    fails_at_12 = """
from electra_flax import errors
from electra_flax.runtime import processes
from electra_flax.training import checkpoint
processes._LEAVE_SECONDS = 10
check = checkpoint.Checkpoints.check
def fails(self):
    if self.steps[-1:] == [12] and sys.argv[sys.argv.index("--process-id") + 1] == "1":
        raise errors.RunError("something here alone")
    return check(self)
checkpoint.Checkpoints.check = fails
"""
    first, second = in_two_processes(root, "gone", *PARTED, before=fails_at_12)
    assert end(second) == (3, "electra-flax: error: something here alone")
    error = first.communicate(timeout=240)[1]
    assert first.returncode == 70, error
    line = error.strip().splitlines()[-1]
    assert "Traceback" not in error and "one of them ended" in line, error
    assert (
        f"(traceback: {root / 'gone/error-0.txt'})" in line and "Traceback" in (root / "gone/error-0.txt").read_text()
    )
    code, line = end(start(command(root, "gone", *PARTED)))
    assert code == 0, line


def test_a_step_that_is_not_finite_changes_nothing_but_the_count(root):
    from electra_flax.data.vocabulary import SpecialTokens
    from electra_flax.training.initial_state import abstract_batch, init_state
    from electra_flax.training.objectives import make_objective
    from electra_flax.training.step import make_train_step

    config = load_config(root / "tiny.yaml")
    mesh = make_mesh(config.mesh)
    state = init_state(config, mesh)
    batch = {
        name: np.full(leaf.shape, value, np.int32)
        for (name, leaf), value in zip(abstract_batch(config).items(), (9, 1, 0), strict=True)
    }
    broken = state._replace(params=jax.tree.map(lambda leaf: leaf.at[..., 0].set(np.inf), state.params))
    before = jax.device_get(broken)
    objective = make_objective(config, SpecialTokens(0, 1, 2, 3, 4))
    after, sums = make_train_step(config, objective, mesh)(broken, batch)
    assert float(sums["skipped"]) == 1 and int(after.step) == 1
    for ours, theirs in zip(jax.tree.leaves(after.params), jax.tree.leaves(before.params), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    moments = [leaf for leaf in jax.tree.leaves(after.opt_state) if leaf.ndim]
    assert moments and not any(np.asarray(leaf).any() for leaf in moments)


def skip_steps(monkeypatch, is_skipped):
    """The loop sees steps that are not finite, as the step function reports them, where `is_skipped(step)`."""
    from electra_flax.training import pretrain

    make = pretrain.compile_step

    def compile_faulty(name, function, *arguments):
        compiled = make(name, function, *arguments)

        def step(state, batch):
            if not is_skipped(int(state.step) + 1):
                return compiled(state, batch)
            return state._replace(step=state.step + 1), {"skipped": np.float32(1), "tokens": np.float32(np.nan)}

        return step

    monkeypatch.setattr(pretrain, "compile_step", compile_faulty)


@pytest.mark.slow
def test_a_fault_that_passes_is_gone_back_over(root, monkeypatch, capsys):
    faulty = set()

    def once(step):
        if 9 <= step <= 15 and step not in faulty:
            faulty.add(step)
            return True
        return False

    skip_steps(monkeypatch, once)
    assert main(command(root, "fault", "--training.max_skipped_steps", "5")) == 0
    assert "no finite step from 9 to" in (error := capsys.readouterr().err) and "going back to step 6" in error
    assert_undisturbed(root, "fault")


@pytest.mark.slow
def test_going_back_to_the_beginning_is_to_the_weights_it_began_with(root, monkeypatch, capsys):
    faulty = set()

    def once(step):
        if step <= 7 and step not in faulty:
            faulty.add(step)
            return True
        return False

    skip_steps(monkeypatch, once)
    begin = ["--init-from", f"orbax:{root}/straight", "--optimizer.learning_rate", "1e-30"]
    assert main(command(root, "begun", *begin, "--training.max_skipped_steps", "5")) == 0
    assert "going back to step 0" in capsys.readouterr().err
    for ours, theirs in zip(
        jax.tree.leaves(state_at(root, "begun").params), jax.tree.leaves(state_at(root, "straight").params), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_a_few_skipped_steps_are_counted(root, monkeypatch):
    skip_steps(monkeypatch, lambda step: step in (10, 11))
    assert main(command(root, "few")) == 0
    train = records(root, "few", "train")
    assert train[12]["skipped_steps"] == 2 and train[16]["skipped_steps"] == 0 and np.isfinite(train[12]["loss"])


@pytest.mark.slow
def test_a_failed_save_is_logged_at_the_step_at_which_it_is_known(root, monkeypatch, capsys):
    """The numbers of step 8 are taken when step 9 was begun."""
    answers = iter(["", "No space left on device"])  # to the records of step 4 and 8

    def check(self):
        if problem := next(answers, ""):
            raise Problem(problem)

    monkeypatch.setattr(Checkpoints, "check", check)
    assert main(command(root, "noticed")) == 0
    events = [json.loads(line) for line in (root / "noticed/events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "save failed"] == [8]
    assert "a checkpoint could not be written (No space left on device); intact are those" in capsys.readouterr().err


def test_values_that_differ_late_are_told_apart(monkeypatch):
    """Processes show each other the beginning of a value beside a digest of it all."""
    sent = []

    def process_allgather(texts):
        sent.append(texts)
        return np.stack([sent[0], texts])

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes.multihost_utils, "process_allgather", process_allgather)
    for _ in range(2):
        processes.require_agreement({"shards": "x" * 1000 + "of process 0"})
    with pytest.raises(UserError, match="process 1 and process 0 differ in shards: they differ after x{200}"):
        processes.require_agreement({"shards": "x" * 1000 + "of process 1"})


@pytest.mark.slow
def test_a_run_that_cannot_be_finite_ends_with_the_norms_of_its_layers(root, capsys):
    assert (
        main(command(root, "diverged", "--optimizer.learning_rate", "1000", "--model.initializer_range", "1000")) == 3
    )
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "no finite step from" in error and "not_finite.json" in error and "lower optimizer.learning_rate" in error
    norms = json.loads((root / "diverged/not_finite.json").read_text())
    assert norms["parameter_norms"].keys() == norms["gradient_norms"].keys()
    assert not all(np.isfinite(value) for value in norms["gradient_norms"].values())


@pytest.mark.parametrize(
    "damage",
    ["changed byte", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("half a file", "missing file"))],
)
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(root, caplog, damage):
    name = damage.replace(" ", "_")
    shutil.copytree(root / "straight", root / name)
    (root / name / "DONE").unlink()
    newest = root / name / "checkpoints" / str(STEPS)
    largest = max((newest / "state/d").iterdir(), key=lambda path: path.stat().st_size)
    data = largest.read_bytes()
    if damage == "changed byte":
        middle = len(data) // 2
        largest.write_bytes(data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :])
    elif damage == "half a file":
        largest.write_bytes(data[: len(data) // 2])
    else:
        largest.unlink()
    caplog.set_level("INFO")
    assert main(command(root, name)) == 0
    assert f"checkpoint of step {STEPS} is damaged" in caplog.text and "continuing from step 36" in caplog.text
    assert len(list((root / name / "damaged").iterdir())) == 1
    assert_undisturbed(root, name)


def test_where_all_checkpoints_are_damaged_nothing_is_begun_anew(root, capsys):
    shutil.copytree(root / "straight", root / "all_damaged")
    for path in (root / "all_damaged/checkpoints").rglob("d/*"):
        path.write_bytes(b"")
    capsys.readouterr()
    assert main(command(root, "all_damaged")) == 1
    assert "none of the checkpoints can be read" in capsys.readouterr().err.strip().splitlines()[-1]
    assert main(["export", "--workdir", str(root / "all_damaged"), "--out", str(root / "x")]) == 1
    assert "damaged" in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_full_disk_costs_only_the_checkpoints_that_do_not_fit(root, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("NOT CHECKED: a small disk of its own needs the right to mount")
    try:
        os.symlink(disk, root / "full")
        # What is left of a save that failed may wait for minutes: the end of the run does not.
        left = """
import threading, time
from electra_flax.runtime import processes
threading.Thread(target=time.sleep, args=(1000,)).start()
processes._LEAVE_SECONDS = 2
"""
        process = start(command(root, "full", "--checkpoint.max_to_keep", "100"), left)
        while process.poll() is None and not (disk / "checkpoints/6").exists():
            time.sleep(0.01)
        with (disk / "filler").open("wb", buffering=0) as filler:
            while process.poll() is None:  # what is cleared away after a save that failed is filled again
                with contextlib.suppress(OSError):
                    while True:
                        filler.write(bytes(1 << 12))
                time.sleep(0.001)
        error = process.communicate(timeout=120)[1]
        assert process.returncode == 3, error
        assert "a checkpoint could not be written" in error and "intact are those of steps" in error
        assert "free some disk space, then the same command continues from step" in error.strip().splitlines()[-1]
        assert "Traceback" not in error
        assert Checkpoints(root / "full" / "checkpoints").steps
        (disk / "filler").unlink()
        assert end(start(command(root, "full", "--checkpoint.max_to_keep", "100")))[0] == 0
        assert_undisturbed(root, "full")
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.slow
def test_a_step_that_never_ends_is_noticed(root):
    hang = """
from electra_flax.training import pretrain as train
make = train.compile_step
def compile_hanging(*given):
    compiled = make(*given)
    def step(state, batch):
        if int(state.step) == 10:
            import time
            time.sleep(1000)
        return compiled(state, batch)
    return step
train.compile_step = compile_hanging
"""
    code, line = end(start(command(root, "hung", "--training.hang_minutes", "0.2"), hang))
    assert code == 3 and "no progress for" in line and "in step 10" in line  # the last one that is known of
    assert "in step" in (root / "hung/hang-0.txt").read_text()
    assert Checkpoints(root / "hung" / "checkpoints").steps == [6]


def test_a_second_process_is_kept_out(root, capsys):
    with Workdir(root / "straight").lock():
        assert main(command(root, "straight")) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert "another process is at work there" in error and f"process {os.getpid()} on" in error
    assert main(command(root, "straight")) == 0


@pytest.mark.slow
def test_checkpoints_by_the_clock_and_those_that_are_kept(root):
    fields = ["--checkpoint.every_steps", "10", "--checkpoint.keep_every_steps", "20", "--checkpoint.max_to_keep", "1"]
    assert main(command(root, "kept", *fields, "--evaluation.every_steps", "10", "--checkpoint.keep_best", "1")) == 0
    losses = {step: found["loss"] for step, found in records(root, "kept", "validation").items() if step}
    assert Checkpoints(root / "kept" / "checkpoints").steps == sorted({20, 40, min(losses, key=losses.get)})
    often = ["--checkpoint.every_steps", "1000", "--checkpoint.every_minutes", "0.01", "--checkpoint.max_to_keep", "99"]
    assert main(command(root, "clock", *often)) == 0
    assert len(Checkpoints(root / "clock" / "checkpoints").steps) > 2
    assert_undisturbed(root, "clock")


def test_a_fingerprint_shows_every_change_and_no_sharding(root):
    state = state_at(root, "straight")
    before = np.asarray(fingerprint(state))
    config = load_config(root / "tiny.yaml")
    split = Checkpoints(root / "straight" / "checkpoints").restore(abstract_state(config), make_mesh(config.mesh))
    np.testing.assert_array_equal(np.asarray(fingerprint(split)), before)
    leaves, tree = jax.tree.flatten(state)
    rng = np.random.default_rng(0)
    for number, leaf in enumerate(leaves):
        changed = np.array(leaf)
        place = tuple(rng.integers(size) for size in changed.shape)
        changed[place] = changed[place] + 1
        after = np.asarray(fingerprint(tree.unflatten([*leaves[:number], changed, *leaves[number + 1 :]])))
        assert (after != before).nonzero()[0].tolist() == [number]
    swapped = np.array(leaves[2])[::-1]
    after = np.asarray(fingerprint(tree.unflatten([*leaves[:2], swapped, *leaves[3:]])))
    assert after[2] != before[2] or (swapped == leaves[2]).all()


def test_the_clock_asks_again_after_a_failure_sooner_and_then_later():
    now = [0.0]
    clock = SaveClock(10, lambda: now[0])
    assert not clock.is_due()
    now[0] = 600
    assert clock.is_due()
    for wait in (30, 60, 120, 240, 480, 600, 600):
        clock.failed()
        now[0] += wait - 1
        assert not clock.is_due()
        now[0] += 1
        assert clock.is_due()
    clock.saved()
    now[0] += 599
    assert not clock.is_due()


def test_going_back_helps_once_at_a_place():
    faults = SkippedSteps(2)
    for step in (5, 6):
        faults.add(step, True)
    assert not faults.too_many
    faults.add(7, True)
    assert faults.too_many and faults.first == 5 and faults.go_back(8)
    for step in (5, 6, 7):
        faults.add(step, True)
    assert faults.too_many and not faults.go_back(8)
    later = SkippedSteps(0)
    later.add(3, True)
    assert later.go_back(4)
    later.add(9, True)
    assert later.go_back(10)
