"""Stays with a run until it is done: sees, decides, acts, and never leaves a machine that costs money unsaid."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from electra_flax.errors import RunError, UserError
from tpu import commands, history
from tpu.decisions import Action, Decision, Seen, Worker, decide
from tpu.gcloud import Gcloud, GcloudError
from tpu.package import STARTUP_SCRIPT
from tpu.settings import Settings

GO_ON, STOP = "go on", "stop"
_TELL_AGAIN = 600.0  # seconds after which an unchanged state is told again
# What will not go away by itself when a machine is asked for; anything else, lack of capacity first, is tried again.
_FOR_GOOD = ("PERMISSION_DENIED", "INVALID_ARGUMENT", "UNAUTHENTICATED", "FAILED_PRECONDITION", "unrecognized")


class Babysitter:
    """Of one run. Everything that it knows is in the bucket, so any other can take its place."""

    def __init__(
        self,
        settings: Settings,
        gcloud: Gcloud,
        code: str,
        num_steps: int,
        poll_seconds: float = 30.0,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`code` is the gs:// folder of what machines run."""
        self._settings, self._gcloud, self._code, self._num_steps = settings, gcloud, code, num_steps
        self._poll, self._now, self._sleep = poll_seconds, now, sleep
        self._me = f"process {os.getpid()} on {socket.gethostname()}, {time.time():.0f}"
        self._told: tuple[str, float] = "", 0.0
        self._pace: tuple[float, int] | None = None

    def watch(self) -> None:
        """Until the run is done and the models are here.

        Raises RunError where the run failed, was asked to stop or has spent what it may.
        """
        settings = self._settings
        past = history.load(settings, self._gcloud)
        past.babysitter = self._me
        history.save(settings, self._gcloud, past)
        while True:
            try:
                past = history.load(settings, self._gcloud)
                if past.babysitter != self._me:
                    raise RunError(f"{settings.name}: another babysitter has taken over ({past.babysitter})")
                seen = look(settings, self._gcloud, past, self._now())
                decision = decide(seen, settings)
                self._tell(decision.reason, seen, past)
                if decision.action is Action.FINISH:
                    return self._finish(past)
                if decision.action is Action.STOP:
                    self._stop(decision, seen, past)
                self._act(decision, past)
                history.save(settings, self._gcloud, past)
            except GcloudError as error:
                self._tell(f"{error}; trying again")
            self._sleep(self._poll)

    # ---------------------------------------------------------------------------------------------------- acting

    def _act(self, decision: Decision, past: history.History) -> None:
        if decision.action is Action.DELETE:
            delete(self._settings, self._gcloud)
            self._gone(past)
        elif decision.action is Action.CREATE:
            self._gone(past)
            try:
                create(self._settings, self._gcloud, self._code, past, self._now())
            except GcloudError as error:
                self._gone(past)
                history.save(self._settings, self._gcloud, past)
                if any(sign in error.said for sign in _FOR_GOOD):
                    raise RunError(f"{error}; no machine was created") from None
                self._tell(f"{error}; trying again")

    def _gone(self, past: history.History) -> None:
        if past.current:
            past.current.gone = self._now()

    def _finish(self, past: history.History) -> None:
        settings = self._settings
        out = Path(settings.models)
        out.mkdir(parents=True, exist_ok=True)
        self._gcloud.do(commands.download(f"{settings.run_url}/models", out))
        print(f"the models are in {out}/discriminator and {out}/generator, and at {settings.run_url}/models")
        print(self._remove(past))

    def _stop(self, decision: Decision, seen: Seen, past: history.History) -> None:
        for number, worker in sorted(seen.workers.items()):
            if worker.phase not in ("done", "stopped"):
                print(f"--- the end of the log of worker {number} ({worker.phase})", file=sys.stderr)
                print(log_tail(self._settings, self._gcloud, number), file=sys.stderr)
        raise RunError(f"{decision.reason}; {self._remove(past)}")

    def _remove(self, past: history.History) -> str:
        """Deletes the machine, if it may; what is to be said about it and the bill."""
        settings = self._settings
        if settings.delete_when_done:
            delete(settings, self._gcloud)
            self._gone(past)
            history.save(settings, self._gcloud, past)
        return f"{remaining(settings, self._gcloud)} (about ${past.spent(self._now()):,.2f} spent on this run)"

    # --------------------------------------------------------------------------------------------------- telling

    def _tell(self, reason: str, seen: Seen | None = None, past: history.History | None = None) -> None:
        """A line, where something changed or ten minutes have passed."""
        said, when = self._told
        now = self._now()
        if reason == said and now - when < _TELL_AGAIN:
            return
        self._told = reason, now
        parts = [time.strftime("%m-%d %H:%M:%S", time.localtime(now)), reason]
        if seen and past:
            parts += [self._progress(past, now)] if past.step else []
            parts.append(f"about ${seen.spent:,.2f} of ${self._settings.max_dollars:,.2f}")
        print("  ".join(parts), flush=True)

    def _progress(self, past: history.History, now: float) -> str:
        step, total = past.step, self._num_steps
        line = f"step {step:,} of {total:,} ({step / total:.1%})"
        if self._pace is None:
            self._pace = now, step
        begun, first = self._pace
        if first < step < total and now > begun:
            left = (total - step) * (now - begun) / (step - first)
            line += f", ends in {timedelta(seconds=round(left))} at the pace so far"
        return line


