"""What to do about a machine, from what is seen of it: pure functions over tables, so that every case can be tested.

Source: the states and healths of google.cloud.tpu_v2, and what gcloud answers of machines that are taken away.
"""

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from electra_flax.formats import duration
from tpu.settings import Settings

# What the states of a machine mean. A state that is not here is new to us: dead, as anything that does not work. So
# are STOPPED and its kin: a preempted machine is not always PREEMPTED, and none of them ever trains again by itself.
_NODE = {
    "READY": "there",
    "CREATING": "coming", "STARTING": "coming", "RESTARTING": "coming", "REIMAGING": "coming", "REPAIRING": "coming",
    "DELETING": "going",
    "PREEMPTED": "dead", "TERMINATED": "dead", "STOPPED": "dead", "STOPPING": "dead", "HIDING": "dead",
    "HIDDEN": "dead", "UNHIDING": "dead", "UNKNOWN": "dead", "STATE_UNSPECIFIED": "dead",
}  # fmt: skip
# And those of a queued request, whose machine may or may not be there yet.
_REQUEST = {
    "CREATING": "queued", "ACCEPTED": "queued", "WAITING_FOR_RESOURCES": "queued",
    "PROVISIONING": "coming", "ACTIVE": "there",
    "SUSPENDING": "dead", "SUSPENDED": "dead", "FAILED": "dead", "DELETING": "going", "STATE_UNSPECIFIED": "dead",
}  # fmt: skip
_WELL = ("", "HEALTHY", "HEALTH_UNSPECIFIED")
_ENDED = ("done", "stopped")
MOST_REFUSALS = 3
"""So many requests in a row that Google refused end the run: the reason does not go away by itself."""


class Action(Enum):
    WAIT = "wait"
    CREATE = "create"
    DELETE = "delete"
    """To be created anew when it is gone: a name is free only then, and no dead machine recovers by itself."""
    STOP = "stop"
    """Delete, and end with an error."""
    FINISH = "finish"
    """All steps are done."""


class Decision(NamedTuple):
    action: Action
    reason: str


class Worker(NamedTuple):
    """status/worker-N.json of one worker of the machine at hand."""

    phase: str
    """installing, checking, training, exporting; done, stopped; preempted, crashed, gave up, failed, sick."""
    seconds: float
    """Since its last sign of life."""
    step: int = 0
    exit_code: int | None = None
    """Of the trainer, when it last ended; negative: the signal that ended it."""
    message: str = ""


# What a worker's phase means, and the exit code of the trainer that leads to it (worker.py):
#   0 done | 1, 2 failed: the same command would fail again | 75 preempted, or stopped where that was asked for |
#   anything else (3, 70, a signal) crashed: systemd starts it again, and after three failures in a row without a step
#   gained it gave up: another machine, and where that one gives up at the same step, the end.


class Seen(NamedTuple):
    """Everything that a decision rests on."""

    node: str | None
    """State of the machine, None where there is none."""
    request: str | None
    """State of the queued request, None where there is none."""
    health: str
    workers: Mapping[int, Worker]
    seconds: float
    """Since the machine was asked for, or, once it is there, since it was first seen there."""
    creations: int
    """Within the last hour."""
    spent: float
    """US dollars, estimated, all machines of the run."""
    idle_machines: int
    """How many machines in a row, the last ones that worked at all, gained no step."""
    stop_requested: bool = False
    refusals: Sequence[str] = ()
    """Google's reasons for refusing the last machines, in a row."""
    gave_up_before: int | None = None
    """The step at which the trainer gave up on an earlier machine."""
    unreadable_seconds: float | None = None
    """Since a worker wrote anything, where some of it is cut off or no status; None where all can be read."""
    health_reason: str = ""
    """Google's, where the machine is not well."""
    now: float = 0.0
    """Seconds since 1970, by the bucket's clock."""

    @property
    def step(self) -> int:
        """Return the furthest that a worker of this machine has told of; of a pod, worker 0 alone counts them."""
        return max((worker.step for worker in self.workers.values()), default=0)


def decide(seen: Seen, settings: Settings) -> Decision:
    """Return the first of the rules that applies."""
    # What ends the run comes before what may cost: done or spent, no machine is made again. The trainer's own verdict
    # comes before the machine's state, which may only be its consequence.
    return _ended(seen, settings) or _trainer(seen) or _state(seen, settings) or _workers(seen, settings)


def _ended(seen: Seen, settings: Settings) -> Decision | None:
    phases = [worker.phase for worker in seen.workers.values()]
    if 0 in seen.workers and seen.workers[0].phase == "done":
        return Decision(Action.FINISH, "all steps are done")
    if seen.stop_requested and (not _exists(seen) or (phases and all(phase in _ENDED for phase in phases))):
        return Decision(Action.STOP, "stopped by make tpu-stop; the run has saved")
    if seen.spent >= settings.max_dollars:
        text = f"about ${seen.spent:,.2f} spent, max_dollars={settings.max_dollars:g}: raise it to continue"
        return Decision(Action.STOP, text)
    return None


