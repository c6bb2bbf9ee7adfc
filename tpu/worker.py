"""Runs on every worker of a TPU, under systemd: checks the devices, trains, exports, and tells the bucket how it is.

Not part of the package: startup.sh brings it here beside the configuration. What it tells lies in status/worker-N.json
and logs/worker-N.log of the run. Exit codes are the trainer's (1 and 2: systemd does not start it again; the machine
is another's business then: tpu/decisions.py).
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from electra_flax.errors import UserError
from electra_flax.files import parse_lines, read_json, recall, write_whole
from electra_flax.runtime import status as trainer_status
from electra_flax.runtime.ending import run_command
from electra_flax.storage.bucket import RemoteFolder

PLACE = Path(os.environ.get("ELECTRA_PLACE", "/opt/electra-flax"))
RUN = os.environ["ELECTRA_RUN"]
CODE = Path(os.environ["ELECTRA_CODE"])
WORKER, WORKERS = int(os.environ["ELECTRA_WORKER"]), int(os.environ["ELECTRA_WORKERS"])
BEAT_SECONDS = float(os.environ.get("ELECTRA_BEAT_SECONDS", "30"))
LOG, FAILURES, TOLD = PLACE / "worker.log", PLACE / "failures.json", PLACE / "trainer.json"
MOST_FAILURES = 3
"""In a row, without a step gained between them."""
FINAL = (1, 2)
"""Exit codes of the trainer after which the same command would fail again: the run is stopped."""
SAVED = 75
CHECK_SECONDS, CHECKS = 600, 3
_BIN = Path(sys.executable).parent

# All hosts of a pod, and a single one, see all devices, each device here computes, and all of them add up what each
# holds; or it is no machine to train on.
_CHECK = """
import os, sys
from electra_flax.runtime import processes
processes.use_cpu_where_there_is_nothing_else()
processes.join(None)
import jax, numpy
from jax.sharding import Mesh, NamedSharding, PartitionSpec
want, found = int(os.environ["ELECTRA_DEVICES"]), jax.device_count()
if found != want:
    sys.exit(f"{found} devices, expected {want}")
product = jax.jit(lambda x: (x @ x).sum())
for device in jax.local_devices():
    value = float(product(jax.device_put(numpy.ones((128, 128), numpy.float32), device)))
    if value != 128.0**3:
        sys.exit(f"a matrix product on {device} came out as {value}")
mesh, numbers = Mesh(jax.devices(), "all"), numpy.arange(1, want + 1, dtype=numpy.float32)
spread = jax.make_array_from_callback(
    (want,), NamedSharding(mesh, PartitionSpec("all")), lambda place: numbers[place])
value = float(jax.jit(lambda x: x.sum(), out_shardings=NamedSharding(mesh, PartitionSpec()))(spread))
if value != numbers.sum():
    sys.exit(f"a sum over all devices came out as {value}, expected {numbers.sum()}")
