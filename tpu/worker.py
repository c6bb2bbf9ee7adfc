"""Runs on every worker of a TPU, under systemd: checks the devices, trains, exports, and tells the bucket how it is.

Not part of the package: startup.sh brings it here beside the configuration. What it tells lies in status/worker-N.json
and logs/worker-N.log of the run. Exit codes are the trainer's (1 and 2: systemd does not start it again).
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from electra_flax.errors import UserError
from electra_flax.files import write_whole
from electra_flax.storage import RemoteFolder

PLACE = Path(os.environ.get("ELECTRA_PLACE", "/opt/electra-flax"))
RUN = os.environ["ELECTRA_RUN"]
CODE = Path(os.environ["ELECTRA_CODE"])
WORKER, WORKERS = int(os.environ["ELECTRA_WORKER"]), int(os.environ["ELECTRA_WORKERS"])
BEAT_SECONDS = float(os.environ.get("ELECTRA_BEAT_SECONDS", "30"))
LOG, FAILURES = PLACE / "worker.log", PLACE / "failures.json"
MOST_FAILURES, WITHIN_SECONDS = 8, 3600
CHECK_SECONDS, CHECKS = 600, 3
_BIN = Path(sys.executable).parent
# "step 120 train: loss 41.3, ..." as the trainer prints it.
_STEP = re.compile(r"\bstep (\d+) train: .*?\bloss ([\d.]+|nan)")
_DONE_STEP = re.compile(r"continuing from step (\d+)")

# Both hosts of a pod, and a single one, see all devices, or it is no machine to train on.
_CHECK = """
import os, sys
from electra_flax import processes
processes.use_cpu_where_there_is_nothing_else()
processes.join(None)
import jax
want, found = int(os.environ["ELECTRA_DEVICES"]), jax.device_count()
if found != want:
    sys.exit(f"{found} devices, expected {want}")
value = float(jax.jit(lambda x: (x @ x).sum())(jax.numpy.ones((128, 128))))
if value != 128.0**3:
    sys.exit(f"a matrix product came out as {value}")
"""


class Teller:
    """Keeps the bucket up to date from a thread: status, log, and the wish to stop that may lie there."""

    def __init__(self) -> None:
        self._bucket, self._others = RemoteFolder(RUN), RemoteFolder(f"{RUN}/status")
        self._status: dict[str, Any] = {"phase": "checking"}
        self._lock = threading.Lock()
        self._sent = 0
        self.stop_requested = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def tell(self, phase: str, **details: Any) -> None:
        """A new phase; waits until the bucket knows."""
        with self._lock:
            self._status.update(phase=phase, **details)
        self._send()

    def note(self, line: str) -> None:
        """Takes step and loss out of a line of the trainer's."""
        if match := _STEP.search(line):
            with self._lock:
                self._status.update(step=int(match[1]), loss=float(match[2]))
        elif match := _DONE_STEP.search(line):
            with self._lock:
                self._status.update(step=int(match[1]))

    def wait_for_others(self) -> None:
        """Until every worker of this machine has installed what it needs: they find each other for minutes only."""
        while True:
            try:
                found = self._others.files().values()
                texts = [json.loads(self._others.try_to("be read", blob.download_as_bytes)) for blob in found]
            except UserError:
                texts = []  # the beat says so
            here = [text for text in texts if text["machine"] == os.environ["ELECTRA_MACHINE"]]
            if len([text for text in here if text["phase"] != "installing"]) >= WORKERS:
                return
            time.sleep(BEAT_SECONDS / 3)

    def _beat(self) -> None:
        while True:
            self._send()
            time.sleep(BEAT_SECONDS)

    def _send(self) -> None:
        try:
            with self._lock:
                status = {
                    "machine": os.environ["ELECTRA_MACHINE"], "worker": WORKER, **self._status, "time": time.time(),
                }  # fmt: skip
                path = PLACE / "status.json"
                write_whole(path, json.dumps(status, ensure_ascii=False) + "\n")
                self._bucket.upload(path, f"status/worker-{WORKER}.json")
            if LOG.exists() and LOG.stat().st_size != self._sent:
                self._sent = LOG.stat().st_size
                self._bucket.upload(LOG, f"logs/worker-{WORKER}.log")
            wish = self._bucket.blob("wish")
            if self._bucket.try_to("be read", lambda: wish.exists() and wish.download_as_text().strip() == "stop"):
                self.stop_requested.set()
        except UserError as error:  # the next beat tries again
            print(f"worker: the bucket cannot be told: {error}", file=sys.stderr, flush=True)


