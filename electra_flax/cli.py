"""electra-flax: plan, pretrain, evaluate, export, show."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from electra_flax.config import Preempted, RunError, UserError
from electra_flax.host_memory import restart_with_huge_pages

if TYPE_CHECKING:
    from electra_flax.initial_weights import Start

_EXIT_CODES = (
    "exit codes: 0 done; 1 you can fix it; 2 usage; 3 the run failed; 75 asked to stop (SIGTERM, a spot machine taken "
    "away) and saved; the same command continues a run"
)
_ENDS_OF_A_RUN = (0, RunError.exit_code, Preempted.exit_code)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code; errors are one line. Without `argv`, the process is the command's."""
    parser = _parser()
    args, overrides = parser.parse_known_args(argv)
    if overrides and args.command not in ("pretrain", "plan", "doctor"):
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("electra_flax").setLevel(logging.INFO)
    # Orbax explains its own options at every start, and prints the traceback of what it raises too.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    # Where a save or a restore fails, Orbax leaves tasks behind whose errors nobody asks for.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    if sys.unraisablehook is sys.__unraisablehook__:  # not the one of a program that calls this
        sys.unraisablehook = _without_late_writes
    owns_process = argv is None  # started from a shell, not called
    if owns_process and args.command == "pretrain":
        signal.signal(signal.SIGTERM, _nothing_to_save)
        restart_with_huge_pages()
    code = _run(args, overrides)
    if owns_process and args.command == "pretrain" and code in _ENDS_OF_A_RUN:
        from electra_flax import processes

        processes.leave(code)
    return code


