"""What the babysitter decides: a table of every state, health and word of a worker; and that money is guarded."""

import json

import pytest
from gcloud_tools import StandIn, settings
from tpu_api import FakeTpuApi

from electra_flax.errors import RunError, UserError
from tpu.babysitter import Babysitter, delete
from tpu.decisions import Action, Seen, Worker, decide
from tpu.history import History, Machine

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
    (seen("CREATING", "PROVISIONING", workers={}), DELETE, "stuck: CREATING for 60 minutes"),
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
    (seen("READY", "DELETING"), WAIT, "being deleted"),
    # a machine without a request (mode plain)
    (seen(request=None), WAIT, "training"),
    (seen("PREEMPTED", None), DELETE, "PREEMPTED"),
    # health
    (seen(health="UNHEALTHY_MAINTENANCE"), WAIT, "training"),
    (seen(health="UNHEALTHY_TENSORFLOW"), WAIT, "training"),
    (seen(health="TIMEOUT", workers={}, seconds=20 * 60), DELETE, "health is TIMEOUT"),
    (seen(health="UNHEALTHY_MAINTENANCE", workers={}, seconds=5 * 60), WAIT, "0 of 1 workers"),
    (seen(health=""), WAIT, "training"),
    # what the workers say, or do not say
    (seen(workers={}, seconds=60), WAIT, "0 of 1 workers have begun"),
    (seen(workers={}), DELETE, "worker 0 did not begin within 40 minutes"),
    (seen(workers=one("installing"), seconds=60), WAIT, "0 of 1 workers have begun"),
    (seen(workers=one("installing")), DELETE, "did not begin"),
    (
        seen(workers=one("installing", 20 * 60), seconds=21 * 60),
        WAIT,
        "0 of 1 workers",
    ),  # it speaks once, then installs
    (seen(workers=one("checking")), WAIT, "checking"),
    (seen(workers=one("crashed", exit_code=-11)), WAIT, "crashed"),  # systemd starts it again
    (seen(workers=one("crashed", exit_code=3)), WAIT, "crashed"),
    (seen(workers=one("preempted", exit_code=75)), WAIT, "preempted"),
    (seen(workers=one("preempted", 20 * 60, exit_code=75)), DELETE, "silent for 20 minutes"),
    (seen(workers=one("training", 20 * 60)), DELETE, "silent for 20 minutes (training)"),
    (seen(workers=one("exporting")), WAIT, "exporting"),
    (seen(workers=one("sick", message="4 devices, expected 8")), DELETE, "4 devices, expected 8"),
    (seen(workers=one("gave up", exit_code=-11)), DELETE, "-11 again and again"),
    (seen(workers=one("gave up", exit_code=3, message="not finite")), STOP, "not finite"),
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
    (seen(None, None, workers={}, idle_machines=5), STOP, "5 machines in a row gained no step"),
]


@pytest.mark.parametrize(("what", "action", "reason"), TABLE, ids=[f"{i}-{row[2]}" for i, row in enumerate(TABLE)])
def test_every_case_has_its_answer(what, action, reason):
    decision = decide(what, settings())
    assert decision.action is action
    assert reason in decision.reason


@pytest.mark.parametrize(
    ("workers", "action", "reason"),
    [
        ({0: Worker("training", 5.0)}, DELETE, "worker 1, 2, 3 did not begin"),
        ({n: Worker("training", 5.0 + 20 * 60 * (n == 2)) for n in range(4)}, DELETE, "worker 2 has been silent"),
        ({n: Worker("sick" if n == 3 else "checking", 5.0) for n in range(4)}, DELETE, "worker 3 is sick"),
        ({n: Worker("training" if n else "done", 5.0) for n in range(4)}, FINISH, "all steps"),
        ({n: Worker("done" if n else "exporting", 20.0 + 3600 * (n > 0)) for n in range(4)}, WAIT, "exporting"),
        ({n: Worker("training", 5.0) for n in range(4)}, WAIT, "training"),
    ],
)
def test_a_pod_is_as_well_as_its_worst_worker(workers, action, reason):
    decision = decide(seen(workers=workers), settings(accelerator_type="v3-32"))
    assert decision.action is action
    assert reason in decision.reason


