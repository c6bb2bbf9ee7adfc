"""What the babysitter decides: a table of every state, health and word of a worker, and one of the trainer's exit
codes."""

import configparser
import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest
from gcloud_tools import settings

from electra_flax.errors import EXIT_CODES
from tpu.decisions import Action, Seen, Worker, decide

WAIT, CREATE, DELETE, STOP, FINISH = Action.WAIT, Action.CREATE, Action.DELETE, Action.STOP, Action.FINISH
TRAINING = {0: Worker("training", 10.0, 500)}
HOUR = 3600.0


def seen(node="READY", request="ACTIVE", health="HEALTHY", workers=TRAINING, seconds=HOUR, **more):
    defaults = {"creations": 1, "spent": 1.0, "idle_machines": 0, "stop_requested": False}
    return Seen(node, request, health, workers, seconds, **(defaults | more))


def one(phase, seconds=10.0, **more):
    return {0: Worker(phase, seconds, **more)}


TABLE = [
    # what Google says of the machine
    (seen(None, None, workers={}), CREATE, "there is no machine"),
    (seen("CREATING", "PROVISIONING", workers={}, seconds=60), WAIT, "CREATING"),
    (seen("CREATING", "PROVISIONING", workers={}), DELETE, "stuck: CREATING for 1 h"),
    (seen("STARTING", seconds=60), WAIT, "STARTING"),
    (seen("RESTARTING", seconds=60), WAIT, "RESTARTING"),
    (seen("REIMAGING", seconds=60), WAIT, "REIMAGING"),
    (seen("REPAIRING", seconds=60), WAIT, "REPAIRING"),
    (seen("REPAIRING"), DELETE, "stuck"),
    (seen("DELETING"), WAIT, "being deleted"),
    (seen("PREEMPTED"), DELETE, "PREEMPTED"),
    (seen("TERMINATED"), DELETE, "TERMINATED"),
    (seen("STOPPED"), DELETE, "STOPPED"),
    (seen("STOPPING"), DELETE, "STOPPING"),
    (seen("HIDING"), DELETE, "HIDING"),
    (seen("HIDDEN"), DELETE, "HIDDEN"),
    (seen("UNHIDING"), DELETE, "UNHIDING"),
    (seen("UNKNOWN"), DELETE, "UNKNOWN"),
    (seen("STATE_UNSPECIFIED"), DELETE, "STATE_UNSPECIFIED"),
    (seen("A_STATE_OF_NEXT_YEAR"), DELETE, "A_STATE_OF_NEXT_YEAR"),
    # of the queued request
    (seen(None, "CREATING", workers={}), WAIT, "waiting for capacity"),
    (seen(None, "ACCEPTED", workers={}), WAIT, "waiting for capacity"),
    (seen(None, "WAITING_FOR_RESOURCES", workers={}, seconds=20 * HOUR), WAIT, "waiting for capacity"),
    (seen(None, "WAITING_FOR_RESOURCES", workers={}, seconds=25 * HOUR), DELETE, "no capacity within 24 hours"),
    (seen(None, "PROVISIONING", workers={}, seconds=60), WAIT, "PROVISIONING"),
    (seen(None, "PROVISIONING", workers={}), DELETE, "stuck: PROVISIONING"),
    (seen(None, "ACTIVE", workers={}), DELETE, "its machine is gone"),
    (seen("READY", "SUSPENDING"), DELETE, "SUSPENDING"),
    (seen(None, "SUSPENDED"), DELETE, "SUSPENDED"),
    (seen(None, "FAILED", workers={}), DELETE, "FAILED"),
    (seen(None, "FAILED", workers={}, refusals=["no quota"] * 2), DELETE, "FAILED: no quota"),
    (seen(None, "FAILED", workers={}, refusals=["no quota"] * 3), STOP, "refused 3 machines in a row, the last: no qu"),
    (seen(None, None, workers={}, refusals=["no quota"] * 3), STOP, "refused 3 machines in a row"),
    (seen("READY", "DELETING"), WAIT, "being deleted"),
    # a machine without a request (mode plain)
    (seen(request=None), WAIT, "training"),
    (seen("PREEMPTED", None), DELETE, "PREEMPTED"),
    # health
    (seen(health="UNHEALTHY_MAINTENANCE"), WAIT, "training"),
    (seen(health="UNHEALTHY_TENSORFLOW"), WAIT, "training"),
    (seen(health="TIMEOUT", workers={}, seconds=20 * 60), DELETE, "health is TIMEOUT"),
    (seen(health="TIMEOUT", workers={}, seconds=20 * 60, health_reason="no answer"), DELETE, "TIMEOUT: no answer"),
    (seen(health="UNHEALTHY_MAINTENANCE", workers={}, seconds=5 * 60), WAIT, "0 of 1 workers"),
    (seen(health=""), WAIT, "training"),
    # what the workers say, or do not say
    (seen(workers={}, seconds=60), WAIT, "0 of 1 workers started"),
    (seen(workers={}), DELETE, "worker 0 did not start within boot_minutes=40"),
    (seen(workers=one("installing"), seconds=60), WAIT, "0 of 1 workers started"),
    (seen(workers=one("installing")), DELETE, "did not start"),
    (
        seen(workers=one("installing", 20 * 60), seconds=21 * 60),
        WAIT,
        "0 of 1 workers",
    ),  # it speaks once, then installs
    (seen(workers=one("checking")), WAIT, "checking"),
    (seen(workers=one("crashed", exit_code=-11)), WAIT, "crashed"),  # systemd starts it again
    (seen(workers=one("crashed", exit_code=3)), WAIT, "crashed"),
    (seen(workers=one("preempted", exit_code=75)), WAIT, "preempted"),
    (seen(workers=one("preempted", 20 * 60, exit_code=75)), DELETE, "sent nothing for 20 min"),
    (seen(workers=one("training", 20 * 60)), DELETE, "sent nothing for 20 min (training)"),
    (seen(workers=one("exporting")), WAIT, "exporting"),
    (seen(workers=one("sick", message="4 devices, expected 8")), DELETE, "4 devices, expected 8"),
    (seen(workers=one("gave up", exit_code=-11)), DELETE, "failed repeatedly at step 0 (exit code -11)"),
    (seen(workers=one("gave up", exit_code=3, message="not finite")), DELETE, "not finite"),
    (seen(workers=one("gave up", step=9, message="not finite"), gave_up_before=9), STOP, "at step 9, as on another"),
    (seen(workers=one("gave up", step=9), gave_up_before=8), DELETE, "repeatedly at step 9"),
    (seen(workers=one("crashed", step=9), gave_up_before=9), WAIT, "crashed"),
    (seen(unreadable_seconds=20.0, workers={}), WAIT, "cannot be read"),
    (seen(unreadable_seconds=20 * 60.0, workers={}), DELETE, "did not start"),
    (seen(unreadable_seconds=20.0, workers={}, spent=100.0), STOP, "max_dollars=100"),
    (seen(workers=one("failed", exit_code=1, message="no such file")), STOP, "no such file (exit code 1)"),
    (seen(workers=one("failed", exit_code=2)), STOP, "exit code 2"),
    (seen(workers=one("done")), FINISH, "all steps are done"),
    (seen("PREEMPTED", workers=one("done")), FINISH, "all steps are done"),
    # asked to stop
    (seen(stop_requested=True), WAIT, "training"),
    (seen(stop_requested=True, workers=one("stopped")), STOP, "has saved"),
    (seen("PREEMPTED", stop_requested=True), DELETE, "PREEMPTED"),
    (seen(None, None, workers={}, stop_requested=True), STOP, "tpu-stop"),
    # money, and machines that help nothing
    (seen(spent=100.0), STOP, "max_dollars=100"),
    (seen(None, None, workers={}, spent=100.0), STOP, "max_dollars=100"),
    (seen(None, None, workers={}, creations=4), WAIT, "max_creations_per_hour=4"),
    (seen("PREEMPTED", creations=4), DELETE, "PREEMPTED"),
    (seen(None, None, workers={}, idle_machines=5), STOP, "5 machines in a row made no progress"),
]


