"""worker.py says in the bucket what becomes of the trainer, and tells systemd whether to start it again."""

import importlib
import json
import os
import site
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

WORKER = Path(__file__).parents[1] / "tpu/worker.py"
# Instead of the trainer: says what it was told to say, ends as it was told to, saves when it is asked to end.
TRAINER = """#!/bin/bash
if [ "$1" = export ]; then
  [ -z "$BAD_EXPORT" ] || { echo "error: no room" >&2; exit 1; }
  mkdir -p "$5" && echo x >"$5/x"
  exit 0
fi
trap 'echo saved; exit 75' TERM
if [ "$ELECTRA_WORKER" = 0 ]; then printf '{"began": %s, "step": 7}' "${BEGAN-0}" >"$ELECTRA_FLAX_STATUS"; fi
echo "$LIBTPU_INIT_ARGS $JAX_COORDINATOR_PORT" >"$ELECTRA_PLACE/environment-seen"
echo "the last line"
if [ "$CODE" = 9 ]; then kill -KILL $$; fi
if [ "$CODE" = forever ]; then while true; do sleep 0.1; done; fi
exit "$CODE"
"""


# The check of the devices is a `python -c`.
SITECUSTOMIZE = """
import os, sys
if "-c" in sys.orig_argv:
    with open(os.environ["ELECTRA_PLACE"] + "/environment-of-check", "w") as file:
        print(os.environ.get("LIBTPU_INIT_ARGS"), os.environ.get("JAX_COORDINATOR_PORT"), file=file)
"""


