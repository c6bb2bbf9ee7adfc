"""Stays with a run until it is done: sees, decides, acts, and never leaves a machine that costs money unsaid."""

import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from electra_flax.errors import RunError, UserError, escaped
from electra_flax.formats import duration
from tpu import commands, history
from tpu.answers import Node, Request
from tpu.board import read_board
from tpu.decisions import Action, Decision, Seen, decide
from tpu.gcloud import Gcloud, GcloudError
from tpu.package import STARTUP_SCRIPT
from tpu.settings import Settings

GO_ON, STOP = "go on", "stop"
_TELL_AGAIN = 600.0  # seconds after which an unchanged state is told again
_COPIES = 3  # attempts to bring the models here


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
        """Watch over a run; `code` is the gs:// folder of what machines run."""
        self._settings, self._gcloud, self._code, self._num_steps = settings, gcloud, code, num_steps
        self._poll, self._now, self._sleep = poll_seconds, now, sleep
        self._me = f"process {os.getpid()} on {socket.gethostname()}, {time.time():.0f}"
        self._told: tuple[str, float] = "", 0.0
        self._pace: tuple[float, int] | None = None

    def watch(self) -> None:
        """Watch until the run is done and the models are here.

        Raises RunError where the run failed, was asked to stop or has spent what it may.
        """
        settings = self._settings
        past = history.load(settings, self._gcloud)
        past.babysitter = self._me
        past.judge_anew()
        history.save(settings, self._gcloud, past)
        try:
            self._watch()
        except (RunError, UserError):
            raise  # they say it
        except Exception:  # whoever pays for a machine hears of it, whatever ends this
            print(f"tpu: no longer watching the run: {remaining(settings, self._gcloud)}", file=sys.stderr, flush=True)
            raise

    def _watch(self) -> None:
        settings = self._settings
        while True:
            try:
                # Anew each time: the bucket is the only memory, and says when somebody else has taken over.
                past = history.load(settings, self._gcloud)
                if past.babysitter != self._me:
                    raise RunError(f"{settings.name}: another tpu-train has taken over ({past.babysitter})")
                seen = look(settings, self._gcloud, past)
                decision = decide(seen, settings)
                self._tell(decision.reason, seen, past)
                if decision.action is Action.FINISH:
                    return self._finish(seen, past)
                if decision.action is Action.STOP:
                    self._stop(decision, seen, past)
                self._act(decision, seen, past)
                history.save(settings, self._gcloud, past)
            except GcloudError as error:
                self._tell(f"{error}; trying again")
            self._sleep(self._poll)

    def _act(self, decision: Decision, seen: Seen, past: history.History) -> None:
        if decision.action is Action.DELETE:
            delete(self._settings, self._gcloud)
            past.end(seen.now)
        elif decision.action is Action.CREATE:
            past.end(seen.now)  # of one that vanished by itself
            try:
                create(self._settings, self._gcloud, self._code, past, seen.now)
            except GcloudError as error:
                # No capacity is no refusal: it passes, and asking again every few minutes is how spot machines are got.
                if past.current and error.is_refusal:
                    past.current.refused = str(error)
                past.end(seen.now)
                history.save(self._settings, self._gcloud, past)
                if error.is_for_good:
                    raise RunError(f"{error}; no machine was created") from None
                self._tell(f"{error}; trying again")

    def _finish(self, seen: Seen, past: history.History) -> None:
        """Bring the models, which are in the bucket: what keeps them from coming is no reason to pay for a machine."""
        settings = self._settings
        out, there = Path(settings.models), f"{settings.run_url}/models"
        problem = self._copy_models(there, out)
        left = self._remove(seen, past)
        if problem:
            raise UserError(
                f"the run is done, but its models could not be copied from {there} to {out} ({problem}): copy them "
                f"with gcloud storage cp --recursive '{there}/*' FOLDER; {left}"
            )
        print(f"the models are in {out}/discriminator and {out}/generator, and at {there}")
        print(left)

    def _copy_models(self, there: str, out: Path) -> str:
        """Return why they could not be copied, or ""."""
        problem = ""
        for attempt in range(_COPIES):
            if attempt:
                self._sleep(self._poll)
            try:
                out.mkdir(parents=True, exist_ok=True)
                self._gcloud.do(commands.download(there, out))
                return ""
            except OSError as error:
                return f"{error.strerror}"  # of this disk: another attempt would find the same
            except GcloudError as error:
                problem = str(error)
                self._tell(f"{problem}; trying again")
        return problem

    def _stop(self, decision: Decision, seen: Seen, past: history.History) -> None:
        for number, worker in sorted(seen.workers.items()):
            if worker.phase not in ("done", "stopped"):
                print(f"--- end of the log of worker {number} ({worker.phase})", file=sys.stderr)
                print(log_tail(self._settings, self._gcloud, number), file=sys.stderr)
        raise RunError(f"{decision.reason}; {self._remove(seen, past)}")

    def _remove(self, seen: Seen, past: history.History) -> str:
        """Delete the machine, if it may; return what is to be said about it and the bill."""
        settings = self._settings
        if settings.delete_when_done:
            delete(settings, self._gcloud)
            past.end(seen.now)
            history.save(settings, self._gcloud, past)
        return f"{remaining(settings, self._gcloud)} (about ${past.spent(seen.now):,.2f} spent on this run)"

    def _tell(self, reason: str, seen: Seen | None = None, past: history.History | None = None) -> None:
        """Print a line, where something changed or ten minutes have passed."""
        said, when = self._told
        now = self._now()
        if reason == said and now - when < _TELL_AGAIN:
            return
        self._told = reason, now
        parts = [time.strftime("%m-%d %H:%M:%S", time.localtime(now)), reason]
        if seen and past:
            parts += [self._progress(past, now)] if past.step else []
            parts.append(f"about ${seen.spent:,.2f} of ${self._settings.max_dollars:,.2f}")
        print(escaped("  ".join(parts)), flush=True)

    def _progress(self, past: history.History, now: float) -> str:
        step, total = past.step, self._num_steps
        line = f"step {step:,} of {total:,} ({step / total:.1%})"
        if self._pace is None:  # from where this babysitter began: machines that were lost since count as time
            self._pace = now, step
        begun, first = self._pace
        if first < step < total and now > begun:
            left = (total - step) * (now - begun) / (step - first)
            line += f", {duration(left)} to go at the pace so far"
        return line


