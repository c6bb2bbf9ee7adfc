"""electra-flax: what each command does with its arguments, and its exit code."""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from electra_flax.commands.arguments import make_parser
from electra_flax.errors import Preempted, UserError, escaped
from electra_flax.runtime.console import LogHandler, print_json, print_line, print_rows, print_text, write_line
from electra_flax.runtime.ending import nearest_flag, run_command
from electra_flax.text import decode, without_halves

if TYPE_CHECKING:
    from electra_flax.weights.start import Start

_LEARNING = ("pretrain", "finetune", "scoreboard")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code; errors are one line. Without `argv`, the process is the command's."""
    parser = make_parser()
    args, overrides = parser.parse_known_args(argv)
    if overrides and not (args.command in _WITH_CONFIGURATION and overrides[0].startswith("--")):
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    if problem := nearest_flag(parser, args.command, overrides):
        parser.error(problem)
    logging.basicConfig(format="%(message)s", level=logging.WARNING, handlers=[LogHandler()])
    logging.getLogger("electra_flax").setLevel(logging.INFO)
    # Orbax explains its own options at every start, and prints the traceback of what it raises too.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    # Where a save or a restore fails, Orbax leaves tasks behind whose errors nobody asks for.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    if sys.unraisablehook is sys.__unraisablehook__:  # not the one of a program that calls this
        sys.unraisablehook = _without_late_writes
    is_a_run = argv is None and args.command in _LEARNING  # started from a shell, not called
    if not is_a_run:
        return _run(args, overrides)
    signal.signal(signal.SIGTERM, _nothing_to_save)
    code = _run(args, overrides)
    for number in (signal.SIGTERM, signal.SIGINT):  # all is said: what still waits for threads may be cut short
        signal.signal(number, lambda *unused: os._exit(code))
    if "jax" in sys.modules:  # else nothing was begun that could keep it
        from electra_flax.runtime import processes

        processes.leave(code)
    return code


def _run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    def action() -> int | None:
        if args.command in _WITH_CONFIGURATION:
            return _WITH_CONFIGURATION[args.command](args, overrides)
        return _PLAIN[args.command](args)

    return run_command("electra-flax", action, getattr(args, "out", None) or getattr(args, "workdir", None))


def _without_late_writes(unraisable: sys.UnraisableHookArgs) -> None:
    """Says nothing of the writes of a failed save that end after Orbax closed their event loop; the rest as ever.

    They may come after the line that says what to do, which must be the last.
    """
    if isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed":
        return
    sys.__unraisablehook__(unraisable)


def _nothing_to_save(number: int, frame: object) -> None:
    """SIGTERM before the run began: the same answer as within, at once."""
    print("electra-flax: asked to stop with nothing to save; the same command continues", file=sys.stderr, flush=True)
    os._exit(Preempted.exit_code)


def _use_devices(args: argparse.Namespace) -> None:
    """Must come before anything asks JAX for its devices."""
    import jax

    from electra_flax.runtime.processes import use_cpu_where_there_is_nothing_else

    use_cpu_where_there_is_nothing_else()
    if args.simulate_devices is not None:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", args.simulate_devices)