@pytest.fixture
def worker(tmp_path, google_storage):
    """Starts worker.py; its environment may be added to."""
    place = tmp_path / "place"
    (tmp_path / "bin").mkdir()
    place.mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    (tmp_path / "bin/electra-flax").write_text(TRAINER)
    (tmp_path / "bin/electra-flax").chmod(0o755)
    (place / "run.json").write_text(json.dumps({
        "data": "gs://bucket/shards", "long_data": "",
        "environment": {"LIBTPU_INIT_ARGS": "--a=b --c='d e'"},
    }))  # fmt: skip
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE)

    def start(**more):
        environment = {
            **os.environ, **google_storage, "JAX_NUM_CPU_DEVICES": "2",
            "PYTHONPATH": ":".join([str(tmp_path), str(WORKER.parents[1]), *site.getsitepackages()]),
            "JAX_COORDINATOR_PORT": "8476",  # as the unit's environment says: test_tpu_startup.py
            "ELECTRA_PLACE": str(place), "ELECTRA_CODE": str(place), "ELECTRA_RUN": f"gs://bucket/{tmp_path.name}",
            "ELECTRA_MACHINE": "m1", "ELECTRA_DEVICES": "2", "ELECTRA_WORKERS": "1", "ELECTRA_WORKER": "0",
            "ELECTRA_BEAT_SECONDS": "0.2", **more,
        }  # fmt: skip
        return subprocess.Popen([tmp_path / "bin/python", WORKER], env=environment,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip

    start.place = place
    return start


def status(worker):
    return json.loads((worker.place / "status.json").read_text())


@pytest.mark.parametrize(
    ("code", "phase", "exits", "said"),
    [("0", "done", 0, 0), ("1", "failed", 1, 1), ("75", "preempted", 75, 75), ("70", "crashed", 3, 70),
     ("9", "crashed", 3, -9)],
)  # fmt: skip
def test_every_end_of_the_trainer_is_told(worker, code, phase, exits, said):
    process = worker(CODE=code)
    out = process.communicate(timeout=120)[0]
    assert process.returncode == exits, out
    found = status(worker)
    assert (found["phase"], found["exit_code"], found["step"]) == (phase, said, 7)
    assert code == "0" or found["message"] == "the last line"
    for seen in ("environment-seen", "environment-of-check"):
        assert (worker.place / seen).read_text() == "--a=b --c='d e' 8476\n"


@pytest.mark.parametrize(
    ("before", "began", "after", "phase"),
    [
        ({"step": 7, "in_a_row": 2}, 0, {"step": 7, "in_a_row": 3}, "gave up"),
        ({"step": 6, "in_a_row": 2}, 0, {"step": 7, "in_a_row": 0}, "crashed"),
        ({"step": 6, "in_a_row": 2}, 7, {"step": 7, "in_a_row": 3}, "gave up"),
    ],
)
def test_failures_in_a_row_without_a_step_gained_make_it_give_up(worker, before, began, after, phase):
    (worker.place / "failures.json").write_text(json.dumps(before))
    process = worker(CODE="70", BEGAN=str(began))
    process.communicate(timeout=120)
    assert process.returncode == (1 if phase == "gave up" else 3), "1: systemd does not start it again"
    assert (status(worker)["phase"], status(worker)["exit_code"], status(worker)["step"]) == (phase, 70, 7)
    assert json.loads((worker.place / "failures.json").read_text()) == after


def test_an_export_that_fails_is_no_success(worker):
    process = worker(CODE="0", BAD_EXPORT="1")
    process.communicate(timeout=120)
    assert process.returncode == 1
    assert status(worker)["phase"] == "failed" and "export: error: no room" in status(worker)["message"]


@pytest.mark.slow
def test_a_worker_of_a_pod_counts_the_steps_of_the_first_one(worker, tmp_path, monkeypatch, google_storage):
    """Its trainer does not tell of them; what is damaged beside, hers or another machine's, is no word."""
    for name, value in google_storage.items():
        monkeypatch.setenv(name, value)
    from electra_flax.storage.bucket import RemoteFolder

    said = {"machine": "m1", "worker": 0, "phase": "crashed", "step": 900, "began": 800, "rate": float("nan")}
    for name, text in (("worker-0.json", json.dumps(said)), ("worker-5.json", "[1]\n{"), ("worker-6.json", '{"a": 1}'),
                       ("worker-7.json", json.dumps({**said, "machine": "m0", "step": 1}))):  # fmt: skip
        (tmp_path / name).write_text(text + "\n")
        RemoteFolder(f"gs://bucket/{tmp_path.name}").upload(tmp_path / name, f"status/{name}")
    (worker.place / "failures.json").write_text("[damaged")
    worker(CODE="70", ELECTRA_WORKER="1").communicate(timeout=120)
    assert json.loads((worker.place / "failures.json").read_text()) == {"step": 900, "in_a_row": 0}
    worker(CODE="70", ELECTRA_WORKER="1").communicate(timeout=120)
    assert json.loads((worker.place / "failures.json").read_text()) == {"step": 900, "in_a_row": 1}


@pytest.mark.slow
def test_devices_that_are_missing_make_a_machine_sick(worker):
    process = worker(CODE="0", ELECTRA_DEVICES="8")
    process.communicate(timeout=240)
    assert process.returncode == 1
    assert (status(worker)["phase"], status(worker)["message"]) == ("sick", "2 devices, expected 8")


@pytest.mark.parametrize("wrong", ["nothing", "a device", "the sum"])
def test_the_check_asks_every_device_and_adds_up_over_all(wrong, monkeypatch):
    """Run in this process, where one of its devices, or what connects them, gives a wrong answer."""
    last, put, spread = jax.devices()[-1], jax.device_put, jax.make_array_from_callback
    assert len(jax.devices()) > 1
    if wrong == "a device":
        monkeypatch.setattr(jax, "device_put", lambda x, device: put(x * (2 if device == last else 1), device))
    if wrong == "the sum":
        monkeypatch.setattr(
            jax, "make_array_from_callback",
            lambda *given: spread(*given[:2], lambda place: given[2](place) * (place[0].start != 1)),
        )  # fmt: skip
    monkeypatch.setenv("ELECTRA_DEVICES", str(len(jax.devices())))
    for name in ("RUN", "CODE"):
        monkeypatch.setenv(f"ELECTRA_{name}", "gs://bucket/run")
    for name in ("WORKER", "WORKERS"):
        monkeypatch.setenv(f"ELECTRA_{name}", "0")
    check = importlib.import_module("tpu.worker")._CHECK
    if wrong == "nothing":
        exec(check, {})
        return
    with pytest.raises(SystemExit) as ended:
        exec(check, {})
    assert {"a device": f"a matrix product on {last} came out as", "the sum": "a sum over all devices"}[wrong] in str(
        ended.value
    )


@pytest.mark.parametrize("by", ["wish", "SIGTERM"])
def test_asked_to_stop_it_lets_the_trainer_save(worker, by, tmp_path, monkeypatch, google_storage):
    process = worker(CODE="forever")
    while not (worker.place / "status.json").exists() or status(worker).get("step") != 7:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    if by == "SIGTERM":
        process.terminate()
    else:
        for name, value in google_storage.items():
            monkeypatch.setenv(name, value)
        from electra_flax.storage.bucket import RemoteFolder

        (tmp_path / "wish").write_text("stop")
        RemoteFolder(f"gs://bucket/{tmp_path.name}").upload(tmp_path / "wish", "wish")
    out = process.communicate(timeout=60)[0]
    assert "saved" in out
    assert (process.returncode, status(worker)["phase"]) == ((0, "stopped") if by == "wish" else (75, "preempted"))