def look(settings: Settings, gcloud: Gcloud, past: history.History, now: float) -> Seen:
    """The machine as it is; writes into `past` what is new: when it was first there, its step. Raises GcloudError."""
    request = gcloud.describe(commands.describe_request(settings)) if settings.mode == "queued" else None
    node = gcloud.describe(commands.describe_node(settings))
    machine = past.current
    if machine is None and (request or node):
        # Of a launcher that ended between asking for it and writing that down, or that somebody else made.
        past.begin(now, settings.price, "unknown")
        machine = past.current
    assert machine is not None or not (request or node)
    if machine is not None and node is not None and machine.there is None:
        machine.there = now
    if machine is not None and node is None and request is None and machine.there is not None:
        machine.gone = now
    workers = workers_of(settings, gcloud, machine.name, now) if machine else {}
    if machine is not None:
        machine.last_step = max([machine.last_step, machine.first_step, *(each.step for each in workers.values())])
    since = (machine.there or machine.asked) if machine else now
    return Seen(
        node=(node.get("state") or "STATE_UNSPECIFIED") if node is not None else None,
        request=((request.get("state") or {}).get("state") or "STATE_UNSPECIFIED") if request is not None else None,
        health=(node or {}).get("health", ""),
        workers=workers,
        seconds=now - since,
        creations=past.creations(now),
        spent=past.spent(now),
        idle_machines=past.idle_machines,
        stop_requested=gcloud.find(commands.read(wish(settings))).strip() == STOP,
    )


def workers_of(settings: Settings, gcloud: Gcloud, machine: str, now: float) -> dict[int, Worker]:
    """What the workers of this machine last wrote. Raises GcloudError."""
    found = gcloud.find_json(commands.read(f"{settings.run_url}/status/*"))
    return {
        each["worker"]: Worker(
            each["phase"], now - each["time"], each.get("step") or 0, each.get("exit_code"), each.get("message", "")
        )
        for each in found
        if each["machine"] == machine
    }


def create(settings: Settings, gcloud: Gcloud, code: str, past: history.History, now: float) -> None:
    """Asks for a machine. Raises GcloudError."""
    name = past.begin(now, settings.price)
    if not gcloud.dry_run:
        history.save(settings, gcloud, past)  # before the deed: it counts, whatever becomes of it
    gcloud.do(commands.create(settings, name, code, STARTUP_SCRIPT))


def delete(settings: Settings, gcloud: Gcloud) -> None:
    """The request and the machine, whichever is there. Raises GcloudError."""
    for command in commands.delete(settings):
        try:
            gcloud.do(command)
        except GcloudError as error:
            if not error.is_not_found:
                raise


def remaining(settings: Settings, gcloud: Gcloud) -> str:
    """Whether anything is left that costs, as a sentence."""
    try:
        node = gcloud.describe(commands.describe_node(settings))
    except UserError as error:
        return (
            f"whether the machine {settings.name} is still there could not be seen ({error}): it costs "
            f"${settings.price:,.2f} an hour if it is; look with make tpu-status"
        )
    if node is None or node.get("state") == "DELETING":
        return f"the machine {settings.name} is deleted"
    return (
        f"THE MACHINE {settings.name} IS STILL THERE ({node.get('state')}) and costs up to ${settings.price:,.2f} an "
        "hour: make tpu-delete deletes it"
    )


def log_tail(settings: Settings, gcloud: Gcloud, worker: int, lines: int = 30) -> str:
    """The last lines that a worker sent; a reason where there are none."""
    try:
        return "\n".join(
            gcloud.ask(commands.read(f"{settings.run_url}/logs/worker-{worker}.log")).splitlines()[-lines:]
        )
    except UserError as error:
        return f"no log of worker {worker}: {error}"


def wish(settings: Settings) -> str:
    """The object that says whether the run shall go on or save and end."""
    return f"{settings.run_url}/wish"