def _trainer(seen: Seen) -> Decision | None:
    """Return what the trainer itself says."""
    for number, worker in sorted(seen.workers.items()):
        if worker.phase == "failed":
            return Decision(Action.STOP, f"worker {number}: {worker.message} (exit code {worker.exit_code})")
        # One machine may be broken; two that give up at the same step say that the run is.
        if worker.phase == "gave up" and seen.step == seen.gave_up_before:
            text = f"worker {number} failed repeatedly at step {seen.step:,}, as on another machine before"
            return Decision(Action.STOP, f"{text}: {worker.message} (exit code {worker.exit_code})")
    return None


def _state(seen: Seen, settings: Settings) -> Decision | None:
    """Return what Google says."""
    if seen.stop_requested and not _exists(seen):
        return Decision(Action.STOP, "stopped by make tpu-stop")
    # A state that Google adds one day counts as dead: a machine that nobody understands costs money.
    request = _REQUEST.get(seen.request, "dead") if seen.request is not None else None
    node = _NODE.get(seen.node, "dead") if seen.node is not None else None
    if "going" in (request, node):  # its name is taken until it is gone
        return Decision(Action.WAIT, "the machine is being deleted")
    if request == "dead":
        reason = f"the queued request is {seen.request}"
        if seen.request == "FAILED" and seen.refusals:
            reason += f": {seen.refusals[-1]}"
            return _refused(reason, seen) or Decision(Action.DELETE, reason)
        return Decision(Action.DELETE, reason)
    if node == "dead":
        return Decision(Action.DELETE, f"the machine is {seen.node}")
    if request is None and node is None:
        return _create("there is no machine", seen, settings)
    if request == "queued":
        if seen.seconds > 3600 * settings.queue_hours:
            return Decision(Action.DELETE, f"no capacity within {settings.queue_hours:g} hours")
        return Decision(Action.WAIT, f"waiting for capacity ({seen.request})")
    if node == "coming" or (node is None and request == "coming"):
        if seen.seconds > 60 * settings.boot_minutes:
            what = f"{seen.node or seen.request} for {duration(seen.seconds)}"
            return Decision(Action.DELETE, f"the machine is stuck: {what}")
        return Decision(Action.WAIT, f"the machine is {seen.node or seen.request}")
    if node is None:  # the request says that it is there
        return Decision(Action.DELETE, "the request is ACTIVE, but its machine is gone")
    return None


def _workers(seen: Seen, settings: Settings) -> Decision:
    """Return what the workers of a machine that is READY say, or do not say."""
    silent = 60 * settings.silent_minutes
    for number, worker in sorted(seen.workers.items()):
        if worker.phase in ("sick", "gave up"):
            what = worker.message
            if worker.phase == "gave up":
                what = f"the trainer failed repeatedly at step {seen.step:,} (exit code {worker.exit_code}): {what}"
            return Decision(Action.DELETE, f"worker {number} does not work: {what}")
        # A status is sent every 30 s by a thread, so a trainer that compiles for minutes is not silent; startup.sh,
        # which installs, writes but once, and what has ended has no more to say.
        if worker.seconds > silent and worker.phase not in ("installing", *_ENDED):
            why = f"worker {number} has sent nothing for {duration(worker.seconds)} ({worker.phase})"
            return Decision(Action.DELETE, why)
    if seen.unreadable_seconds is not None and seen.unreadable_seconds <= silent:
        return Decision(Action.WAIT, "the status of a worker cannot be read; trying again")
    # Some workers of a pod never come up, and the others wait for them for ever: hence a limit over all of them.
    begun = [number for number, worker in seen.workers.items() if worker.phase != "installing"]
    missing = sorted(set(range(settings.num_workers)) - set(begun))
    if missing and seen.seconds > 60 * settings.boot_minutes:
        which = ", ".join(map(str, missing))
        return Decision(Action.DELETE, f"worker {which} did not start within boot_minutes={settings.boot_minutes:g}")
    # Google's health is believed only of a machine that says nothing itself: one that trains is well enough.
    if seen.health not in _WELL and not seen.workers and seen.seconds > silent:
        why = f": {seen.health_reason}" if seen.health_reason else ""
        return Decision(Action.DELETE, f"the machine's health is {seen.health}{why}")
    if missing:
        return Decision(Action.WAIT, f"{len(begun)} of {settings.num_workers} workers started")
    return Decision(Action.WAIT, ", ".join(sorted({worker.phase for worker in seen.workers.values()})))


def _create(reason: str, seen: Seen, settings: Settings) -> Decision:
    """Return the decision to create a machine, where one may be had."""
    if refused := _refused(reason, seen):
        return refused
    if seen.idle_machines >= settings.restarts_without_progress:
        return Decision(Action.STOP, f"{seen.idle_machines} machines in a row made no progress")
    if seen.creations >= settings.max_creations_per_hour:
        limit = f"max_creations_per_hour={settings.max_creations_per_hour}"
        return Decision(Action.WAIT, f"{reason}; {seen.creations} were created within the last hour ({limit})")
    return Decision(Action.CREATE, reason)


def _refused(reason: str, seen: Seen) -> Decision | None:
    """Return the decision to end, where Google refuses again and again."""
    if len(seen.refusals) < MOST_REFUSALS:
        return None
    text = f"{reason}; Google refused {len(seen.refusals)} machines in a row, the last: {seen.refusals[-1]}"
    return Decision(Action.STOP, text)


def _exists(seen: Seen) -> bool:
    return seen.node is not None or seen.request is not None