def main() -> int:
    teller = Teller()
    if teller.stop_requested.is_set():
        teller.tell("stopped")
        return 0
    teller.tell("checking")
    teller.wait_for_others()
    if problem := check_devices():
        teller.tell("sick", message=problem)
        return 1
    teller.tell("training", exit_code=None, message="")
    code, last = train(teller)
    if code == 0:
        return finish(teller)
    if code == 75 and teller.stop_requested.is_set():
        teller.tell("stopped", exit_code=code)
        return 0
    if code in (1, 2, 75):
        teller.tell("preempted" if code == 75 else "failed", exit_code=code, message=last)
        return code
    gives_up = failures() >= MOST_FAILURES
    teller.tell("gave up" if gives_up else "crashed", exit_code=code, message=last)
    return 1 if gives_up else 3


def check_devices() -> str:
    """What is wrong with them; "" where nothing is. Of a pod, the others may need minutes to see that one was away."""
    problem = ""
    for attempt in range(CHECKS):
        time.sleep(2 * BEAT_SECONDS if attempt else 0)
        try:
            done = subprocess.run(
                [sys.executable, "-c", _CHECK], capture_output=True, text=True, timeout=CHECK_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            problem = f"the devices did not answer within {CHECK_SECONDS // 60} minutes"
            continue
        if done.returncode == 0:
            return ""
        problem = (done.stderr.strip().splitlines() or [f"the check of the devices ended with {done.returncode}"])[-1]
        with LOG.open("a", encoding="utf-8") as log:
            log.write(done.stderr)
    return problem


def train(teller: Teller) -> tuple[int, str]:
    """Runs the trainer to its end; its exit code and last line."""
    run = json.loads((CODE / "run.json").read_text(encoding="utf-8"))
    command = [
        str(_BIN / "electra-flax"), "pretrain", "--config", str(CODE / "config.yaml"), "--data", run["data"],
        "--workdir", f"{RUN}/workdir", *(["--long-data", run["long_data"]] if run["long_data"] else []),
    ]  # fmt: skip
    trainer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
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
            teller.note(line)
            last = line.strip() or last
    return trainer.wait(), last


def failures() -> int:
    """How often the trainer has failed here within the hour, this time included."""
    now = time.time()
    times = json.loads(FAILURES.read_text()) if FAILURES.exists() else []
    times = [when for when in times if now - when < WITHIN_SECONDS] + [now]
    FAILURES.write_text(json.dumps(times))
    return len(times)


def finish(teller: Teller) -> int:
    """Worker 0 exports the models, on the CPU, whose arithmetic they are compared in, and brings them to the bucket."""
    if WORKER != 0:
        teller.tell("done")
        return 0
    teller.tell("exporting")
    out = PLACE / "models"
    command = [str(_BIN / "electra-flax"), "export", "--workdir", f"{RUN}/workdir", "--out", str(out)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment.pop("JAX_FORCE_TPU_INIT", None)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    with LOG.open("a", encoding="utf-8") as log:
        log.write(done.stdout + done.stderr)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        teller.tell("failed", exit_code=done.returncode, message=f"export: {lines[-1] if lines else 'no message'}")
        return done.returncode
    bucket = RemoteFolder(RUN)
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        bucket.upload(path, f"models/{path.relative_to(out)}")
    teller.tell("done", exit_code=0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