def _run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    try:
        if args.command == "pretrain":
            _pretrain(args, overrides)
        elif args.command == "plan":
            _plan(args, overrides)
        elif args.command == "doctor":
            return _doctor(args, overrides)
        else:
            {"evaluate": _evaluate, "export": _export, "show": _show, "report": _report}[args.command](args)
    except (UserError, RunError) as error:
        print(f"electra-flax: error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except Preempted as error:
        print(f"electra-flax: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        print("electra-flax: interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def _without_late_writes(unraisable: sys.UnraisableHookArgs) -> None:
    """Says nothing of the writes of a failed save that end after Orbax closed their event loop; the rest as ever.

    They may come after the line that says what to do, which must be the last.
    """
    if isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed":
        return
    sys.__unraisablehook__(unraisable)


def _nothing_to_save(number: int, frame: object) -> None:
    """SIGTERM before the run began or after it ended: the same answer as within, at once."""
    print("electra-flax: asked to stop with nothing to save; the same command continues", file=sys.stderr, flush=True)
    os._exit(Preempted.exit_code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="electra-flax",
        description="Pretrains ELECTRA with JAX and Flax on TPU, GPU or CPU, and publishes the result.",
        epilog=_EXIT_CODES,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)

    pretrain = commands.add_parser(
        "pretrain",
        help="train, or continue, a run",
        description="Trains both models jointly. The workdir is the run: the same command continues it.",
        epilog=_EXIT_CODES,
        allow_abbrev=False,
        add_help=False,
    )
    pretrain.add_argument("-h", "--help", action=_HelpWithFields, help="this help, with every configuration field")
    pretrain.add_argument("--config", type=Path, required=True, metavar="YAML", help="a file of configs/")
    pretrain.add_argument("--data", required=True, metavar="DIR", help="shards of electra-data shard, local or gs://")
    pretrain.add_argument("--long-data", metavar="DIR", help="shards of the second phase (long_phase.steps)")
    pretrain.add_argument("--workdir", required=True, metavar="DIR", help="the run, local or gs://; created if absent")
    group = pretrain.add_argument_group(
        "weights to begin with",
        "DISC and GEN are each a Hugging Face folder or OWNER/NAME on the hub, PREFIX a checkpoint of the original "
        "(model.ckpt-1000000), DIR a run. What became of every tensor is printed.",
    )
    group.add_argument(
        "--init-from",
        metavar="SOURCE",
        help="hf:DISC[,GEN], tf1:PREFIX or orbax:DIR: a new run with their weights, its optimizer and schedule fresh; "
        "rows of tokens that their vocabulary lacks are the mean of their pieces'",
    )
    group.add_argument(
        "--warm-start-generator",
        action="store_true",
        help="where SOURCE has no generator: cut one out of the discriminator (its first layers, heads and units)",
    )
    group.add_argument(
        "--stretch-positions",
        choices=("interpolate", "tile"),
        default="",
        help="where SOURCE has fewer positions than model.max_position_embeddings: how to make more",
    )
    group.add_argument(
        "--resume-from", metavar="tf1:PREFIX", help="a run of the original goes on: weights, moments of Adam and step"
    )
    _add_devices(pretrain)
    group = pretrain.add_argument_group(
        "several processes", "on a TPU they find each other; elsewhere each is told, with the same command otherwise"
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument("--num-processes", type=int, metavar="N", help="how many there are")
    group.add_argument("--process-id", type=int, metavar="I", help="which this is, from 0")

    evaluate = commands.add_parser(
        "evaluate",
        help="held-out metrics as JSON",
        description="Prints a checkpoint's metrics on the validation split as JSON; the masks never change.",
        epilog=_EXIT_CODES,
        allow_abbrev=False,
    )
    evaluate.add_argument("--workdir", required=True, metavar="DIR", help="the run")
    evaluate.add_argument("--data", metavar="DIR", help="other shards than the run's own")
    evaluate.add_argument("--step", type=int, metavar="N", help="checkpoint (default: the newest)")
    _add_devices(evaluate)

    export = commands.add_parser(
        "export",
        help="write Hugging Face model folders, or a checkpoint of the original",
        description="Writes OUT/discriminator and OUT/generator, each a complete Hugging Face model folder "
        "(safetensors for PyTorch, msgpack for Flax, tokenizer, model card), and OUT/parity.json: how far "
        "transformers' hidden states and logits are from ours. The weights are a run's (--workdir) or anyone's "
        "(--from).",
        epilog=_EXIT_CODES,
        allow_abbrev=False,
    )
    given = export.add_mutually_exclusive_group(required=True)
    given.add_argument("--workdir", metavar="DIR", help="a run")
    given.add_argument("--from", dest="source", metavar="SOURCE", help="hf:DISC[,GEN], tf1:PREFIX or orbax:DIR")
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    export.add_argument("--to", choices=("hf", "tf1"), default="hf", help="Hugging Face's form (hf) or the original's")
    export.add_argument("--step", type=int, metavar="N", help="checkpoint of a run (default: the newest)")
    export.add_argument("--vocab", type=Path, metavar="FILE", help="vocab.txt, where none is beside the weights")
    export.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="of the tensors (float32)"
    )
    export.add_argument(
        "--license", default="", metavar="ID", help="licence of the model, for its card: apache-2.0 ..."
    )
    export.add_argument("--language", default="", metavar="CODE", help="language of the model, for its card: ko ...")
    _add_devices(export)

    show = commands.add_parser(
        "show",
        help="what the discriminator detects, in colour",
        description="Loads an export with transformers, lets the generator replace words of held-out examples and "
        "shows which of them the discriminator finds.",
        epilog=_EXIT_CODES,
        allow_abbrev=False,
    )
    show.add_argument("--model", type=Path, required=True, metavar="DIR", help="folder of electra-flax export")
    show.add_argument("--data", required=True, metavar="DIR", help="shards with a validation split")
    show.add_argument("--examples", type=int, default=4, metavar="N", help="examples to show (4)")
    _add_devices(show)
    report = commands.add_parser(
        "report",
        help="one HTML page about one run or several",
        description="Writes one self-contained HTML page, and its charts as PNGs: curves, speed, interruptions, "
        "checkpoints, the discriminator's confusion, examples of what it finds, and what doctor has to say. Give "
        "--workdir several times to compare runs.",
        epilog=_EXIT_CODES,
        allow_abbrev=False,
    )
    report.add_argument("--workdir", required=True, action="append", metavar="DIR", help="a run")
    report.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE", help="page (report.html)")
    _add_devices(report)

    doctor = commands.add_parser(
        "doctor",
        help="what is wrong with a run or a configuration, and what to change",
        description="Looks at the numbers of a run (--workdir), or at a configuration before its first step (--config, "
        "--data), and says what stands out and what to change. Fields are overridden by --section.field VALUE.",
        epilog="exit codes: 0 nothing found; 1 something found, or you can fix it; 2 usage",
        allow_abbrev=False,
    )
    doctor.add_argument("--workdir", metavar="DIR", help="a run")
    doctor.add_argument("--config", type=Path, metavar="YAML", help="a file of configs/")
    doctor.add_argument("--data", metavar="DIR", help="shards of electra-data shard")
    doctor.add_argument("--json", action="store_true", help="print JSON")

    plan = commands.add_parser(
        "plan",
        help="memory, predicted time and cost on a TPU that is not here",
        description="Compiles the very train step of a run for a TPU slice and prints what it needs and what it is "
        "predicted to take: memory per device (exact), seconds a step, days, dollars. Where it does not fit, it tries "
        "what makes it fit. Needs the TPU compiler (pip install 'electra-flax[tpu]') but no TPU. Minutes for a new "
        "program; results are cached. Fields are overridden by --section.field VALUE, as in pretrain.",
        epilog=_EXIT_CODES,
        allow_abbrev=False,
    )
    plan.add_argument("--config", type=Path, required=True, metavar="YAML", help="a file of configs/")
    plan.add_argument("--topology", required=True, metavar="TYPE", help="accelerator type: v3-8, v4-8, v5litepod-8 ...")
    plan.add_argument("--batch", metavar="N", help="short for --training.batch_size N")
    plan.add_argument("--dtype", metavar="TYPE", help="short for --training.compute_dtype TYPE")
    plan.add_argument("--price-per-hour", type=float, metavar="USD", help="of the whole slice (default: a dated list)")
    plan.add_argument(
        "--explain", type=int, nargs="?", const=20, default=0, metavar="N", help="list the N (20) costliest operations"
    )
    plan.add_argument("--json", action="store_true", help="print JSON instead of the table")
    return parser


def _add_devices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--simulate-devices",
        type=int,
        metavar="N",
        help="run on N simulated CPU devices instead of real ones",
    )


class _HelpWithFields(argparse.Action):
    """Prints the help of pretrain and of every configuration field."""

    def __init__(self, **kwargs: object) -> None:
        super().__init__(nargs=0, **kwargs)  # type: ignore[arg-type]

    def __call__(self, parser: argparse.ArgumentParser, *unused: object) -> None:
        from electra_flax.config_io import config_help

        fields = "fields of the configuration, each overridden by --section.field VALUE:"
        print(f"{parser.format_help()}\n{fields}\n\n{config_help()}")
        parser.exit()


def _use_devices(args: argparse.Namespace) -> None:
    """Must come before anything asks JAX for its devices."""
    import jax

    from electra_flax.processes import use_cpu_where_there_is_nothing_else

    use_cpu_where_there_is_nothing_else()
    if args.simulate_devices is not None:
        if args.simulate_devices < 1:
            raise UserError(f"--simulate-devices {args.simulate_devices}: expected at least 1")
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", args.simulate_devices)


def _pretrain(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    from electra_flax.config_io import load_config

    config = load_config(args.config, overrides)
    _use_devices(args)
    from electra_flax import processes
    from electra_flax.train import pretrain

    processes.join(_group(args))
    pretrain(config, [args.data, args.long_data] if args.long_data else [args.data], args.workdir, _start(args))


def _start(args: argparse.Namespace) -> Start | None:
    from electra_flax.initial_weights import Start

    if args.init_from and args.resume_from:
        raise UserError("--init-from begins a new run, --resume-from goes on with an old one: give one of them")
    source = args.init_from or args.resume_from
    if source:
        return Start(source, bool(args.resume_from), args.stretch_positions, args.warm_start_generator)
    if args.stretch_positions or args.warm_start_generator:
        raise UserError("--stretch-positions and --warm-start-generator belong to --init-from, which is not given")
    return None


def _group(args: argparse.Namespace) -> tuple[str, int, int] | None:
    given = (args.coordinator, args.num_processes, args.process_id)
    if given == (None, None, None):
        return None
    if None in given:
        raise UserError("--coordinator, --num-processes and --process-id belong together: give all three or none")
    return given


def _plan(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    from electra_flax.config_io import load_config
    from electra_flax.kernel_schedule import COMPILER_ENVIRONMENT

    short = {"--training.batch_size": args.batch, "--training.compute_dtype": args.dtype}
    given = [part for name, value in short.items() if value is not None for part in (name, value)]
    config = load_config(args.config, [*overrides, *given])
    os.environ.update(COMPILER_ENVIRONMENT)  # before JAX is imported
    from electra_flax.plan import make_plan
    from electra_flax.plan_report import report

    plans = [make_plan(phase, args.topology, args.price_per_hour, args.explain) for phase in config.phases]
    if args.json:
        printed = [plan.to_dict() for plan in plans]
        print(json.dumps(printed if len(plans) > 1 else printed[0], indent=1))
    else:
        print("\n\n".join(map(report, plans)))


def _evaluate(args: argparse.Namespace) -> None:
    _use_devices(args)
    from electra_flax.evaluate import evaluate

    print(json.dumps(evaluate(args.workdir, args.data, args.step), indent=1))


def _export(args: argparse.Namespace) -> None:
    _use_devices(args)
    from electra_flax.export import export_to_hugging_face, export_to_tf1
    from electra_flax.model_card import Publication
    from electra_flax.weights import find_weights

    if args.to == "tf1" and args.dtype != "float32":
        raise UserError(f"--dtype {args.dtype}: the original loads float32 only")
    weights = find_weights(args.source or f"orbax:{args.workdir}", args.step, args.vocab)
    for remark in weights.remarks:
        print(remark)
    if args.to == "tf1":
        print(export_to_tf1(weights, args.out))
        return
    report = export_to_hugging_face(weights, args.out, args.dtype, Publication(args.license, args.language))
    for part, differences in report.items():
        found = ", ".join(
            f"{framework} {'not installed' if largest is None else format(largest, '.2g')}"
            for framework, largest in differences.items()
        )
        print(f"{args.out / part}: largest difference of hidden states and logits from ours: {found}")


def _show(args: argparse.Namespace) -> None:
    _use_devices(args)
    from rich.console import Console

    from electra_flax import detections
    from electra_flax.staging import stage

    # Colours are what this command is for, also where its output is kept in a file or a CI log.
    detections.show(detections.detect(args.model, stage(args.data, ""), args.examples), Console(force_terminal=True))


def _report(args: argparse.Namespace) -> None:
    _use_devices(args)
    from electra_flax.report import write_report

    for path in write_report(args.workdir, args.out):
        print(path)


def _doctor(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    from electra_flax.config_io import load_config
    from electra_flax.doctor import diagnose, diagnose_config
    from electra_flax.history import History
    from electra_flax.records import DataFolder
    from electra_flax.staging import stage

    if (args.workdir is None) == (args.config is None):
        raise UserError("doctor needs a run (--workdir DIR) or a configuration (--config YAML), one of them")
    if args.workdir is not None:
        found = diagnose(History.read(args.workdir))
    else:
        manifest = DataFolder.open(stage(args.data, "")).manifest if args.data else None
        found = diagnose_config(load_config(args.config, overrides), manifest)
    if args.json:
        print(json.dumps([finding._asdict() for finding in found], indent=1))
    else:
        for finding in found:
            print(f"- {finding.problem}\n  {finding.advice}")
        if not found:
            print("nothing stands out")
    return 1 if found else 0
