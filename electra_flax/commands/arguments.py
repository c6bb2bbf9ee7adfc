"""The command line of electra-flax: commands, flags and their help."""

from __future__ import annotations

import argparse
from importlib.metadata import version
from pathlib import Path

from electra_flax.config.ranges import MOST_INT32, MOST_UINT32, in_range
from electra_flax.errors import EXIT_CODES
from electra_flax.files import given_path, given_place
from electra_flax.runtime.ending import Parser, print_whole

_EXIT_CODES = "exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items())
_ENCODER = "an export, a model's own folder, OWNER/NAME on the hub; orbax:DIR a run, tf1:PREFIX a checkpoint"
_CONFIG = "the configuration: a file of configs/, or your own"
_MODEL = "an export of both models, a model's own folder, or OWNER/NAME on the hub"


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="electra-flax",
        description="Pretrains ELECTRA with JAX and Flax on TPU, GPU or CPU, and publishes the result.",
        epilog=_EXIT_CODES,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"electra-flax {version('electra-flax')}")
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
    pretrain.add_argument("--config", type=given_path, required=True, metavar="YAML", help=_CONFIG)
    pretrain.add_argument(
        "--data", required=True, type=given_place, metavar="DIR", help="shards of electra-data shard, local or gs://"
    )
    pretrain.add_argument(
        "--long-data", type=given_place, metavar="DIR", help="shards of the second phase (long_phase.steps)"
    )
    pretrain.add_argument(
        "--workdir", required=True, type=given_place, metavar="DIR", help="the run, local or gs://; created if absent"
    )
    group = pretrain.add_argument_group(
        "weights to begin with",
        "DISC and GEN are each a Hugging Face folder or OWNER/NAME on the hub, PREFIX a checkpoint of the original "
        "(model.ckpt-1000000), DIR a run. What became of every tensor is printed.",
    )
    group.add_argument(
        "--init-from",
        type=given_place,
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
        "--resume-from",
        type=given_place,
        metavar="tf1:PREFIX",
        help="a run of the original goes on: weights, moments of Adam and step",
    )
    _add_devices(pretrain)
    _add_processes(pretrain)

    evaluate = commands.add_parser(
        "evaluate",
        help="held-out metrics as JSON",
        description="Prints a checkpoint's metrics on the validation split as JSON; the masks never change.",
        epilog=_EXIT_CODES,
        allow_abbrev=False,
    )
    evaluate.add_argument("--workdir", required=True, type=given_place, metavar="DIR", help="the run")
    evaluate.add_argument("--data", type=given_place, metavar="DIR", help="other shards than the run's own")
    evaluate.add_argument(
        "--step", type=in_range(int, 0, MOST_INT32), metavar="N", help="checkpoint (default: the newest)"
    )
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
    given.add_argument("--workdir", type=given_place, metavar="DIR", help="a run")
    given.add_argument(
        "--from", dest="source", type=given_place, metavar="SOURCE", help="hf:DISC[,GEN], tf1:PREFIX or orbax:DIR"
    )
    export.add_argument("--out", type=given_path, required=True, metavar="DIR", help="folder to write")
    export.add_argument("--to", choices=("hf", "tf1"), default="hf", help="Hugging Face's form (hf) or the original's")
    export.add_argument(
        "--step", type=in_range(int, 0, MOST_INT32), metavar="N", help="checkpoint of a run (default: the newest)"
    )
    export.add_argument("--vocab", type=given_path, metavar="FILE", help="vocab.txt, where none is beside the weights")
    export.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="of the tensors (float32)"
    )
    export.add_argument(
        "--license", default="", metavar="ID", help="licence of the model, for its card: apache-2.0 ..."
    )
    export.add_argument("--license-name", default="", metavar="NAME", help="with --license other: what it is called")
    export.add_argument("--license-link", default="", metavar="URL", help="with --license other: where its text is")
    export.add_argument("--language", default="", metavar="CODE", help="language of the model, for its card: ko ...")
    export.add_argument(
        "--push",
        type=given_place,
        metavar="OWNER/NAME",
        help="then upload to OWNER/NAME-discriminator and OWNER/NAME-generator on the hub (HF_TOKEN, or hf auth login)",
    )
    export.add_argument("--private", action="store_true", help="with --push: repositories that only you can see")
    _add_devices(export)

    show = commands.add_parser(
        "show",
        help="what the discriminator detects, in colour",
        description="Lets the generator of an export replace words of held-out examples and shows which of them the "
        "discriminator finds.",
        epilog=_EXIT_CODES,
        allow_abbrev=False,
    )
    show.add_argument("--model", type=given_path, required=True, metavar="DIR", help="folder of electra-flax export")
    show.add_argument("--data", required=True, type=given_place, metavar="DIR", help="shards with a validation split")
    show.add_argument("--examples", type=in_range(int, 1, 10_000), default=4, metavar="N", help="examples to show (4)")
    _add_devices(show)

    verify = commands.add_parser(
        "verify",
        help="compare a published model in every framework, layer by layer",
        description="Loads a published model through every framework that is installed (Flax, PyTorch, TensorFlow) "
        "and prints how far hidden states and logits are from our forward pass, layer by layer; with --against also "
        "how far those of other weights are. Exit code 1 beyond the tolerance.",
        epilog=_EXIT_CODES,
        allow_abbrev=False,
    )
    verify.add_argument("--model", required=True, type=given_place, metavar="DIR", help=_MODEL)
    verify.add_argument(
        "--against",
        type=given_place,
        metavar="SOURCE",
        help="what should be the same model: DIR, hf:DISC[,GEN], tf1:PREFIX or orbax:DIR",
    )
    verify.add_argument(
        "--tolerance", type=in_range(float, 0, 10**6), default=1e-4, metavar="X", help="largest difference (1e-4)"
    )
    verify.add_argument("--json", action="store_true", help="print JSON instead of the table")
    _add_devices(verify)

    detect = commands.add_parser(
        "detect",
        help="which words of a sentence look replaced",
        description="The discriminator's probability, for each piece of your sentences, that it was replaced; "
        "suspicious ones in colour.",
        epilog=_EXIT_CODES,
        allow_abbrev=False,
    )
    detect.add_argument("--model", required=True, type=given_place, metavar="DIR", help=_MODEL)
    detect.add_argument("texts", nargs="*", metavar="SENTENCE", help="none: lines of the standard input")
    detect.add_argument("--json", action="store_true", help="print JSON: every piece, its place and probability")
    _add_devices(detect)

    fill = commands.add_parser(
        "fill",
        help="what the generator would put at [MASK]",
        description="The generator's likeliest tokens for each [MASK] in your sentences.",
        epilog=_EXIT_CODES,
        allow_abbrev=False,
    )
    fill.add_argument("--model", required=True, type=given_place, metavar="DIR", help=_MODEL)
    fill.add_argument("texts", nargs="*", metavar="SENTENCE", help="with [MASK]; none: lines of the standard input")
    fill.add_argument("--top", type=in_range(int, 1, 10_000), default=5, metavar="N", help="candidates to show (5)")
    fill.add_argument("--json", action="store_true", help="print JSON")
    _add_devices(fill)

    report = commands.add_parser(
        "report",
        help="one HTML page about one run or several",
        description="Writes one self-contained HTML page, and its charts as PNGs: curves, speed, interruptions, "
        "checkpoints, the discriminator's confusion, examples of what it finds, and what doctor has to say. Give "
        "--workdir several times to compare runs.",
        epilog=_EXIT_CODES,
        allow_abbrev=False,
    )
    report.add_argument("--workdir", required=True, action="append", type=given_place, metavar="DIR", help="a run")
    report.add_argument(
        "--out", type=given_path, default=Path("report.html"), metavar="FILE", help="page (report.html)"
    )
    _add_devices(report)

    doctor = commands.add_parser(
        "doctor",
        help="what is wrong with a run or a configuration, and what to change",
        description="Looks at the numbers of a run (--workdir), or at a configuration before its first step (--config, "
        "with --data and --workdir as for pretrain): everything that pretrain would refuse, all at once, and what else "
        "stands out and what to change. Fields are overridden by --section.field VALUE.",
        epilog="exit codes: 0 nothing found; 1 something found, or you can fix it; the others as those of pretrain",
        allow_abbrev=False,
    )
    doctor.add_argument("--workdir", type=given_place, metavar="DIR", help="a run")
    doctor.add_argument("--config", type=given_path, metavar="YAML", help=_CONFIG)
    doctor.add_argument("--data", type=given_place, metavar="DIR", help="shards of electra-data shard")
    doctor.add_argument(
        "--long-data", type=given_place, metavar="DIR", help="shards of the second phase (long_phase.steps)"
    )
    doctor.add_argument("--json", action="store_true", help="print JSON")
    _add_devices(doctor)

    _add_finetune(commands)

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
    plan.add_argument("--config", type=given_path, required=True, metavar="YAML", help=_CONFIG)
    plan.add_argument("--topology", required=True, metavar="TYPE", help="accelerator type: v3-8, v4-8, v5litepod-8 ...")
    plan.add_argument("--batch", type=in_range(int, 1, 2**24), metavar="N", help="short for --training.batch_size N")
    plan.add_argument("--dtype", choices=("float32", "bfloat16"), help="short for --training.compute_dtype")
    plan.add_argument(
        "--price-per-hour",
        type=in_range(float, 0, 10**6, "(]"),
        metavar="USD",
        help="of the whole slice (default: a dated list)",
    )
    plan.add_argument(
        "--explain",
        type=in_range(int, 1, 10_000),
        nargs="?",
        const=20,
        default=0,
        metavar="N",
        help="list the N (20) costliest operations",
    )
    plan.add_argument("--json", action="store_true", help="print JSON instead of the table")
    return parser


