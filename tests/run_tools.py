"""A tiny run on the sample corpus, in processes of its own."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from once import copied_once
from orbax.checkpoint.utils import checkpoint_steps

import electra_flax
from data_prep.cli import main as data_main
from electra_flax.commands.cli import main
from electra_flax.config.loading import load_config, resolved
from electra_flax.model.sharding import make_mesh
from electra_flax.storage.workdir import Workdir
from electra_flax.training.checkpoint import Checkpoints
from electra_flax.training.initial_state import abstract_state

STEPS = 40
# For runs of several processes: where one finds its programs and the other compiles them, they meet too late (Gloo
# waits 30 s).
IN_STEP = ("--training.compilation_cache", "")
_COMPILED = os.environ["JAX_COMPILATION_CACHE_DIR"]  # conftest.py

TINY = f"""
model: {{vocab_size: 600, embedding_size: 16, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2,
        intermediate_size: 64, max_position_embeddings: 64}}
generator: {{hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 1, intermediate_size: 64}}
data: {{max_seq_length: 32}}
training: {{batch_size: 16, num_steps: 6, compute_dtype: float32, compilation_cache: {_COMPILED}}}
optimizer: {{learning_rate: 1.0e-3, warmup_steps: 2}}
evaluation: {{every_steps: 3, max_batches: 2}}
checkpoint: {{every_steps: 3}}
logging: {{every_steps: 1}}
"""

# Runs a command as a user's process would, on simulated devices and with the tests' compiler settings.
COMMAND = """
import os, sys
import conftest
import jax
jax.config.update("jax_num_cpu_devices", int(os.environ.get("DEVICES", 8)))
from electra_flax.commands import cli
{before}
sys.exit(cli.main())
"""
# What `before` may be: the process ends once its first checkpoint is there.
DIE_ONCE_SAVED = """
from electra_flax.training.checkpoint import Checkpoints
save = Checkpoints.save
def save_and_die(self, *given):
    save(self, *given)
    self.wait()
    os._exit(9)
Checkpoints.save = save_and_die
"""


def make_shards(root: Path, corpus: Path) -> None:
    """root/vocab, root/shards and root/tiny.yaml."""
    copied_once(root, "shards", lambda folder: fill_with_shards(folder, corpus))


def fill_with_shards(root: Path, corpus: Path) -> None:
    vocab, shards = ["--vocab", str(root / "vocab")], ["--out", str(root / "shards")]
    source = ["--corpus", str(corpus)]
    assert data_main(["vocab", *source, "--out", str(root / "vocab"), "--size", "600", "--unused", "10"]) == 0
    split = ["--validation-fraction", "0.1", "--max-seq-length", "32"]
    assert data_main(["shard", *source, *vocab, *shards, *split, "--workers", "1"]) == 0
    (root / "tiny.yaml").write_text(TINY)


def place(root: Path, name: str) -> str:
    """A folder in `root`, or on gs://."""
    return name if name.startswith("gs://") else str(root / name)


def small_files(root: Path, workdir: str) -> Path:
    """The files of a workdir; of one on gs://, a copy."""
    work = Workdir(place(root, workdir)).pull()
    _copies.append(work)
    return work.folder


_copies: list[Workdir] = []  # they end with their objects


def pretrain(root: Path, workdir: str, *extra: str, data: str = "shards") -> list[str]:
    """The arguments of electra-flax."""
    paths = ["--config", str(root / "tiny.yaml"), "--data", place(root, data), "--workdir", place(root, workdir)]
    return ["pretrain", *paths, *extra]


