"""The babysitter, on a clock of its own: what it does over hours, and that it never leaves a machine unsaid."""

import json

import pytest
from gcloud_tools import StandIn, settings
from tpu_api import FakeTpuApi

from electra_flax.errors import RunError, UserError
from tpu.babysitter import Babysitter, delete
from tpu.history import History, Machine

HOUR = 3600.0


class World:
    """Google, a bucket and a clock that moves when somebody sleeps."""

    def __init__(self, created=lambda world, name, node: None, **changes):
        self.now, self.each_look = 1e9, lambda world: None
        self.launcher_is_fast = 0.0
        self.settings = settings(**changes)
        self.api = FakeTpuApi(lambda name, node: created(self, name, node))
        self.gcloud = StandIn(self.api, clock=lambda: self.now)
        self.creations = []

    def sleep(self, seconds):
        self.now += seconds
        self.each_look(self)

    def status(self, phase, worker=0, **details):
        node = self.api.nodes[self.settings.name]
        status = {"machine": node["metadata"]["electra-machine"], "worker": worker, "phase": phase, "time": self.now}
        self.gcloud.put(f"{self.settings.run_url}/status/worker-{worker}.json", json.dumps(status | details) + "\n")

    def watch(self):
        Babysitter(
            self.settings,
            self.gcloud,
            "gs://bucket/code",
            1000,
            30.0,
            lambda: self.now + self.launcher_is_fast,
            self.sleep,
        ).watch()

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
    with pytest.raises(RunError, match="12 machines in a row made no progress; the machine electra is deleted"):
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
    with pytest.raises(RunError, match=r"about \$24.* spent, max_dollars=24: raise it.*is deleted"):
        world.watch()
    assert 3 * HOUR <= world.now - 1e9 < 3.1 * HOUR
    assert not world.api.nodes


def test_a_trainer_that_fails_stops_the_run_with_its_log(capsys):
    world = World(lambda world, name, node: world.status("failed", exit_code=1, message="--data: no such folder"))
    world.gcloud.objects[f"{world.settings.run_url}/logs/worker-0.log"] = "a line\nthe last line\n"
    with pytest.raises(RunError, match="no such folder .exit code 1.; the machine electra is deleted"):
        world.watch()
    assert "the last line" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("steps", "machines", "end"),
    [
        ([500, 500], 2, "repeatedly at step 500, as on another machine before: halted .exit code 70."),
        ([0, 0], 2, "at step 0, as on another machine"),
        ([500, 300, 300], 3, "at step 300"),
        ([500, 700, 900, 900], 4, "at step 900"),
    ],
)
def test_a_trainer_that_fails_again_and_again_gets_another_machine_first(steps, machines, end):
    def created(world, name, node):
        world.creations.append(world.now)
        world.status("gave up", exit_code=70, message="halted", step=steps[len(world.creations) - 1])

    world = World(created)
    with pytest.raises(RunError, match=f"{end}.*the machine electra is deleted"):
        world.watch()
    assert len(world.creations) == machines
    # whoever starts it again has mended something: it is judged anew
    steps[:] = [*steps, 950, 950]
    with pytest.raises(RunError, match="at step 950"):
        world.watch()
    assert len(world.creations) == machines + 2


def test_why_google_refuses_is_told_and_the_third_time_ends_the_run(capsys):
    def created(world, name, node):
        world.creations.append(world.now)
        world.api.requests[name]["state"] = {
            "state": "FAILED",
            "failedData": {
                "error": {"code": 8, "message": "Quota limit\n'TPUV3sPreemptible' has been\x1b[31m exceeded"}
            },
        }
        del world.api.nodes[name]

    world = World(created)
    for times in (1, 2):
        with pytest.raises(RunError, match="refused 3 machines in a row, the last: Quota limit 'TPUV3sPreemptible'"):
            world.watch()
        assert len(world.creations) == 3 * times and not world.api.requests
    out = capsys.readouterr().out
    assert "FAILED: Quota limit 'TPUV3sPreemptible' has been\\x1b[31m exceeded (code 8)" in out


def test_an_operation_that_ends_with_a_reason_is_a_refusal():
    world = World(mode="plain")
    world.api.operation_error = {"code": 13, "message": "An internal error\nhas occurred"}
    with pytest.raises(
        RunError, match="refused 3 machines.*An internal error has occurred .code 13.; the machine elec"
    ):
        world.watch()
    assert len(world.api.bodies) == 3
    world.api.operation_error = {"code": 7, "message": "may not"}
    with pytest.raises(RunError, match="may not .code 7.; no machine was created"):
        world.watch()
    assert len(world.api.bodies) == 4
    # no capacity is no refusal: it is what waiting is for
    world.api.operation_error = {"code": 8, "message": "There is no more capacity in the zone"}
    until = world.now + 5 * HOUR
    world.each_look = lambda world: setattr(world.api, "operation_error", {"code": 3, "message": "enough"}) if (
        world.now > until
    ) else None  # fmt: skip
    with pytest.raises(RunError, match="enough"):
        world.watch()
    assert len(world.api.bodies) > 4 + 12


