"""Run pretraining on Cloud TPU. `make tpu-train` and its siblings call this; `--dry-run` shows every command."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from electra_flax.config.loading import load_config, load_fields
from electra_flax.config.ranges import Range
from electra_flax.config.schema import Config
from electra_flax.errors import EXIT_CODES, RunError, UserError, escaped
from electra_flax.formats import counted, duration
from electra_flax.runtime.ending import run_command
from electra_flax.runtime.flags import (
    Command,
    ConfigFile,
    Overridden,
    Parser,
    exit_codes,
    fields_help,
    make_parser,
    parse,
)
from tpu import commands, history, package
from tpu.babysitter import GO_ON, STOP, Babysitter, create, delete, log_tail, look, remaining, wish
from tpu.board import clock
from tpu.gcloud import Gcloud
from tpu.preflight import preflight
from tpu.settings import Settings

_EXIT_CODES = {
    **{code: EXIT_CODES[code] for code in (0, 1, 2)},
    3: "the run failed or was stopped",
    70: "an unexpected error: try the same command again",
    130: "detached with Ctrl-C: the machine keeps running",
}
_LEFT_ALONE = (
    "detached: the machine, if there is one, keeps running and costs money; make tpu-train attaches again, make "
    "tpu-stop saves and deletes it, make tpu-delete deletes it at once"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; errors are one line."""
    return run_command("tpu", parse(parser(), argv).run, interrupted=_LEFT_ALONE)


def parser() -> Parser:
    """Return that of python -m tpu.launch."""
    table = (Preflight, Create, Train, Status, Logs, Ssh, Stop, Delete, Fields)
    return make_parser("python -m tpu.launch", __doc__, exit_codes(_EXIT_CODES), table)


class Launch(Overridden):
    """The run.

    Override a field of --settings with --FIELD VALUE (--zone us-central1-a). List the fields with python -m tpu.launch
    fields.
    """

    settings: ConfigFile = Path("tpu/tpu.yaml")
    """settings of the run"""
    dry_run: bool = False
    """print the commands that would change something; change nothing"""
    gcloud: Annotated[str, "PATH"] = "gcloud"
    """path of gcloud"""
    poll_seconds: Annotated[float, Range(0.1, 3600), "S"] = 30.0
    """seconds between two checks"""

    @staticmethod
    def fields() -> type:
        return Settings

    def run(self) -> int | None:
        if not self.settings.exists():
            raise UserError(f"--settings {self.settings}: no such file: copy tpu/tpu.yaml and fill it in")
        settings = load_fields(Settings, self.settings, self.overrides, "python -m tpu.launch fields")
        return self.act(settings, Gcloud(self.gcloud, self.dry_run))

    def act(self, settings: Settings, gcloud: Gcloud) -> int | None:
        """Do what the command is for."""
        raise NotImplementedError


class Checked(Launch):
    """Checks."""

    no_plan: bool = False
    """skip compiling the train step for this TPU (minutes), and the check of max_dollars"""
    no_preflight: bool = False
    """skip all checks"""

    def check(self, settings: Settings, gcloud: Gcloud) -> Config:
        """Return the configuration, when nothing is wrong. Raises UserError after all findings have been told."""
        config = load_config(settings.config, settings.overrides)
        if gcloud.dry_run or self.no_preflight:
            return config
        findings = preflight(settings, config, gcloud, with_plan=not self.no_plan)
        for finding in findings:
            print(f"{finding.level:8s} {escaped(finding.text)}", flush=True)
        if problems := [finding for finding in findings if finding.level == "problem"]:
            raise UserError(f"{counted(len(problems), 'problems')}, listed above: fix them; nothing was created")
        return config


def _upload(settings: Settings, config: Config, gcloud: Gcloud) -> str:
    with tempfile.TemporaryDirectory(prefix="electra-flax-") as folder:
        name = package.build(settings, config, Path(folder))
        return package.upload(settings, gcloud, Path(folder), name)


class Preflight(Checked):
    """Check everything before you pay for anything."""

    def act(self, settings: Settings, gcloud: Gcloud) -> None:
        self.check(settings, gcloud)


class Create(Checked):
    """Request the machine once; it starts training by itself."""

    def act(self, settings: Settings, gcloud: Gcloud) -> None:
        config = self.check(settings, gcloud)
        code = _upload(settings, config, gcloud)
        past = history.History() if gcloud.dry_run else history.load(settings, gcloud)
        gcloud.do(commands.write(wish(settings)), GO_ON)
        create(settings, gcloud, code, past, time.time() if gcloud.dry_run else clock(settings, gcloud))
        print(
            f"requested {settings.name} ({settings.accelerator_type}, up to ${settings.price:,.2f} an hour once it "
            "exists); it trains by itself, but is not recreated after a preemption: for that, make tpu-train"
        )