def start(arguments: list[str], before: str = "", **environment: str) -> subprocess.Popen:
    """The command in a process of its own; `before` is Python run in it first."""
    command = [sys.executable, "-c", COMMAND.format(before=before), *arguments]
    here = Path(__file__).parent
    process = subprocess.Popen(command, cwd=here, env={**os.environ, **environment}, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    started.append(process)
    return process


started: list[subprocess.Popen] = []  # conftest.py ends what a failed test left


def command(root, workdir, *extra, data="shards"):
    """A run of STEPS steps."""
    fields = {
        "training.num_steps": str(STEPS), "checkpoint.every_steps": "6",
        "evaluation.every_steps": "15", "logging.every_steps": "4",
    }  # fmt: skip
    given = [part for name, value in fields.items() for part in (f"--{name}", value)]
    return pretrain(root, workdir, *given, *extra, data=data)


def assert_undisturbed(root, workdir):
    """Its weights, optimizer and numbers are those of root/straight."""
    for ours, theirs in zip(
        jax.tree.leaves(state_at(root, "straight")), jax.tree.leaves(state_at(root, workdir)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    for split in ("train", "validation"):
        assert records(root, workdir, split) == records(root, "straight", split)
    assert (small_files(root, workdir) / "DONE").exists()


def wait_for_step(process, root, workdir, step):
    """Until a checkpoint of `step` or later is there."""
    folder = Workdir(place(root, workdir)).checkpoints
    for _ in range(6000):  # two processes compile on a busy machine
        assert process.poll() is None, process.communicate()[1]
        if folder.exists() and max(checkpoint_steps(folder), default=-1) >= step:
            return
        time.sleep(0.05)
    raise AssertionError(f"no checkpoint of step {step}")


def end(process):
    """Its exit code and last line."""
    error = process.communicate(timeout=240)[1]  # a hang, also on a busy machine through faults
    return process.returncode, (error.strip().splitlines() or [""])[-1]


def run_with_kills(begin, kills, seconds, rng):
    """Starts `begin()` again and again until it ends by itself, with SIGKILL after a time drawn from `seconds`.

    At most `kills` times; returns how often.
    """
    for killed in range(kills + 1):
        process = begin()
        try:
            process.wait(rng.uniform(*seconds) if killed < kills else 300)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            assert killed < kills, "it does not end"
            continue
        code, line = end(process)
        assert code == 0, line
        return killed
    raise AssertionError


def run_with_ctrl_c(root, workdir, times, seconds, rng):
    """Starts a run of STEPS steps again and again until it ends by itself, with SIGINT after a time drawn from
    `seconds`, at most `times` times; returns how often. What was done stays done at each of them."""
    for asked in range(times + 1):
        process = start(command(root, workdir))
        try:
            process.wait(rng.uniform(*seconds) if asked < times else 300)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=240)[1].strip()
        line = (error.splitlines() or [""])[-1]
        if process.returncode == 0:
            return asked
        done = re.findall(r"^step (\d+) (?:train|held-out)", error, re.MULTILINE)
        if line == "electra-flax: interrupted":  # while Python was being imported
            assert process.returncode == 130 and not done, error
            continue
        assert process.returncode == 75 and "(Ctrl-C again: stop at once)" in error, error
        folder = Workdir(place(root, workdir)).checkpoints
        newest = max(checkpoint_steps(folder), default=0) if folder.exists() else 0
        assert newest >= max(map(int, done), default=0), error
        saved = re.search(r"stopped as asked(?:: saved)? at step (\d+) of", line)
        assert int(saved[1]) == newest if saved else "before the first step" in line, error
    raise AssertionError("it does not end")


def in_two_processes(root, workdir, *extra, second=(), data="shards", before="", **environment):
    """A run of STEPS steps as two processes of four devices each."""
    return start_pair(command(root, workdir, *IN_STEP, *extra, data=data), second, before, **environment)


def free_port():
    """One that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_pair(arguments, second=(), before="", **environment):
    """The command as two processes of four devices each; `second` are more arguments of the second one."""
    group = ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", "2"]
    return [
        start([*arguments, *group, "--process-id", str(number), *more], before, DEVICES="4", **environment)
        for number, more in enumerate(((), second))
    ]


def state_at(root: Path, workdir: str, step: int | None = None):
    config = load_config(root / "tiny.yaml")
    return jax.device_get(
        Checkpoints(Workdir(place(root, workdir)).checkpoints).restore(
            abstract_state(config), make_mesh(config.mesh), step
        )
    )


# What a clock says.
TIMING = ("time", "tokens_per_sec", "steps_per_sec", "input_wait", "checkpoint_seconds")


def records(root: Path, workdir: str, split: str) -> dict[int, dict]:
    """The records of metrics.jsonl by step, without what a clock says."""
    lines = (small_files(root, workdir) / "metrics.jsonl").read_text().splitlines()
    found = [record for record in map(json.loads, lines) if record["split"] == split]
    by_step = {record["step"]: {k: v for k, v in record.items() if k not in TIMING} for record in found}
    assert len(by_step) == len(found), "a step was written twice"
    return by_step


def refusal(capsys, arguments):
    """The one line with which a command ends that its user can mend."""
    capsys.readouterr()
    code = main(arguments)
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("electra-flax: error:")]
    assert code == 1 and len(error) == 1
    return error[0]


def check_it_goes_on(folder: Path, fields: dict, check) -> tuple:
    """Train "straight", and "cut" in the middle by `check`(step, metrics) and on; both must be the same.

    Returns the metrics held out, and the state.
    """

    def train(workdir, callbacks=()):
        return electra_flax.pretrain(
            "tiny.yaml", "shards", workdir, overrides=fields, callbacks=callbacks, progress=False
        )

    class Stop(electra_flax.Callbacks):
        def on_metrics(self, step, metrics):
            check(step, metrics)
            if step == 4:
                raise KeyboardInterrupt

    straight = train("straight")
    with pytest.raises(KeyboardInterrupt):
        train("cut", Stop())
    assert Checkpoints(folder / "cut/checkpoints").steps == [3]
    assert train("cut").held_out == straight.held_out
    config = resolved("tiny.yaml", fields)
    whole, continued = (
        Checkpoints(folder / workdir / "checkpoints").restore(abstract_state(config), make_mesh(config.mesh), 6)
        for workdir in ("straight", "cut")
    )
    for ours, theirs in zip(jax.tree.leaves(whole), jax.tree.leaves(continued), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert records(folder, "straight", "train") == records(folder, "cut", "train")
    return straight.held_out, whole
