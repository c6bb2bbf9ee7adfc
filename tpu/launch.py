"""The life of a run on Cloud TPU. `make tpu-train` and its siblings call this; `--dry-run` shows every command."""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from electra_flax.config.loading import fields_help, load_config, load_fields
from electra_flax.config.ranges import in_range
from electra_flax.config.schema import Config
from electra_flax.errors import RunError, UserError, counted, escaped
from electra_flax.runtime.ending import Parser, nearest_flag, run_command
from tpu import commands, history, package
from tpu.babysitter import GO_ON, STOP, Babysitter, create, delete, log_tail, look, remaining, wish
from tpu.board import clock
from tpu.gcloud import Gcloud
from tpu.preflight import preflight
from tpu.settings import Settings

_EVERY_FIELD = (
    "Every field of --settings can be given too (--zone us-central1-a): python -m tpu.launch fields lists them. "
)
_EPILOG = (
    "exit codes: 0 done; 1 you can fix it; 2 usage; 3 the run failed or was stopped; 70 nobody foresaw it, the same "
    "command may succeed; 130 left alone with Ctrl-C, the machine goes on"
)
_LEFT_ALONE = (
    "left alone: the machine, if there is one, goes on and costs; make tpu-train stays with it again, make tpu-stop "
    "saves and ends, make tpu-delete deletes at once"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code; errors are one line."""
    parser = _parser()
    args, overrides = parser.parse_known_args(argv)
    fields = {f"--{field.name}" for field in dataclasses.fields(Settings)}
    unknown = [each for each in overrides if each.partition("=")[0] not in fields]
    if problem := nearest_flag(parser, args.command, unknown):
        parser.error(problem)
    return run_command("tpu", lambda: _run(args, overrides), interrupted=_LEFT_ALONE)


def _run(args: argparse.Namespace, overrides: Sequence[str]) -> int | None:
    if args.command == "fields":
        print(fields_help(Settings, "must be given"))
        return 0
    if not Path(args.settings).exists():
        raise UserError(f"--settings {args.settings}: no such file: copy tpu/tpu.yaml and fill it in")
    settings = load_fields(Settings, args.settings, overrides, "python -m tpu.launch fields")
    code: int | None = args.run(args, settings, Gcloud(args.gcloud, args.dry_run))
    return code


# ------------------------------------------------------------------------------------------------------- commands


def _preflight(args: argparse.Namespace, settings: Settings, gcloud: Gcloud) -> None:
    _check(args, settings, gcloud)


def _create(args: argparse.Namespace, settings: Settings, gcloud: Gcloud) -> None:
    config = _check(args, settings, gcloud)
    code = _upload(settings, config, gcloud)
    past = history.History() if gcloud.dry_run else history.load(settings, gcloud)
    gcloud.do(commands.write(wish(settings)), GO_ON)
    create(settings, gcloud, code, past, time.time() if gcloud.dry_run else clock(settings, gcloud))
    print(
        f"asked for {settings.name} ({settings.accelerator_type}, up to ${settings.price:,.2f} an hour once it is "
        "there); it trains by itself, but nobody recreates it: make tpu-train stays with it"
    )


def _train(args: argparse.Namespace, settings: Settings, gcloud: Gcloud) -> None:
    if args.detach:
        return _detach(args, settings)
    config = _check(args, settings, gcloud)
    code = _upload(settings, config, gcloud)
    gcloud.do(commands.write(wish(settings)), GO_ON)
    if gcloud.dry_run:
        create(settings, gcloud, code, history.History(), time.time())
        print("then: look every 30 s, recreate what is lost, copy the models, delete the machine:")
        gcloud.do(commands.download(f"{settings.run_url}/models", Path(settings.models)))
        for command in commands.delete(settings):
            gcloud.do(command)
        return
    Babysitter(settings, gcloud, code, config.training.num_steps, args.poll_seconds).watch()


def _detach(args: argparse.Namespace, settings: Settings) -> None:
    log = Path("runs") / f"tpu-{settings.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [argument for argument in sys.argv[1:] if argument != "--detach"]
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "tpu.launch", *command],
            stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    print(f"process {process.pid} stays with the run while this computer is on; its log: {log}; make tpu-status")


def _status(args: argparse.Namespace, settings: Settings, gcloud: Gcloud) -> None:
    past = history.load(settings, gcloud)
    seen = look(settings, gcloud, past)
    if args.json:
        workers = {number: worker._asdict() for number, worker in seen.workers.items()}
        print(json.dumps({**seen._asdict(), "workers": workers, "step": past.step, "machines": len(past.machines)}))
        return
    health = f", health {seen.health} {seen.health_reason}".rstrip() if seen.health else ""
    print(f"machine    {seen.node or 'none'}{health}")
    if settings.mode == "queued":
        print(f"request    {seen.request or 'none'}{f': {seen.refusals[-1]}' if seen.refusals else ''}")
    for number, worker in sorted(seen.workers.items()):
        said = f"  {worker.message}" if worker.message else ""
        print(f"worker {number}   {escaped(worker.phase)}, step {worker.step:,}, {worker.seconds:.0f} s ago{said}")
    machines = counted(len(past.machines), "machines")
    print(f"run        step {past.step:,}, {machines} so far, about ${seen.spent:,.2f} spent")
    print(f"watched by {escaped(past.babysitter) or 'nobody'}")
    print(remaining(settings, gcloud))


def _logs(args: argparse.Namespace, settings: Settings, gcloud: Gcloud) -> None:
    print(log_tail(settings, gcloud, args.worker, args.lines))


def _ssh(args: argparse.Namespace, settings: Settings, gcloud: Gcloud) -> int:
    return gcloud.attached(commands.ssh(settings, str(args.worker), args.command_there))


def _stop(args: argparse.Namespace, settings: Settings, gcloud: Gcloud) -> None:
    gcloud.do(commands.write(wish(settings)), STOP)
    begun = time.time()
    while not gcloud.dry_run:
        past = history.load(settings, gcloud)
        seen = look(settings, gcloud, past)
        is_gone = seen.node is None and seen.request is None
        phases = {number: worker.phase for number, worker in seen.workers.items()}
        if is_gone or (phases and set(phases.values()) <= {"stopped", "done"}):
            break
        if time.time() - begun > 60 * args.wait_minutes:
            raise RunError(
                f"{settings.name} has not said that it saved within {args.wait_minutes:g} minutes "
                f"({phases or 'no word'}); {remaining(settings, gcloud)}"
            )
        print(
            f"waiting until every worker has saved: {phases or 'no word yet'}, {time.time() - begun:.0f} s", flush=True
        )
        time.sleep(args.poll_seconds)
    _delete(args, settings, gcloud)
    print(f"the run is at {settings.run_url}; make tpu-train goes on with it")


def _delete(args: argparse.Namespace, settings: Settings, gcloud: Gcloud) -> None:
    delete(settings, gcloud)
    if gcloud.dry_run:
        return
    past = history.load(settings, gcloud)
    if past.current:
        past.end(clock(settings, gcloud))
        history.save(settings, gcloud, past)
    print(remaining(settings, gcloud))


# -------------------------------------------------------------------------------------------------------- parts


def _check(args: argparse.Namespace, settings: Settings, gcloud: Gcloud) -> Config:
    """The configuration, when nothing is wrong. Raises UserError after all findings have been told."""
    config = load_config(settings.config, settings.overrides)
    if gcloud.dry_run or args.no_preflight:
        return config
    findings = preflight(settings, config, gcloud, with_plan=not args.no_plan)
    for finding in findings:
        print(f"{finding.level:8s} {escaped(finding.text)}", flush=True)
    if problems := [finding for finding in findings if finding.level == "problem"]:
        raise UserError(f"{len(problems)} problem{'s' * (len(problems) > 1)}, told above; nothing was created")
    return config


def _upload(settings: Settings, config: Config, gcloud: Gcloud) -> str:
    with tempfile.TemporaryDirectory(prefix="electra-flax-") as folder:
        name = package.build(settings, config, Path(folder))
        return package.upload(settings, gcloud, Path(folder), name)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m tpu.launch", description=__doc__, epilog=_EPILOG, allow_abbrev=False)
    commands_ = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[..., int | None], text: str) -> argparse.ArgumentParser:
        command = commands_.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            allow_abbrev=False,
            epilog=_EVERY_FIELD + _EPILOG,
        )
        command.set_defaults(run=run)
        command.add_argument("--settings", default="tpu/tpu.yaml", metavar="YAML", help="the run (tpu/tpu.yaml)")
        command.add_argument(
            "--dry-run", action="store_true", help="print the commands that change something; do nothing"
        )
        command.add_argument("--gcloud", default="gcloud", metavar="PATH", help="another gcloud than that on PATH")
        command.add_argument(
            "--poll-seconds", type=in_range(float, 0.1, 3600), default=30.0, metavar="S", help="between two looks (30)"
        )
        return command

    checked = [
        add("preflight", _preflight, "tell what is wrong before anything is paid for"),
        add("create", _create, "ask for the machine once; it trains when it is there"),
        train := add("train", _train, "stay with a run until its models are here, through every preemption"),
    ]
    for command in checked:
        command.add_argument(
            "--no-plan", action="store_true", help="do not compile the step for this TPU first (minutes)"
        )
        command.add_argument("--no-preflight", action="store_true", help="check nothing")
    train.add_argument("--detach", action="store_true", help="stay with it in the background")
    status = add("status", _status, "how the run and its machine are")
    status.add_argument("--json", action="store_true", help="print JSON")
    logs = add("logs", _logs, "the last lines of a worker's log")
    ssh = add("ssh", _ssh, "a shell on a worker, or a command")
    for command in (logs, ssh):
        command.add_argument("--worker", type=in_range(int, 0, 9999), default=0, metavar="N", help="which (0)")
    logs.add_argument("--lines", type=in_range(int, 1, 10**6), default=50, metavar="N", help="how many (50)")
    ssh.add_argument("--command", dest="command_there", default="", metavar="TEXT", help="for the shell there")
    stop = add("stop", _stop, "save, end and delete the machine; train goes on later")
    stop.add_argument(
        "--wait-minutes", type=in_range(float, 0, 1440), default=20, metavar="M", help="for the save (20)"
    )
    add("delete", _delete, "delete the machine at once, without a save")
    fields = "list the fields of --settings"
    commands_.add_parser("fields", help=fields, description=f"{fields.capitalize()}, their meaning, range and default.")
    return parser


if __name__ == "__main__":
    sys.exit(main())
