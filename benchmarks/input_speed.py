"""Sequences a second of the training input, decoded, shuffled and batched: ours beside TensorFlow's tf.data.

Both read the same shards; each is a process of its own, and each round runs both. tf.data shuffles in a buffer of
10,000 examples and interleaves files; ours shuffles all examples. TensorFlow lives in an environment of its own:

    python benchmarks/input_speed.py --data SHARDS --tensorflow-python ENV/bin/python --out runs/bench
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

BATCH = 128
SECONDS = 8.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="shards of electra-data shard")
    parser.add_argument(
        "--tensorflow-python", metavar="PYTHON", help="Python that has TensorFlow; without it, ours alone"
    )
    parser.add_argument("--rounds", type=int, default=3, help="times that each is run (3)")
    parser.add_argument("--threads", type=int, default=4, help="data.read_threads (4)")
    parser.add_argument("--out", type=Path, required=True, help="folder for input_speed.json")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(tensorflow(args) if args.worker == "tf.data" else ours(args)))
        return 0
    contestants = {"electra-flax": sys.executable}
    if args.tensorflow_python:
        contestants["tf.data"] = args.tensorflow_python
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(args.rounds):
        for name, python in contestants.items():
            command = [python, __file__, *sys.argv[1:], "--worker", name]
            output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            rates[name].append(json.loads(output.splitlines()[-1]))
        shown = ", ".join(f"{name} {found[-1]:,.0f}" for name, found in rates.items())
        print(f"round {number + 1} of {args.rounds}: {shown} sequences/s", file=sys.stderr)
    result: dict = {"sequences_per_second": {name: statistics.median(found) for name, found in rates.items()}}
    if "tf.data" in rates:
        ratio = result["sequences_per_second"]
        result["times_tf_data"] = ratio["electra-flax"] / ratio["tf.data"]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "input_speed.json").write_text(json.dumps(result | {"rounds": rates}, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0


def rate(batches) -> float:  # type: ignore[no-untyped-def]
    """Return sequences a second, after a first batch that pays for the start."""
    iterator = iter(batches)
    next(iterator)
    count, begin = 0, time.perf_counter()
    while (passed := time.perf_counter() - begin) < SECONDS:
        next(iterator)
        count += BATCH
    return count / passed


def ours(args: argparse.Namespace) -> float:
    """Return the rate of pretrain's batches, on the device."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    from electra_flax.config.loading import load_config
    from electra_flax.data.manifest import Manifest
    from electra_flax.data.pipeline import open_split, training_batches
    from electra_flax.data.shards import DataFolder
    from electra_flax.model.sharding import make_mesh

    manifest = Manifest.read(args.data)
    preset = load_config(Path(__file__).parents[1] / "configs/electra_small.yaml")
    config = dataclasses.replace(
        preset,
        model=dataclasses.replace(preset.model, vocab_size=manifest.vocab_size),
        data=dataclasses.replace(preset.data, max_seq_length=manifest.max_seq_length, read_threads=args.threads),
        training=dataclasses.replace(preset.training, batch_size=BATCH),
    )
    examples = open_split(config, DataFolder.open(args.data), "train")
    return rate(training_batches(config, examples, make_mesh(config.mesh), 0))


def tensorflow(args: argparse.Namespace) -> float:
    """Return the rate of the original's input function, with what tf.data offers to make it fast."""
    import tensorflow as tf  # type: ignore[import-not-found]

    # Not through electra_flax: this environment has TensorFlow alone.
    length = json.loads((args.data / "manifest.json").read_text())["max_seq_length"]
    files = sorted(str(path) for path in args.data.glob("electra-train.tfrecord-*") if path.suffix != ".index")
    features = {name: tf.io.FixedLenFeature([length], tf.int64) for name in ("input_ids", "input_mask", "segment_ids")}

    def decode(records):  # type: ignore[no-untyped-def]
        return {name: tf.cast(value, tf.int32) for name, value in tf.io.parse_example(records, features).items()}

    data = tf.data.Dataset.from_tensor_slices(files).shuffle(len(files)).repeat()
    data = data.interleave(tf.data.TFRecordDataset, cycle_length=4, num_parallel_calls=tf.data.AUTOTUNE)
    data = data.shuffle(10_000).batch(BATCH, drop_remainder=True)
    return rate(data.map(decode, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE).as_numpy_iterator())


if __name__ == "__main__":
    sys.exit(main())