def _add_finetune(commands: argparse._SubParsersAction[Parser]) -> None:
    finetune = commands.add_parser(
        "finetune",
        help="fine-tune a model on a task, with several seeds, and score it",
        description="Fine-tunes the discriminator on a task and writes OUT: a model folder that transformers loads, "
        "predictions, results.json with mean and deviation over the seeds. The best checkpoint is chosen on the dev "
        "examples (a tenth of the training examples where there are none), never on those that are scored. The same "
        "command goes on with what is there. Hyperparameters are a preset's; each is overridden by --NAME VALUE.",
        epilog=_EXIT_CODES,
        allow_abbrev=False,
        add_help=False,
    )
    finetune.add_argument("-h", "--help", action=_HelpWithTraining, help="this help, with every hyperparameter")
    finetune.add_argument("--task", required=True, metavar="NAME", help="a task (listed below), or your YAML file")
    finetune.add_argument("--model", required=True, type=given_place, metavar="DIR", help=_ENCODER)
    finetune.add_argument("--data", required=True, type=given_path, metavar="DIR", help="folder with the task's files")
    finetune.add_argument(
        "--out", required=True, type=given_place, metavar="DIR", help="folder to write, or gs://BUCKET/FOLDER"
    )
    _add_protocol(finetune)
    _add_devices(finetune)
    _add_processes(finetune)

    scoreboard = commands.add_parser(
        "scoreboard",
        help="all tasks whose data is there: one table",
        description="Fine-tunes the model on every task whose files are found, and writes one table: OUT/table.md, "
        ".json and .png, KoELECTRA's published rows beside it. The same command goes on with what is there. "
        "Hyperparameters are overridden by --NAME VALUE, as in finetune.",
        epilog=_EXIT_CODES,
        allow_abbrev=False,
    )
    scoreboard.add_argument(
        "--model",
        required=True,
        type=given_place,
        action="extend",
        nargs="+",
        metavar="DIR",
        help=f"{_ENCODER}; several: a row each",
    )
    scoreboard.add_argument(
        "--data", required=True, type=given_place, action="extend", nargs="+", metavar="DIR",
        help="a folder with a folder for each task, named as the task; or TASK=FOLDER, or several",
    )  # fmt: skip
    scoreboard.add_argument(
        "--out", default="scoreboard", type=given_place, metavar="DIR", help="folder, or gs://... (scoreboard)"
    )
    scoreboard.add_argument("--tasks", nargs="+", default=[], metavar="NAME", help="these alone")
    _add_protocol(scoreboard)
    _add_devices(scoreboard)
    _add_processes(scoreboard)

    predict = commands.add_parser(
        "predict",
        help="what a fine-tuned model says of your texts",
        description="Applies a folder of finetune. Texts are arguments, lines of the standard input, or a file in "
        "the task's own layout (--file), of which predictions are written in it. Of a task with two texts, the second "
        "comes after a tab; a question, a tab, its context.",
        epilog=_EXIT_CODES,
        allow_abbrev=False,
    )
    predict.add_argument(
        "--model", required=True, type=given_path, metavar="DIR", help="folder of electra-flax finetune"
    )
    predict.add_argument("texts", nargs="*", metavar="TEXT", help="none: lines of the standard input")
    predict.add_argument(
        "--file", type=given_path, metavar="FILE", help="a file in the task's own layout, labels or not"
    )
    predict.add_argument("--json", action="store_true", help="print JSON, with probabilities")
    _add_devices(predict)


