"""Steps per second of the joint pretraining step: ours, transformers on PyTorch, transformers' Flax modules.

Each contestant is a process of its own, so that memory is its own too; the steps are taken in turn, so that a noisy
machine is noisy for all. Medians, ratios and peak memory go to a JSON file and a picture.

    python benchmarks/step_speed.py --config configs/electra_small.yaml --batch 32 --steps 5 --out runs/bench
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from contestants import CONTESTANTS

from electra_flax.config.loading import load_config
from electra_flax.config.schema import Config


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="a file of configs/")
    parser.add_argument("--batch", type=int, required=True, help="sequences per step")
    parser.add_argument("--length", type=int, help="tokens a sequence (default: the preset's)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of matrix products")
    parser.add_argument("--vocab", type=int, help="vocabulary size (default: the preset's)")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each (5)")
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), help="contestants")
    parser.add_argument("--out", type=Path, required=True, help="folder for step_speed.json and .png")
    parser.add_argument("--worker", choices=CONTESTANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    return work(args) if args.worker else compare(args)


def configured(args: argparse.Namespace) -> Config:
    """Return the preset with what the command line changes."""
    config = load_config(args.config)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, vocab_size=args.vocab or config.model.vocab_size),
        data=dataclasses.replace(config.data, max_seq_length=args.length or config.data.max_seq_length),
        training=dataclasses.replace(config.training, batch_size=args.batch, compute_dtype=args.dtype),
    )


def work(args: argparse.Namespace) -> int:
    """Take a step for every line of standard input; answer with its seconds and the memory so far."""
    step: Callable[[], None] = CONTESTANTS[args.worker](configured(args))
    for _ in range(2):
        step()
    print("ready", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        step()
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "peak_bytes": peak}), flush=True)
    return 0


def compare(args: argparse.Namespace) -> int:
    workers = {}
    for name in args.only:
        started = time.perf_counter()
        command = [sys.executable, __file__, *sys.argv[1:], "--worker", name]
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if read(worker) != "ready":
            raise SystemExit(f"{name} did not start")
        print(f"{name}: ready after {time.perf_counter() - started:.0f} s", file=sys.stderr)
        workers[name] = worker
    answers: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    for number in range(args.steps):
        for name, worker in workers.items():
            assert worker.stdin
            worker.stdin.write("step\n")
            worker.stdin.flush()
            answers[name].append(json.loads(read(worker)))
        shown = ", ".join(f"{name} {found[-1]['seconds']:.2f} s" for name, found in answers.items())
        print(f"round {number + 1} of {args.steps}: {shown}", file=sys.stderr)
    for worker in workers.values():
        assert worker.stdin
        worker.stdin.close()
        worker.wait()
    result = summarize(args, answers)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "step_speed.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(result, args.out / "step_speed.png")
    print(json.dumps(result, indent=1))
    return 0


def read(worker: subprocess.Popen[str]) -> str:
    """Return the next line that is ours; libraries may print before they are ready."""
    assert worker.stdout
    for line in worker.stdout:
        if line.strip() == "ready" or line.startswith('{"seconds"'):
            return line.strip()
    raise SystemExit("a contestant ended early; its message is above")


def summarize(args: argparse.Namespace, answers: dict[str, list[dict[str, float]]]) -> dict:
    """Return medians, and how many times faster the first contestant is than each other, as the median of rounds."""
    first = next(iter(answers))
    ours = np.array([answer["seconds"] for answer in answers[first]])
    return {
        "config": args.config.stem, "batch": args.batch, "length": configured(args).data.max_seq_length,
        "dtype": args.dtype, "vocab": args.vocab,
        "steps": args.steps,
        "median_seconds": {name: statistics.median(a["seconds"] for a in found) for name, found in answers.items()},
        "peak_gib": {name: max(a["peak_bytes"] for a in found) / 2**30 for name, found in answers.items()},
        f"times_faster_{first}": {
            name: float(np.median(np.array([answer["seconds"] for answer in found]) / ours))
            for name, found in answers.items()
            if name != first
        },
        "seconds": {name: [answer["seconds"] for answer in found] for name, found in answers.items()},
    }  # fmt: skip


def draw(result: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 1 + 0.6 * len(result["seconds"])), layout="constrained")
    for row, (name, seconds) in enumerate(result["seconds"].items()):
        axes.barh(row, result["median_seconds"][name], color="0.8")
        axes.plot(seconds, [row] * len(seconds), "k|")
    axes.set_yticks(range(len(result["seconds"])), list(result["seconds"]))
    axes.invert_yaxis()
    axes.set_xlabel("seconds a step (bar: median, marks: each step); shorter is better")
    axes.set_title(f"{result['config']}, {result['batch']} x {result['length']}, {result['dtype']}")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