@pytest.mark.parametrize("fast", [20 * 60, -20 * 60, 400 * 86400], ids="{}s".format)
def test_the_bucket_has_the_time_not_the_launcher(fast, capsys):
    """A machine that speaks lives, and one that is silent is replaced, by whatever clock the launcher has."""

    def look(world):
        if world.api.nodes and (world.now < 1e9 + 3 * HOUR or len(world.creations) > 1):
            world.status("training", step=int(world.now - 1e9))

    world = World(lambda world, name, node: world.creations.append(world.now), max_dollars=40.0)
    world.launcher_is_fast, world.each_look = fast, look
    with pytest.raises(RunError, match="max_dollars"):
        world.watch()
    assert len(world.creations) == 2 and 3.2 * HOUR < world.creations[1] - 1e9 < 3.4 * HOUR
    assert "has sent nothing for 1" in capsys.readouterr().out
    assert 4.9 * HOUR < world.now - 1e9 < 5.2 * HOUR, "40 dollars are five hours"


@pytest.mark.parametrize(
    "word",
    ['[]\n', '{}\n', 'null\n', '{"machine": 5}\n', "\x00\n", "[" * 100_000 + "\n", '{"machine": "m", "worker": "0"}\n',
     '{"machine": "m", "worker": 0, "phase": null}\n', '{"machine": "m", "worker": 1e400, "phase": "x"}\n', "9" * 5000],
    ids=lambda word: word[:30].strip(),
)  # fmt: skip
def test_what_is_no_status_ends_nothing_and_hides_no_bill(word):
    world = World(max_dollars=24.0)
    world.each_look = lambda world: world.gcloud.put(f"{world.settings.run_url}/status/worker-0.json", word)
    with pytest.raises(RunError, match="max_dollars=24"):
        world.watch()
    assert len(world.history().machines) == 1 and not world.api.nodes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[]", "expected"), ("{", "not JSON"), ("", "not JSON"), ('{"machines": 5}', "machines=5"),
        ('{"machines": [{}]}', "machines.0.name: missing"), ('{"machines": [], "babysitter": 7}', "babysitter=7"),
        ('{"machines": [{"name": "m", "asked": 1, "first_step": 0, "price": NaN}]}', "price=nan"),
        ("[" * 100_000, "not JSON"),
    ],
)  # fmt: skip
def test_a_damaged_history_is_one_line(text, expected):
    world = World()
    world.gcloud.put(f"{world.settings.run_url}/machines.json", text)
    with pytest.raises(UserError) as refused:
        world.watch()
    assert expected in str(refused.value) and "\n" not in str(refused.value) and len(str(refused.value)) < 300
    assert not world.api.nodes


@pytest.mark.parametrize("kind", ["file", "refused"])
def test_models_that_cannot_come_here_are_named_and_the_machine_is_deleted(kind, tmp_path):
    world = World(lambda world, name, node: world.status("done", step=1000), models=str(tmp_path / "models"))
    world.gcloud.objects[f"{world.settings.run_url}/models/x"] = ""
    if kind == "file":
        (tmp_path / "models").write_text("")
    else:
        world.gcloud.answers["storage cp --recursive"] = ("ERROR: disk full",)
    with pytest.raises(UserError, match=r"its models could not be copied from gs://bucket.*electra is deleted"):
        world.watch()
    assert not world.api.nodes


def test_what_nobody_foresaw_says_that_the_machine_is_left(capsys):
    def look(world):
        if world.api.nodes:
            raise ZeroDivisionError

    world = World()
    world.each_look = look
    with pytest.raises(ZeroDivisionError):
        world.watch()
    assert "no longer watching the run: THE MACHINE electra STILL EXISTS" in capsys.readouterr().err


def test_a_machine_that_is_kept_is_named_with_its_price():
    world = World(lambda world, name, node: world.status("failed", exit_code=1, message="no"), delete_when_done=False)
    with pytest.raises(RunError, match=r"THE MACHINE electra STILL EXISTS \(READY\) and costs up to \$8.00 an hour"):
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
            world.gcloud.put(path, world.gcloud.objects[path][:40])
        if world.now > 1e9 + 2 * HOUR:
            world.status("failed", exit_code=1, message="no")

    world = World()
    world.each_look = look
    with pytest.raises(RunError, match="worker 0: no"):
        world.watch()
    assert len(world.history().machines) == 1 and world.now > 1e9 + 2 * HOUR
    assert "the status of a worker cannot be read; trying again" in capsys.readouterr().out


def test_a_second_babysitter_takes_over_and_the_first_ends():
    world = World()
    world.each_look = lambda world: world.api.nodes and world.status("training", step=1)

    def usurp(world):
        text = json.loads(world.gcloud.objects[f"{world.settings.run_url}/machines.json"])
        text["babysitter"] = "another"
        world.gcloud.objects[f"{world.settings.run_url}/machines.json"] = json.dumps(text)

    world.each_look = usurp
    with pytest.raises(RunError, match="another tpu-train has taken over"):
        world.watch()
    assert world.api.nodes, "the machine is now the other's"


def test_told_to_stop_it_deletes_what_it_created():
    world = World()

    def look(world):
        world.gcloud.objects[f"{world.settings.run_url}/wish"] = "stop"
        if world.api.nodes:
            world.status("stopped" if world.now > 1e9 + 120 else "training", step=5)

    world.each_look = look
    with pytest.raises(RunError, match="stopped by make tpu-stop; the run has saved; the machine electra is del"):
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