# ------------------------------------------------------------------------------------ the loop, on a clock of its own


class World:
    """Google, a bucket and a clock that moves when somebody sleeps."""

    def __init__(self, created=lambda world, name, node: None, **changes):
        self.now, self.each_look = 1e9, lambda world: None
        self.settings = settings(**changes)
        self.api = FakeTpuApi(lambda name, node: created(self, name, node))
        self.gcloud = StandIn(self.api)
        self.creations = []

    def sleep(self, seconds):
        self.now += seconds
        self.each_look(self)

    def status(self, phase, worker=0, **details):
        node = self.api.nodes[self.settings.name]
        status = {"machine": node["metadata"]["electra-machine"], "worker": worker, "phase": phase, "time": self.now}
        self.gcloud.objects[f"{self.settings.run_url}/status/worker-{worker}.json"] = (
            json.dumps(status | details) + "\n"
        )

    def watch(self):
        Babysitter(self.settings, self.gcloud, "gs://bucket/code", 1000, 30.0, lambda: self.now, self.sleep).watch()

    def history(self):
        found = json.loads(self.gcloud.objects[f"{self.settings.run_url}/machines.json"])
        return History([Machine(**machine) for machine in found["machines"]])


def test_a_run_goes_through_preemptions_to_its_models(tmp_path, capsys):
    def created(world, name, node):
        world.creations.append(world.now)
        world.status("training", step=100 * len(world.creations))

    def look(world):
        if (node := world.api.nodes.get("electra")) is None:
            return
        if len(world.creations) < 4 and world.now - world.creations[-1] > 600:
            node["state"] = "PREEMPTED"
        elif len(world.creations) == 4:
            world.status("done", step=1000)

    world = World(created, models=str(tmp_path / "models"))
    world.gcloud.objects[f"{world.settings.run_url}/models/discriminator/config.json"] = "{}"
    world.each_look = look
    world.watch()
    assert len(world.creations) == 4 and not world.api.nodes and not world.api.requests
    assert (tmp_path / "models/discriminator/config.json").exists()
    assert world.history().step == 1000 and not world.history().current
    out = capsys.readouterr().out
    assert "PREEMPTED" in out and "the machine electra is deleted" in out and "step 100 of 1,000" in out


@pytest.mark.parametrize("mode", ["queued", "plain"])
@pytest.mark.parametrize("state", ["PREEMPTED", "CREATING", "UNKNOWN", "READY"])
def test_whatever_happens_only_so_many_machines_are_created(state, mode):
    """Machines that are never any good: at most four within any hour, and then it gives up and says so."""

    def created(world, name, node):
        world.creations.append(world.now)
        node["state"] = state

    world = World(created, mode=mode, max_dollars=1e9, restarts_without_progress=12)
    with pytest.raises(RunError, match="12 machines in a row gained no step; the machine electra is deleted"):
        world.watch()
    assert len(world.creations) == 12
    assert all(sum(0 <= at - first < HOUR for at in world.creations) <= 4 for first in world.creations)
    assert not world.api.nodes and not world.api.requests


def test_refusals_of_google_count_as_creations_and_end_at_once_where_they_are_for_good():
    world = World()
    world.api.refusals = [(429, "RESOURCE_EXHAUSTED")] * 6 + [(403, "PERMISSION_DENIED")]
    with pytest.raises(RunError, match="PERMISSION_DENIED"):
        world.watch()
    asked = [machine.asked for machine in world.history().machines]
    assert len(asked) == 7 and asked[4] - asked[0] >= HOUR
    assert not world.api.nodes


def test_the_budget_ends_the_run_and_deletes_the_machine():
    world = World(max_dollars=24.0)  # three hours of a v3-8
    world.each_look = lambda world: world.api.nodes and world.status("training", step=int(world.now - 1e9))
    with pytest.raises(RunError, match=r"about \$24.* are spent, max_dollars=24: raise it.*is deleted"):
        world.watch()
    assert 3 * HOUR <= world.now - 1e9 < 3.1 * HOUR
    assert not world.api.nodes