"""


@dataclass
class Run:
    """run.json, as the launcher wrote it."""

    data: str
    long_data: str
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Failures:
    """failures.json, of the trainer on this machine."""

    step: int
    """The furthest that it reached."""
    in_a_row: int
    """Without a step gained."""


class Place(NamedTuple):
    """Where the run is, as worker 0 knows it."""

    began: int
    """The step that the last attempt began from."""
    step: int
    """The furthest reached on this machine."""


class Teller:
    """Keeps the bucket up to date from a thread: status, log, and the wish to stop that may lie there."""

    def __init__(self) -> None:
        self._bucket, self._others = RemoteFolder(RUN), RemoteFolder(f"{RUN}/status")
        self._status: dict[str, Any] = {"phase": "checking"}
        if past := last_failures():
            self._status["step"] = past.step
        self._lock, self._sending = threading.Lock(), threading.Lock()
        self._sent = 0
        self.stop_requested = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def tell(self, phase: str, **details: Any) -> None:
        """Tell a new phase; wait until the bucket knows."""
        with self._lock:
            self._status.update(phase=phase, **details)
        self._send()

    def _note(self) -> dict[str, Any]:
        """Return the status, with what the trainer tells of its steps; what is done again is no new step."""
        told = recall(TOLD, dict[str, Any]) or {}
        with self._lock:
            if told:
                self._status.update(began=told["began"], step=max(told["step"], self._status.get("step", 0)))
            return dict(self._status)

    def place(self) -> Place | None:
        """Return where the run is; None where worker 0, which counts the steps, cannot be asked."""
        status = self._note() if WORKER == 0 else self._statuses().get(0)
        return Place(status.get("began", 0), status.get("step", 0)) if status else None

    def wait_for_others(self) -> None:
        """Wait until every worker of this machine has installed: they look for each other for minutes only."""
        while True:
            if len([each for each in self._statuses().values() if each["phase"] != "installing"]) >= WORKERS:
                return
            time.sleep(BEAT_SECONDS / 3)

    def _statuses(self) -> dict[int, dict[str, Any]]:
        """Return what each worker of this machine last said; nothing if the bucket is away: the beat says so."""
        try:
            blobs = self._others.files().values()
            texts = [self._others.try_to("be read", blob.download_as_bytes) for blob in blobs]
        except UserError:
            return {}
        found = [status for text in texts for status in parse_lines(text, dict[str, Any])[0]]
        return {
            status["worker"]: status
            for status in found
            if status.get("machine") == os.environ["ELECTRA_MACHINE"] and {"worker", "phase"} <= set(status)
        }

    def _beat(self) -> None:
        while True:
            self._send()
            time.sleep(BEAT_SECONDS)

    def _send(self) -> None:
        try:
            with self._sending:
                status = {
                    "machine": os.environ["ELECTRA_MACHINE"], "worker": WORKER, **self._note(), "time": time.time(),
                }  # fmt: skip
                path = PLACE / "status.json"
                write_whole(path, json.dumps(status, ensure_ascii=False) + "\n")
                self._bucket.upload(path, f"status/worker-{WORKER}.json")
            if LOG.exists() and LOG.stat().st_size != self._sent:
                self._sent = LOG.stat().st_size  # before: what comes while it is sent makes it go again
                self._bucket.upload(LOG, f"logs/worker-{WORKER}.log")
            wish = self._bucket.blob("wish")
            if self._bucket.try_to("be read", lambda: wish.exists() and wish.download_as_text().strip() == "stop"):
                self.stop_requested.set()
        except UserError as error:  # the next beat tries again
            print(f"worker: cannot write to the bucket: {error}", file=sys.stderr, flush=True)


def main() -> int:
    run = read_json(CODE / "run.json", Run, "the launcher writes it")
    environment = {**os.environ, **run.environment}
    teller = Teller()
    if teller.stop_requested.is_set():
        teller.tell("stopped")
        return 0
    teller.tell("checking")
    teller.wait_for_others()
    if problem := check_devices(environment):
        teller.tell("sick", message=problem)
        return 1
    teller.tell("training", exit_code=None, message="")
    return ended(teller, *train(teller, run, environment), environment)


def ended(teller: Teller, code: int, last: str, environment: dict[str, str]) -> int:
    """Tell what becomes of a trainer that ended with `code` and the line `last`; return what systemd shall go by."""
    if code == 0:
        return finish(teller, environment)
    if code == SAVED:
        teller.tell("stopped" if teller.stop_requested.is_set() else "preempted", exit_code=code, message=last)
        return 0 if teller.stop_requested.is_set() else code
    return failed(teller, code, last)


def failed(teller: Teller, code: int, last: str) -> int:
    """Do what `ended` does, of a trainer or an export that failed."""
    if code in FINAL:
        teller.tell("failed", exit_code=code, message=last)
        return code
    # A crash may have been an accident of the machine's: the same command continues from its last save. Several in a
    # row without a step gained are none, and each costs the start of a trainer.
    gives_up = failures_in_a_row(teller) >= MOST_FAILURES
    teller.tell("gave up" if gives_up else "crashed", exit_code=code, message=last)
    return 1 if gives_up else 3


def check_devices(environment: dict[str, str]) -> str:
    """Return what is wrong with the devices, "" where nothing is."""
    problem = ""
    for attempt in range(CHECKS):  # of a pod, the others may need minutes to see that one was away
        time.sleep(2 * BEAT_SECONDS if attempt else 0)
        try:
            done = subprocess.run(
                [sys.executable, "-c", _CHECK], env=environment, capture_output=True, text=True, errors="replace",
                timeout=CHECK_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            problem = f"the devices did not answer within {CHECK_SECONDS // 60} minutes"
            continue
        if done.returncode == 0:
            return ""
        problem = (done.stderr.strip().splitlines() or [f"the device check ended with exit code {done.returncode}"])[-1]
        with LOG.open("a", encoding="utf-8") as log:
            log.write(done.stderr)
    return problem


def train(teller: Teller, run: Run, environment: dict[str, str]) -> tuple[int, str]:
    """Run the trainer to its end; return its exit code and last line."""
    command = [
        str(_BIN / "electra-flax"), "pretrain", "--config", str(CODE / "config.yaml"), "--data", run.data,
        "--workdir", f"{RUN}/workdir", *(["--long-data", run.long_data] if run.long_data else []),
    ]  # fmt: skip
    TOLD.unlink(missing_ok=True)  # of the attempt before: its steps would be taken for those of this one
    environment = {**environment, trainer_status.VARIABLE: str(TOLD)}
    trainer = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    signal.signal(signal.SIGTERM, lambda number, frame: trainer.send_signal(signal.SIGTERM))

    def stop_when_asked() -> None:
        teller.stop_requested.wait()
        trainer.send_signal(signal.SIGTERM)

    threading.Thread(target=stop_when_asked, daemon=True).start()
    last = ""
    assert trainer.stdout is not None
    with LOG.open("a", encoding="utf-8") as log:
        for line in trainer.stdout:
            log.write(line)
            log.flush()
            sys.stdout.write(line)
            last = line.strip() or last
    return trainer.wait(), last


def last_failures() -> Failures | None:
    """Return what is known of the attempts on this machine before this one."""
    if not FAILURES.exists():
        return None
    try:
        return read_json(FAILURES, Failures, "it is begun anew")
    except UserError as error:  # no reason not to train
        print(f"worker: {error}", file=sys.stderr, flush=True)
        return None


def failures_in_a_row(teller: Teller) -> int:
    """Return how often in a row the trainer failed here without a step gained: 0 where it has gained one this time."""
    past = last_failures() or Failures(0, 0)
    place = teller.place() or Place(past.step, past.step)  # worker 0 cannot be asked: no word of a step
    # Further than any attempt on this machine came, and than where this one began: a step that is made again, or that
    # another machine had made, is none gained.
    has_gained = place.step > max(past.step, place.began)
    now = Failures(max(place.step, past.step), 0 if has_gained else past.in_a_row + 1)
    write_whole(FAILURES, json.dumps({"step": now.step, "in_a_row": now.in_a_row}) + "\n")
    return now.in_a_row


def finish(teller: Teller, environment: dict[str, str]) -> int:
    """Export the models on worker 0 and bring them to the bucket. On the CPU, whose arithmetic they are compared in."""
    if WORKER != 0:
        teller.tell("done")
        return 0
    teller.tell("exporting")
    out = PLACE / "models"
    command = [str(_BIN / "electra-flax"), "export", "--workdir", f"{RUN}/workdir", "--out", str(out)]
    environment = {name: value for name, value in environment.items() if name != "JAX_FORCE_TPU_INIT"}
    environment["JAX_PLATFORMS"] = "cpu"
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment, check=False)
    with LOG.open("a", encoding="utf-8") as log:
        log.write(done.stdout + done.stderr)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        return failed(teller, done.returncode, f"export: {lines[-1] if lines else 'no message'}")
    bucket = RemoteFolder(RUN)
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        bucket.upload(path, f"models/{path.relative_to(out)}")
    teller.tell("done", exit_code=0)
    return 0


if __name__ == "__main__":
    sys.exit(run_command("worker", main))