def _pretrain(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    from electra_flax.config.loading import load_config
    from electra_flax.runtime.interruption import Interruption, metadata_host

    config, begin_with, group = load_config(args.config, overrides), _start(args), _group(args)
    paths = [args.data, args.long_data] if args.long_data else [args.data]
    with Interruption(metadata_host()) as interruption:
        _use_devices(args)
        from electra_flax.runtime import processes
        from electra_flax.training.pretrain import pretrain

        with processes.joined(group):
            pretrain(config, paths, args.workdir, interruption, begin_with)


def _start(args: argparse.Namespace) -> Start | None:
    from electra_flax.weights.start import Start

    if args.init_from is not None and args.resume_from is not None:
        raise UserError("--init-from begins a new run, --resume-from goes on with an old one: give one of them")
    source = args.init_from if args.init_from is not None else args.resume_from
    if source is not None:
        return Start(source, args.resume_from is not None, args.stretch_positions, args.warm_start_generator)
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
    from electra_flax.config.loading import load_config
    from electra_flax.planning.kernel_schedule import COMPILER_ENVIRONMENT

    short = {"--training.batch_size": args.batch, "--training.compute_dtype": args.dtype}
    given = [part for name, value in short.items() if value is not None for part in (name, str(value))]
    config = load_config(args.config, [*overrides, *given])
    os.environ.update(COMPILER_ENVIRONMENT)  # before JAX is imported
    from electra_flax.planning.plan import make_plan
    from electra_flax.planning.table import INDENT, report

    plans = [make_plan(phase, args.topology, args.price_per_hour, args.explain) for phase in config.phases]
    if args.json:
        printed = [plan.to_dict() for plan in plans]
        print_json(printed if len(plans) > 1 else printed[0])
    else:
        print_text("\n\n".join(map(report, plans)), INDENT)


def _evaluate(args: argparse.Namespace) -> None:
    _use_devices(args)
    from electra_flax.training.evaluate import evaluate

    print_json(evaluate(args.workdir, args.data, args.step))


def _export(args: argparse.Namespace) -> None:
    _use_devices(args)
    from electra_flax.storage.workdir import refuse_inside
    from electra_flax.weights import hub
    from electra_flax.weights.export import export_to_hugging_face, export_to_tf1
    from electra_flax.weights.model_card import Publication
    from electra_flax.weights.sources import find_weights

    refuse_inside(args.out)
    if args.to == "tf1" and args.dtype != "float32":
        raise UserError(f"--dtype {args.dtype}: the original loads float32 only")
    if args.private and not args.push:
        raise UserError("--private is of the repositories that --push OWNER/NAME makes, which is not given")
    if args.to == "tf1" and args.push:
        raise UserError(f"--push {args.push}: the hub takes Hugging Face's form: leave out --to tf1")
    publication = Publication(args.license, args.language, args.push or "", args.license_name, args.license_link)
    for remark in publication.remarks:
        write_line(f"warning: {remark}")
    weights = find_weights(args.source or f"orbax:{args.workdir}", args.step, args.vocab)
    parts = weights.architecture.parts
    repositories = hub.repositories(args.push, parts) if args.push else {}
    if args.push:
        hub.check_login(args.push)
    for remark in weights.remarks:
        print_line(remark)
    if weights.unused:
        print_line(f"left out, no parameters of ELECTRA's pretraining: {', '.join(weights.unused)}")
    if args.to == "tf1":
        print_line(export_to_tf1(weights, args.out))
        return
    report = export_to_hugging_face(weights, args.out, args.dtype, publication)
    for part, differences in report.items():
        found = ", ".join(
            f"{framework} {'not installed' if largest is None else format(largest, '.2g')}"
            for framework, largest in differences.items()
        )
        print_line(f"{args.out / part}: largest difference of hidden states and logits from ours: {found}")
    for part, repository in repositories.items():
        print_line(hub.push(args.out / part, repository, args.private))


def _show(args: argparse.Namespace) -> None:
    _use_devices(args)
    from electra_flax.reports import replaced
    from electra_flax.runtime.console import console
    from electra_flax.storage.staging import stage

    replaced.show(replaced.detect(str(args.model), stage(args.data, without="train"), args.examples), console())


def _verify(args: argparse.Namespace) -> int:
    _use_devices(args)
    from electra_flax.runtime.console import console
    from electra_flax.weights import verify

    found = verify.verify(args.model, args.against)
    compared = [(part, name, each) for part, hands in found.items() for name, each in hands.items() if each]
    beyond = [(part, name) for part, name, each in compared if not each.largest <= args.tolerance]  # NaN is beyond
    if args.json:
        plain = {
            part: {name: each.to_dict() if each else None for name, each in hands.items()}
            for part, hands in found.items()
        }
        print_json({"tolerance": args.tolerance, "within": not beyond, **plain})
    else:
        for part, hands in found.items():
            console().print(verify.table(part, hands, args.tolerance))
        print("; ".join(f"{part} in {name}: beyond {args.tolerance:g}" for part, name in beyond)
              or f"all within {args.tolerance:g}")  # fmt: skip
    return 1 if beyond else 0


def _detect(args: argparse.Namespace) -> None:
    _use_devices(args)
    from electra_flax.reports import sentences
    from electra_flax.runtime.console import console

    texts = _texts(args)
    answers = sentences.detect(args.model, texts)
    if args.json:
        found = [{"text": text, "pieces": [piece._asdict() for piece in pieces]}
                 for text, pieces in zip(texts, answers, strict=True)]  # fmt: skip
        print_json(found)
        return
    output = console()
    if any(map(sentences.is_marked, itertools.chain.from_iterable(answers))):
        output.print(sentences.legend())
    for text, pieces in zip(texts, answers, strict=True):
        output.print(sentences.coloured(text, pieces))


def _fill(args: argparse.Namespace) -> None:
    _use_devices(args)
    from electra_flax.reports import sentences

    texts = _texts(args)
    answers = sentences.fill(args.model, texts, args.top)
    if args.json:
        found = [{"text": text, "masks": [[candidate._asdict() for candidate in mask] for mask in masks]}
                 for text, masks in zip(texts, answers, strict=True)]  # fmt: skip
        print_json(found)
        return
    for text, masks in zip(texts, answers, strict=True):
        print_line(text)
        for candidates in masks:
            print_line("  " + "  ".join(f"{token} {probability:.1%}" for token, probability in candidates))


def _texts(args: argparse.Namespace) -> list[str]:
    texts = [without_halves(text) for text in args.texts] or _lines_of_stdin()
    if not texts:
        raise UserError("no sentences: give them as arguments or on the standard input, one a line")
    return texts


def _lines_of_stdin() -> list[str]:
    """Those that are not blank. Raises UserError where they are in no encoding that can be told."""
    lines = decode(sys.stdin.buffer.read(), "standard input").split("\n")  # texts hold other separators
    return [line.rstrip("\r") for line in lines if line.strip()]


def _report(args: argparse.Namespace) -> None:
    _use_devices(args)
    from electra_flax.reports.page import write_report

    for path in write_report(args.workdir, args.out):
        print_line(path)


def _doctor(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    from electra_flax.config.loading import load_config
    from electra_flax.reports.doctor import diagnose, diagnose_config, diagnose_refusals
    from electra_flax.training.history import History

    if args.config is None:
        if args.workdir is None:
            raise UserError("doctor needs a run (--workdir DIR) or a configuration (--config YAML)")
        if args.data or args.long_data or overrides:
            raise UserError("--data, --long-data and fields belong to --config YAML, which is not given")
        found = diagnose(History.read(args.workdir))
    else:
        config = load_config(args.config, overrides)
        _use_devices(args)
        from electra_flax.training.inputs import examine

        if args.long_data and not args.data:
            raise UserError(f"--long-data {args.long_data} is of the second phase: give --data, of the first, too")
        paths = [path for path in (args.data, args.long_data) if path]
        refused, manifest = examine(config, paths, args.workdir)
        found = [*diagnose_refusals(refused), *diagnose_config(config, manifest)]
    if args.json:
        print_json([finding._asdict() for finding in found])
    else:
        for finding in found:
            print_text(f"- {escaped(finding.problem)}")
            print_text(f"  {escaped(finding.advice)}", indent=0)
        if not found:
            print("nothing stands out")
    return 1 if found else 0


def _finetune(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    _use_devices(args)
    from electra_flax.finetune.run import Request, finetune
    from electra_flax.finetune.scoreboard import summary
    from electra_flax.runtime import processes
    from electra_flax.runtime.interruption import Interruption, metadata_host

    request = Request(
        args.task, args.model, args.data, args.out, args.preset, overrides, args.seeds,
        published_protocol=args.published_protocol, random_weights=args.random_weights,
    )  # fmt: skip
    with Interruption(metadata_host()) as interruption, processes.joined(_group(args)):
        results = finetune(request, interruption)
    if processes.is_main():
        print(summary(results))
        print_line(args.out)


def _scoreboard(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    _use_devices(args)
    from electra_flax.finetune.scoreboard import Protocol, scoreboard
    from electra_flax.runtime import processes
    from electra_flax.runtime.interruption import Interruption, metadata_host

    protocol = Protocol(args.preset, overrides, args.seeds, args.published_protocol, args.random_weights)
    with Interruption(metadata_host()) as interruption, processes.joined(_group(args)):
        table = scoreboard(args.model, args.data, args.tasks, args.out, protocol, interruption)
    if processes.is_main():
        print(table)


def _predict(args: argparse.Namespace) -> None:
    _use_devices(args)
    from electra_flax.finetune.predict import predict

    if args.file and args.texts:
        raise UserError(f"--file {args.file} and texts: give one of them")
    for line in predict(args.model, [] if args.file else _texts(args), args.file, args.json):
        print_rows(line)


_WITH_CONFIGURATION: dict[str, Callable[[argparse.Namespace, Sequence[str]], int | None]] = {
    "pretrain": _pretrain,
    "plan": _plan,
    "doctor": _doctor,
    "finetune": _finetune,
    "scoreboard": _scoreboard,
}
_PLAIN: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "evaluate": _evaluate,
    "export": _export,
    "show": _show,
    "verify": _verify,
    "detect": _detect,
    "fill": _fill,
    "report": _report,
    "predict": _predict,
}