def test_a_trainer_that_fails_stops_the_run_with_its_log(capsys):
    world = World(lambda world, name, node: world.status("failed", exit_code=1, message="--data: no such folder"))
    world.gcloud.objects[f"{world.settings.run_url}/logs/worker-0.log"] = "a line\nthe last line\n"
    with pytest.raises(RunError, match="no such folder .exit code 1.; the machine electra is deleted"):
        world.watch()
    assert "the last line" in capsys.readouterr().err


def test_a_machine_that_is_kept_is_named_with_its_price():
    world = World(lambda world, name, node: world.status("failed", exit_code=1, message="no"), delete_when_done=False)
    with pytest.raises(RunError, match=r"THE MACHINE electra IS STILL THERE \(READY\) and costs up to \$8.00 an hour"):
        world.watch()
    assert world.api.nodes


def test_while_google_cannot_be_seen_nothing_is_done(capsys, tmp_path):
    def look(world):
        world.gcloud.failing = 1e9 + 300 < world.now < 1e9 + 2 * HOUR
        if not world.gcloud.failing:
            world.status("done" if world.now > 1e9 + 2 * HOUR else "training", step=1)

    world = World(models=str(tmp_path))
    world.gcloud.objects[f"{world.settings.run_url}/models/x"] = ""
    world.each_look = look
    world.watch()
    assert len(world.history().machines) == 1
    assert "connection reset; trying again" in capsys.readouterr().out


def test_a_status_that_is_being_written_is_read_again(capsys):
    """Half of it is no word of anybody's, and no reason to end or to delete."""

    def look(world):
        path = f"{world.settings.run_url}/status/worker-0.json"
        if world.now < 1e9 + HOUR:
            world.status("training", step=1)
        else:
            world.gcloud.objects[path] = world.gcloud.objects[path][:40]
        if world.now > 1e9 + 2 * HOUR:
            world.status("failed", exit_code=1, message="no")

    world = World()
    world.each_look = look
    with pytest.raises(RunError, match="worker 0: no"):
        world.watch()
    assert len(world.history().machines) == 1 and world.now > 1e9 + 2 * HOUR
    assert "cut off" in capsys.readouterr().out


def test_a_second_babysitter_takes_over_and_the_first_ends():
    world = World()
    world.each_look = lambda world: world.api.nodes and world.status("training", step=1)

    def usurp(world):
        text = json.loads(world.gcloud.objects[f"{world.settings.run_url}/machines.json"])
        text["babysitter"] = "another"
        world.gcloud.objects[f"{world.settings.run_url}/machines.json"] = json.dumps(text)

    world.each_look = usurp
    with pytest.raises(RunError, match="another babysitter has taken over"):
        world.watch()
    assert world.api.nodes, "the machine is now the other's"


def test_told_to_stop_it_deletes_what_it_created():
    world = World()

    def look(world):
        world.gcloud.objects[f"{world.settings.run_url}/wish"] = "stop"
        if world.api.nodes:
            world.status("stopped" if world.now > 1e9 + 120 else "training", step=5)

    world.each_look = look
    with pytest.raises(RunError, match="make tpu-stop asked for it, and the run has saved; the machine electra is del"):
        world.watch()
    assert not world.api.nodes and not world.api.requests


def test_what_another_left_behind_is_found_and_replaced():
    """A machine of that name without a history: it is never paid for unseen."""
    world = World(lambda world, name, node: world.creations.append(world.now), max_dollars=20.0)
    world.gcloud.ask(["compute", "tpus", "tpu-vm", "create", "electra", "--metadata=electra-machine=old",
                      "--accelerator-type=v3-8", "--zone=us-central1-a", "--project=my-project"])  # fmt: skip
    with pytest.raises(RunError, match="max_dollars"):
        world.watch()
    assert world.history().machines[0].name == "unknown"
    assert not world.api.nodes


def test_deleting_what_is_not_there_is_no_error():
    world = World()
    delete(world.settings, world.gcloud)
    world.gcloud.failing = True
    with pytest.raises(UserError, match="connection reset"):
        delete(world.settings, world.gcloud)