class Train(Checked):
    """Run until the models are here, through every preemption."""

    detach: bool = False
    """watch in the background of this computer"""

    def act(self, settings: Settings, gcloud: Gcloud) -> None:
        if self.detach:
            return _detach(settings)
        config = self.check(settings, gcloud)
        code = _upload(settings, config, gcloud)
        gcloud.do(commands.write(wish(settings)), GO_ON)
        if gcloud.dry_run:
            create(settings, gcloud, code, history.History(), time.time())
            print("then: check every 30 s, recreate a lost machine, copy the models, delete the machine:")
            gcloud.do(commands.download(f"{settings.run_url}/models", Path(settings.models)))
            for command in commands.delete(settings):
                gcloud.do(command)
            return None
        return Babysitter(settings, gcloud, code, config.training.num_steps, self.poll_seconds).watch()


def _detach(settings: Settings) -> None:
    log = Path("runs") / f"tpu-{settings.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [argument for argument in sys.argv[1:] if argument != "--detach"]
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "tpu.launch", *command],
            stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    print(f"process {process.pid} watches the run while this computer is on; log: {log}; state: make tpu-status")


class Status(Launch):
    """Show the state of the run and its machine."""

    json: bool = False
    """print JSON"""

    def act(self, settings: Settings, gcloud: Gcloud) -> None:
        past = history.load(settings, gcloud)
        seen = look(settings, gcloud, past)
        if self.json:
            workers = {number: worker._asdict() for number, worker in seen.workers.items()}
            print(json.dumps({**seen._asdict(), "workers": workers, "step": past.step, "machines": len(past.machines)}))
            return
        health = f", health {seen.health} {seen.health_reason}".rstrip() if seen.health else ""
        print(f"machine    {seen.node or 'none'}{health}")
        if settings.mode == "queued":
            print(f"request    {seen.request or 'none'}{f': {seen.refusals[-1]}' if seen.refusals else ''}")
        for number, worker in sorted(seen.workers.items()):
            message = f"  {worker.message}" if worker.message else ""
            print(
                f"worker {number}   {escaped(worker.phase)}, step {worker.step:,}, {duration(worker.seconds)} "
                f"ago{message}"
            )
        machines = counted(len(past.machines), "machines")
        print(f"run        step {past.step:,}, {machines} so far, about ${seen.spent:,.2f} spent")
        print(f"watched by {escaped(past.babysitter) or 'nobody'}")
        print(remaining(settings, gcloud))


class OfWorker(Launch):
    """Worker."""

    worker: Annotated[int, Range(0, 9999), "N"] = 0
    """number of the worker"""


class Logs(OfWorker):
    """Print the last lines of a worker's log."""

    lines: Annotated[int, Range(1, 10**6), "N"] = 50
    """lines to print"""

    def act(self, settings: Settings, gcloud: Gcloud) -> None:
        print(log_tail(settings, gcloud, self.worker, self.lines))


class Ssh(OfWorker):
    """Open a shell on a worker, or run a command there."""

    command: Annotated[str, "TEXT"] = ""
    """command to run instead of a shell"""

    def act(self, settings: Settings, gcloud: Gcloud) -> int:
        return gcloud.attached(commands.ssh(settings, str(self.worker), self.command))


class Delete(Launch):
    """Delete the machine at once, without saving."""

    def act(self, settings: Settings, gcloud: Gcloud) -> None:
        delete(settings, gcloud)
        if gcloud.dry_run:
            return
        past = history.load(settings, gcloud)
        if past.current:
            past.end(clock(settings, gcloud))
            history.save(settings, gcloud, past)
        print(remaining(settings, gcloud))


class Stop(Delete):
    """Save, stop and delete the machine; train continues later."""

    wait_minutes: Annotated[float, Range(0, 1440), "M"] = 20.0
    """minutes to wait for the save"""

    def act(self, settings: Settings, gcloud: Gcloud) -> None:
        gcloud.do(commands.write(wish(settings)), STOP)
        # By the bucket, not by ssh: workers behind --internal-ips have no address, and a babysitter sees the wish too.
        begun = time.time()
        while not gcloud.dry_run:
            past = history.load(settings, gcloud)
            seen = look(settings, gcloud, past)
            is_gone = seen.node is None and seen.request is None
            phases = {number: worker.phase for number, worker in seen.workers.items()}
            if is_gone or (phases and set(phases.values()) <= {"stopped", "done"}):
                break
            if time.time() - begun > 60 * self.wait_minutes:
                raise RunError(
                    f"{settings.name} did not report a save within {self.wait_minutes:g} minutes "
                    f"({said(phases)}); {remaining(settings, gcloud)}"
                )
            print(f"waiting for every worker to save: {said(phases)}, {duration(time.time() - begun)}", flush=True)
            time.sleep(self.poll_seconds)
        super().act(settings, gcloud)
        print(f"the run is kept in {settings.run_url}; make tpu-train continues it")


def said(phases: Mapping[int, str]) -> str:
    """Return what workers last reported: `worker 0 training`."""
    return ", ".join(f"worker {number} {phase}" for number, phase in sorted(phases.items())) or "no report yet"


class Fields(Command):
    """List the fields of --settings: meaning, range and default."""

    def run(self) -> None:
        print(fields_help(Settings, "must be given"))


if __name__ == "__main__":
    sys.exit(main())