@pytest.mark.parametrize(("what", "action", "reason"), TABLE, ids=[f"{i}-{row[2]}" for i, row in enumerate(TABLE)])
def test_every_case_has_its_answer(what, action, reason):
    decision = decide(what, settings())
    assert decision.action is action
    assert reason in decision.reason


@pytest.mark.parametrize(
    ("workers", "action", "reason"),
    [
        ({0: Worker("training", 5.0)}, DELETE, "worker 1, 2, 3 did not start"),
        ({n: Worker("training", 5.0 + 20 * 60 * (n == 2)) for n in range(4)}, DELETE, "worker 2 has sent nothing"),
        ({n: Worker("sick" if n == 3 else "checking", 5.0) for n in range(4)}, DELETE, "worker 3 does not work"),
        ({n: Worker("training" if n else "done", 5.0) for n in range(4)}, FINISH, "all steps"),
        ({n: Worker("done" if n else "exporting", 20.0 + 3600 * (n > 0)) for n in range(4)}, WAIT, "exporting"),
        ({n: Worker("training", 5.0) for n in range(4)}, WAIT, "training"),
    ],
)
def test_a_pod_is_as_well_as_its_worst_worker(workers, action, reason):
    decision = decide(seen(workers=workers), settings(accelerator_type="v3-32"))
    assert decision.action is action
    assert reason in decision.reason