def _add_protocol(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seeds", type=in_range(int, 0, MOST_UINT32), nargs="+", default=[0], metavar="N", help="one run each (0)"
    )
    parser.add_argument("--preset", default="", metavar="NAME", help="koelectra, paper or original (the task's own)")
    parser.add_argument(
        "--random-weights", action="store_true", help="not its weights: fresh ones, to see what pretraining is worth"
    )
    parser.add_argument(
        "--published-protocol",
        action="store_true",
        help="choose the best checkpoint on the scored examples themselves, as KoELECTRA's published scores were: "
        "they are too good by that",
    )


def _add_devices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--simulate-devices",
        type=in_range(int, 1, 1024),
        metavar="N",
        help="run on N simulated CPU devices (1 to 1,024) instead of real ones",
    )


def _add_processes(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "several processes", "on a TPU they find each other; elsewhere each is told, with the same command otherwise"
    )
    group.add_argument("--coordinator", type=_address, metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument("--num-processes", type=in_range(int, 1, 2**16), metavar="N", help="how many there are")
    group.add_argument("--process-id", type=in_range(int, 0, 2**16 - 1), metavar="I", help="which this is, from 0")


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not (port.isdecimal() and 0 < int(port) < 2**16):  # JAX would wait for minutes
        raise argparse.ArgumentTypeError(f"{text}: expected HOST:PORT, the port from 1 to 65,535")
    return text


class _HelpWithFields(argparse.Action):
    """Prints the help of pretrain and of every configuration field."""

    def __init__(self, **kwargs: object) -> None:
        super().__init__(nargs=0, **kwargs)  # type: ignore[arg-type]

    def __call__(self, parser: argparse.ArgumentParser, *unused: object) -> None:
        from electra_flax.config.loading import fields_help
        from electra_flax.config.schema import Config

        fields = "fields of the configuration, each overridden by --section.field VALUE:"
        print_whole(f"{parser.format_help()}\n{fields}\n\n{fields_help(Config, 'from the preset')}")
        parser.exit()


class _HelpWithTraining(_HelpWithFields):
    """Prints the help of finetune, the tasks and every hyperparameter."""

    def __call__(self, parser: argparse.ArgumentParser, *unused: object) -> None:
        from electra_flax.config.loading import fields_help
        from electra_flax.finetune.task import Training, load_task, task_names

        tasks = "\n".join(f"  {name:16s}{load_task(name).title}" for name in task_names())
        fields = "hyperparameters, each overridden by --NAME VALUE:"
        print_whole(
            f"{parser.format_help()}\ntasks:\n{tasks}\n\n{fields}\n\n{fields_help(Training, 'from the preset')}"
        )
        parser.exit()