def look(settings: Settings, gcloud: Gcloud, past: history.History) -> Seen:
    """Return the machine as it is; write into `past` what is new. Raises GcloudError.

    New are when it was first there, its step, why it was refused or gave up.
    """
    request = gcloud.describe(commands.describe_request(settings), Request) if settings.mode == "queued" else None
    node = gcloud.describe(commands.describe_node(settings), Node)
    # After the machine: a worker that has finished in between is then seen as it is, not taken for one that vanished.
    board = read_board(settings, gcloud, past.current.name if past.current else None)
    now, machine = board.now, past.current
    if machine is None and (request or node):
        # Of a launcher that ended between asking for it and writing that down, or that somebody else made.
        past.begin(now, settings.price, "unknown")
        machine = past.current
    if machine is not None:
        if node is not None and machine.there is None:
            machine.there = now
        if node is None and request is None and machine.there is not None:
            machine.gone = now
        if request is not None and request.state.state == "FAILED":
            machine.refused = escaped(request.refusal or "no reason given by Google")
    seen = Seen(
        node=node.state if node is not None else None,
        request=request.state.state if request is not None else None,
        health=node.health if node is not None else "",
        workers=board.workers,
        seconds=now - (machine.there or machine.asked) if machine is not None else 0.0,
        creations=past.creations(now),
        spent=past.spent(now),
        idle_machines=past.idle_machines,
        stop_requested=gcloud.find(commands.read(wish(settings))).strip() == STOP,
        refusals=past.refusals,
        gave_up_before=past.gave_up_before,
        unreadable_seconds=board.unreadable_seconds,
        health_reason=escaped(node.healthDescription) if node is not None else "",
        now=now,
    )
    if machine is not None:
        machine.last_step = max(machine.last_step, machine.first_step, seen.step)
        if any(worker.phase == "gave up" for worker in seen.workers.values()):
            machine.gave_up = seen.step
    return seen


def create(settings: Settings, gcloud: Gcloud, code: str, past: history.History, now: float) -> None:
    """Ask for a machine. Raises GcloudError."""
    name = past.begin(now, settings.price)
    if not gcloud.dry_run:
        history.save(settings, gcloud, past)  # before the deed: it counts, whatever becomes of it
    gcloud.do(commands.create(settings, name, code, STARTUP_SCRIPT))


def delete(settings: Settings, gcloud: Gcloud) -> None:
    """Delete the request and the machine, whichever is there. Raises GcloudError."""
    for command in commands.delete(settings):
        try:
            gcloud.do(command)
        except GcloudError as error:
            if not error.is_not_found:
                raise


def remaining(settings: Settings, gcloud: Gcloud) -> str:
    """Return whether anything is left that costs, as a sentence."""
    try:
        node = gcloud.describe(commands.describe_node(settings), Node)
    except UserError as error:
        return (
            f"cannot tell whether the machine {settings.name} still exists ({error}): if so, it costs "
            f"${settings.price:,.2f} an hour; check with make tpu-status"
        )
    if node is None or node.state == "DELETING":
        return f"the machine {settings.name} is deleted"
    return (
        f"THE MACHINE {settings.name} STILL EXISTS ({node.state}) and costs up to ${settings.price:,.2f} an hour: "
        "delete it with make tpu-delete"
    )


def log_tail(settings: Settings, gcloud: Gcloud, worker: int, lines: int = 30) -> str:
    """Return the last lines that a worker sent; a reason where there are none."""
    try:
        text = gcloud.ask(commands.read(f"{settings.run_url}/logs/worker-{worker}.log"))
    except UserError as error:
        return f"no log of worker {worker}: {error}"
    return "\n".join(escaped(line.expandtabs()) for line in text.split("\n")[:-1][-lines:])


def wish(settings: Settings) -> str:
    """Return the object that says whether the run shall go on or save and end."""
    return f"{settings.run_url}/wish"