# ------------------------------------------------------------------------- the trainer's exit codes, end to end

# What worker.py tells and what the babysitter does: the first time; the third time in a row on one machine without a
# step gained; and when that happens on the next machine too, at the same step. systemd starts it again while the
# babysitter waits.
ENDS = {
    0: ("done", FINISH, "done", FINISH, FINISH),
    1: ("failed", STOP, "failed", STOP, STOP),
    2: ("failed", STOP, "failed", STOP, STOP),
    3: ("crashed", WAIT, "gave up", DELETE, STOP),
    70: ("crashed", WAIT, "gave up", DELETE, STOP),
    75: ("preempted", WAIT, "preempted", WAIT, WAIT),
    130: ("crashed", WAIT, "gave up", DELETE, STOP),
    255: ("crashed", WAIT, "gave up", DELETE, STOP),
    -6: ("crashed", WAIT, "gave up", DELETE, STOP),  # a check of the compiler or the driver failed
    -9: ("crashed", WAIT, "gave up", DELETE, STOP),  # out of memory
    -11: ("crashed", WAIT, "gave up", DELETE, STOP),
}


@pytest.fixture(scope="module")
def worker_module():
    """worker.py, as it is on a machine, without one."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("RUN", "gs://bucket/run"), ("CODE", "/code"), ("WORKER", "0"), ("WORKERS", "1")):
            patch.setenv(f"ELECTRA_{name}", value)
        yield importlib.import_module("tpu.worker")


class TrainerEnds:
    """A machine whose trainer ends again and again."""

    def __init__(self, module, folder, patch):
        self.module, self.folder, self.patch = module, folder, patch
        self.stop_requested = SimpleNamespace(is_set=lambda: False)
        folder.mkdir()

    def tell(self, phase, **details):
        self.phase = phase

    def place(self):
        return self.at

    def end(self, code, began=400, step=400, **more):
        """What the babysitter does about it, and whether systemd starts the trainer again."""
        self.at = self.module.Place(began, step)
        self.patch.setattr(self.module, "FAILURES", self.folder / "failures.json")
        self.patch.setattr(self.module, "finish", lambda teller, environment: teller.tell("done") or 0)
        returned = self.module.ended(self, code, "the last line", {})
        decision = decide(seen(workers=one(self.phase, step=step, exit_code=code), **more), settings())
        return decision.action, returned not in (0, *_prevented())


def _prevented():
    unit = configparser.ConfigParser(strict=False, interpolation=None, delimiters="=")
    unit.optionxform = str
    unit.read(Path(__file__).parents[1] / "tpu/electra-flax.service")
    assert unit["Service"]["Restart"] == "on-failure"
    return [int(code) for code in unit["Service"]["RestartPreventExitStatus"].split()]


@pytest.mark.parametrize("code", ENDS)
def test_every_exit_code_of_the_trainer_has_its_consequence(code, worker_module, tmp_path, monkeypatch):
    first_phase, first, third_phase, third, next_machine = ENDS[code]
    one_machine = TrainerEnds(worker_module, tmp_path / "one", monkeypatch)
    assert one_machine.end(code) == (first, first is WAIT) and one_machine.phase == first_phase
    assert one_machine.end(code) == (first, first is WAIT) and one_machine.phase == first_phase
    assert one_machine.end(code) == (third, third is WAIT) and one_machine.phase == third_phase
    another = TrainerEnds(worker_module, tmp_path / "another", monkeypatch)
    for _ in range(3):
        found = another.end(code, gave_up_before=400)
    assert found == (next_machine, next_machine is WAIT)
    elsewhere = decide(seen(workers=one(another.phase, step=400, exit_code=code), gave_up_before=300), settings())
    assert elsewhere.action is third, "at another step it is another failure"


def test_every_exit_code_of_the_contract_is_in_the_table():
    assert set(EXIT_CODES) <= set(ENDS)


def test_a_trainer_that_gains_steps_between_its_failures_may_fail_for_ever(worker_module, tmp_path, monkeypatch):
    """A device that halts once a day costs the time since the last checkpoint, not the machine."""
    machine = TrainerEnds(worker_module, tmp_path / "one", monkeypatch)
    for day in range(20):
        assert machine.end(70, began=400 + 100 * day, step=520 + 100 * day) == (WAIT, True)
    # a step that never ends: the watchdog takes half an hour each time
    assert [machine.end(3, began=2400, step=2420)[0] for _ in range(3)] == [WAIT, WAIT, DELETE]
